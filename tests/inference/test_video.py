"""Videos: constant memory, files that players show, and recent frames that serve as prompts."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from seggpt_jax.errors import InputError
from seggpt_jax.files import write_whole
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.prediction import Prediction
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.video import probe, read_frames, run_video, segment_frames, write_video
from tests.commands import seggpt

ROOT = Path(__file__).parents[2]
NTSC = Fraction(30000, 1001)


def moving_square(num_frames, size=(32, 48)):
  """Yields gray frames with a red square that moves from left to right."""
  for index in range(num_frames):
    frame = np.full((*size, 3), 90, np.uint8)
    left = index * (size[1] - 8) // max(num_frames - 1, 1)
    frame[8:16, left : left + 8] = (220, 30, 30)
    yield frame


def square_mask(frame):
  return (frame[..., 0] > 150).astype(np.uint8)


@pytest.fixture
def predictor(model):
  return Predictor(model)


@pytest.fixture
def prompt():
  """A prompt of classes 0, 1 and 3."""
  generator = np.random.default_rng(0)
  return generator.integers(0, 256, (20, 30, 3), np.uint8), generator.choice([0, 1, 3], (20, 30)).astype(np.uint8)


@pytest.fixture
def clip(tmp_path):
  """Ten frames and the label map of the first."""
  path, label = tmp_path / "clip.mp4", tmp_path / "first.png"
  write_video(path, moving_square(10), NTSC)
  Image.fromarray(square_mask(next(read_frames(path)))).save(label)
  return path, label


class _Scripted(Predictor):
  """A predictor with prepared answers that records its prompts."""

  def __init__(self, model, answers):
    super().__init__(model)
    self.answers, self.seen = iter(answers), []

  def predict_many(self, queries, options=None, *, palette=None):
    for image, prompts in queries:
      self.seen.append(prompts)
      labels = np.full(image.shape[:2], next(self.answers), np.uint8)
      yield Prediction(labels, image, np.zeros((2, 3), np.uint8), (0, 1))


def test_a_long_video_runs_in_constant_memory_and_every_frame_comes_out(predictor, tmp_path, prompt):
  """Only a few of 300 frames are in memory at any time."""
  write_video(tmp_path / "long.mp4", moving_square(300), NTSC)
  for num_frames, most in ((0, 20), (2, 4)):
    alive, peak = weakref.WeakSet(), []

    class Frame(np.ndarray):
      __hash__ = object.__hash__  # a WeakSet compares by identity

    def frames(alive=alive, peak=peak, kind=Frame):
      for frame in read_frames(tmp_path / "long.mp4"):
        frame = frame.copy().view(kind)
        alive.add(frame)
        peak.append(len(alive))
        yield frame

    found = 0
    for prediction in segment_frames(predictor, frames(), [prompt], num_frames=num_frames):
      found += 1
      assert prediction.labels.shape == (32, 48)
    assert found == 300
    assert max(peak[100:]) <= max(peak[:100]) <= most


def test_a_video_becomes_a_playable_one_with_a_label_map_for_each_frame(predictor, tmp_path):
  source = tmp_path / "long.mp4"
  write_video(source, moving_square(300), NTSC)
  first = next(read_frames(source))
  Image.fromarray(square_mask(first)).save(tmp_path / "first.png")
  out = tmp_path / "out"
  write_whole(out / "label" / "long" / "000300.png", lambda file: file.write(b"of an earlier, longer video"))
  target = run_video(predictor, source, out, prompt_labels=[tmp_path / "first.png"])
  assert target == out / "long.mp4"
  info = probe(target)
  assert (info.rate, info.size, info.num_frames) == (NTSC, (32, 48), 300)
  shown = list(read_frames(target))
  assert len(shown) == 300
  assert sorted(path.name for path in (out / "label" / "long").glob("[!.]*")) == [f"{n:06}.png" for n in range(300)]
  frames = list(read_frames(source))
  for index in (0, 150, 299):
    expected = predictor.predict(frames[index], [(first, square_mask(first))])
    labels = np.asarray(Image.open(out / "label" / "long" / f"{index:06}.png"))
    np.testing.assert_array_equal(labels, expected.labels)
    # Compression changes colors a little.
    drawn = expected.overlay()
    assert np.abs(shown[index].astype(int) - drawn).mean() < 12, index


@pytest.mark.parametrize("split", [1, 2, (1, 2)])
def test_recent_frames_prompt_the_next_with_their_own_predictions(predictor, prompt, split):
  frames = list(moving_square(5))
  found = list(
    segment_frames(predictor, iter(frames), [prompt], InferenceOptions(split), num_frames=2, keep_empty=True)
  )
  recent = []
  for frame, prediction in zip(frames, found, strict=True):
    expected = predictor.predict(frame, [prompt, *recent[-2:]], split=split)
    np.testing.assert_array_equal(prediction.colors, expected.colors)
    np.testing.assert_array_equal(prediction.labels, expected.labels)
    assert prediction.classes == (0, 1, 3)
    recent.append((frame, prediction.labels))
  alone = predictor.predict(frames[-1], [prompt], split=split)
  assert not np.array_equal(alone.colors, found[-1].colors)


def test_without_recent_frames_each_frame_is_as_predicted_alone(predictor, prompt):
  frames = list(moving_square(6))
  palette = np.array([(10, 20, 30), (200, 0, 0), (0, 0, 250), (0, 240, 0)])
  found = list(segment_frames(predictor, frames, [prompt], InferenceOptions(seg_type="instance"), palette=palette))
  for frame, prediction in zip(frames, found, strict=True):
    expected = predictor.predict(frame, [prompt], palette=palette, seg_type="instance")
    # Batches of other sizes round differently.
    assert np.abs(prediction.colors.astype(int) - expected.colors).max() <= 1


def test_frames_in_which_nothing_was_found_do_not_replace_frames_that_show_the_object(model, prompt):
  """An object that was hidden for a while is still among the prompts when it comes back."""
  frames = [np.full((8, 8, 3), shade, np.uint8) for shade in range(5)]

  def shades(**options):
    network = _Scripted(model, [1, 1, 0, 0, 1])
    list(segment_frames(network, frames, [prompt], num_frames=2, **options))
    return [[int(image[0, 0, 0]) for image, _ in prompts[1:]] for prompts in network.seen]

  assert shades() == [[], [0], [0, 1], [0, 1], [0, 1]]
  assert shades(keep_empty=True) == [[], [0], [0, 1], [1, 2], [2, 3]]


def test_wrong_arguments_are_named(predictor, prompt):
  frame = np.zeros((8, 8, 3), np.uint8)
  with pytest.raises(InputError, match="num_frames: found -1"):
    list(segment_frames(predictor, [frame], [prompt], num_frames=-1))
  with pytest.raises(InputError, match="prompts: found none"):
    list(segment_frames(predictor, [frame], []))


def test_odd_sides_are_filled_up_by_repeating_the_last_row_and_column(tmp_path):
  frames = [np.full((31, 45, 3), 120, np.uint8) for _ in range(3)]
  for frame in frames:
    frame[:, -4:] = (250, 250, 250)
  assert write_video(tmp_path / "odd.mp4", iter(frames), 10) == 3
  shown = list(read_frames(tmp_path / "odd.mp4"))
  assert [frame.shape for frame in shown] == [(32, 46, 3)] * 3
  assert shown[0][:, -1].min() > 235 and probe(tmp_path / "odd.mp4").rate == 10


def test_colors_survive_writing_and_reading(tmp_path):
  """The file names its color standard, so that players decode the right colors."""
  colors = [(220, 30, 30), (20, 200, 40), (30, 40, 210), (255, 255, 255), (0, 0, 0)]
  write_video(tmp_path / "colors.mp4", (np.full((16, 16, 3), color, np.uint8) for color in colors), 25)
  for color, shown in zip(colors, read_frames(tmp_path / "colors.mp4"), strict=True):
    assert np.abs(shown.astype(int) - color).max() <= 8
  with av.open(tmp_path / "colors.mp4") as container:
    context = container.streams.video[0].codec_context
    assert (context.name, context.pix_fmt, int(context.colorspace)) == ("h264", "yuv420p", 1)


@pytest.mark.parametrize("angle", [0, 90, 180, 270])
def test_videos_with_a_rotation_are_read_upright(tmp_path, angle):
  path = tmp_path / "phone.mp4"
  frame = np.zeros((32, 48, 3), np.uint8)
  frame[:16, :24] = 255  # the upper left quarter
  write_video(path, [frame] * 3, 25)
  # Phones write this matrix to the track's header for a clockwise rotation.
  cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[angle]
  data = bytearray(path.read_bytes())
  start = data.index(b"tkhd") + 44
  for place, value in {0: cos, 1: sin, 3: -sin, 4: cos}.items():
    data[start + 4 * place : start + 4 * place + 4] = (value * 65536).to_bytes(4, "big", signed=True)
  path.write_bytes(data)
  expected = np.rot90(frame, -angle // 90)
  assert probe(path).size == expected.shape[:2]
  shown = next(read_frames(path))
  assert shown.shape == expected.shape and np.abs(shown.astype(int) - expected).mean() < 10


def test_files_that_are_not_videos_are_named(tmp_path):
  def said(name):
    with pytest.raises(InputError) as error:
      list(read_frames(tmp_path / name))
    assert str(error.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(error.value)
    return str(error.value)

  assert "not found, expected a video" in said("nowhere.mp4")
  (tmp_path / "text.mp4").write_text("no video")
  (tmp_path / "empty.mp4").write_bytes(b"")
  for name in ("text.mp4", "empty.mp4"):
    assert "cannot be read as a video" in said(name)
  assert "found no images (passed over: 2 .mp4)" in said(".")  # a folder may hold frames
  with av.open(tmp_path / "sound.wav", "w") as container:
    stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
    frame.sample_rate = 8000
    container.mux(stream.encode(frame))
  assert "found no video stream" in said("sound.wav")


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
def test_a_video_that_is_cut_off_is_reported_with_the_number_of_frames(tmp_path, ending):
  path, generator = tmp_path / f"whole.{ending}", np.random.default_rng(0)
  # An index at the start, as cameras write it; otherwise half a file cannot be opened.
  with av.open(path, "w", options={"movflags": "faststart"} if ending == "mp4" else {}) as container:
    stream = container.add_stream("mpeg4", rate=25)
    stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
    for _ in range(100):
      container.mux(stream.encode(av.VideoFrame.from_ndarray(generator.integers(0, 255, (32, 48, 3), np.uint8))))
    container.mux(stream.encode())
  assert len(list(read_frames(path))) == 100
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  frames = read_frames(path)
  count = 0
  with pytest.raises(InputError) as error:
    for _ in frames:
      count += 1
  assert 30 < count < 70
  assert f"{path}: ends early after {count} frames" in str(error.value)


def test_a_broken_run_leaves_no_half_video(tmp_path):
  def frames():
    yield from moving_square(20)
    raise RuntimeError("the network's own")

  with pytest.raises(RuntimeError, match="the network's own"):
    write_video(tmp_path / "out.mp4", frames(), 25)
  with pytest.raises(InputError, match=r"frame 1: found 20 x 10 pixels, expected 48 x 32"):
    write_video(tmp_path / "out.mp4", [*moving_square(1), *moving_square(1, (10, 20))], 25)
  with pytest.raises(InputError, match="found no frames"):
    write_video(tmp_path / "out.mp4", [], 25)
  assert list(tmp_path.iterdir()) == []


def test_prompts_of_a_video_have_to_match(predictor, clip, tmp_path):
  path, label = clip
  out = tmp_path / "out"
  Image.fromarray(np.zeros((7, 9), np.uint8)).save(tmp_path / "small.png")
  with pytest.raises(InputError, match=r"small\.png: found 9 x 7 pixels, expected 48 x 32"):
    run_video(predictor, path, out, prompt_labels=[tmp_path / "small.png"])
  with pytest.raises(InputError, match="found 2 label files without images"):
    run_video(predictor, path, out, prompt_labels=[label, label])
  with pytest.raises(InputError, match="found 1 images and 2 label files"):
    run_video(predictor, path, out, prompt_images=[label], prompt_labels=[label, label])
  with pytest.raises(InputError, match="is a file that this command reads"):
    run_video(predictor, path, path.parent, prompt_labels=[label])
  assert not out.exists() and len(list(read_frames(path))) == 10


def test_without_pyav_the_message_says_what_to_install(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "av", None)
  with pytest.raises(InputError, match=r"pip install 'seggpt-jax\[video\]'"):
    probe(tmp_path / "any.mp4")


def test_images_need_no_pyav():
  code = "import sys, seggpt_jax.inference.video, seggpt_jax.inference.batch; sys.exit('av' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code], env=_environment(), check=False).returncode == 0


def _environment():
  return {**os.environ, "PYTHONPATH": str(ROOT)}


def command(weights_directory, *options):
  return seggpt("infer", "--model-path", weights_directory, *options)


def test_the_command_takes_a_separate_prompt_and_recent_frames(clip, weights_directory, model, tmp_path):
  path, _ = clip
  generator = np.random.default_rng(0)
  image, label = generator.integers(0, 256, (20, 30, 3), np.uint8), generator.integers(0, 2, (20, 30), np.uint8)
  image_path, label_path = tmp_path / "a.png", tmp_path / "a_label.png"
  Image.fromarray(image).save(image_path)
  Image.fromarray(label * 255).save(label_path)
  options = ["--video", path, "--outdir", tmp_path / "out", "--num_frames", "1", "--labels", "binary"]
  done = command(weights_directory, *options, "--prompt-image", image_path, "--prompt-label", label_path)
  assert done.returncode == 0, done.stderr
  assert f"written: {tmp_path / 'out' / 'clip.mp4'}" in done.stdout
  found = list(segment_frames(Predictor(model), read_frames(path), [(image, label)], num_frames=1))
  for index, prediction in enumerate(found):
    labels = np.asarray(Image.open(tmp_path / "out" / "label" / "clip" / f"{index:06}.png"))
    assert np.mean(labels != prediction.labels) < 0.01


def test_flags_of_folders_and_of_videos_are_not_mixed(clip, weights_directory, tmp_path):
  path, label = clip
  for options, words in (
    (
      ["--video", path, "--prompt-label", label, "--dataset_dir", tmp_path],
      "found --dataset-dir and --video, expected one",
    ),
    (["--video", path], "--prompt-label: missing"),
    (["--video", path, "--prompt-label", label, "--save=label"], "--save: found label, expected overlay or label,"),
    (["--dataset-dir", tmp_path, "--num-frames", "2"], "--num-frames cannot be combined with images; give --video"),
  ):
    done = command(weights_directory, "--outdir", tmp_path / "out", *options)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert words in done.stderr


def test_label_maps_can_be_left_out(predictor, clip, tmp_path):
  path, label = clip
  run_video(predictor, path, tmp_path / "out", prompt_labels=[label], save_frames=False)
  assert [item.name for item in (tmp_path / "out").glob("[!.]*")] == ["clip.mp4"]


def test_drawn_labels_and_other_videos_are_not_replaced(predictor, clip, tmp_path):
  path, label = clip
  drawn = tmp_path / "out/label/clip/00000.png"
  drawn.parent.mkdir(parents=True)
  drawn.write_bytes(label.read_bytes())
  with pytest.raises(InputError, match=r"00000\.png: already exists and is not a result"):
    run_video(predictor, path, tmp_path / "out", prompt_labels=[label])
  drawn.rename(tmp_path / "out/clip.mp4")
  with pytest.raises(InputError, match=r"clip\.mp4: already exists and is not a result"):
    run_video(predictor, path, tmp_path / "out", prompt_labels=[label])
  assert (tmp_path / "out/clip.mp4").read_bytes() == label.read_bytes()


def test_a_folder_of_frames_is_a_video_in_the_order_of_its_numbers(tmp_path):
  for number in range(11):
    write_whole(
      tmp_path / f"frames/{number}.png", lambda file, n=number: Image.new("RGB", (8, 6), (n, 0, 0)).save(file, "png")
    )
  assert [int(frame[0, 0, 0]) for frame in read_frames(tmp_path / "frames")] == list(range(11))
  assert (probe(tmp_path / "frames").num_frames, probe(tmp_path / "frames").size) == (11, (6, 8))
