"""Segments videos: frames and a few prompts in, the label map of every frame out.

In: frames, or a video file, and prompts that serve all frames. Out: one prediction after another; as files, a video of
overlays and a label map of each frame. Frames are streamed, so memory does not grow with the length of the video. PyAV
is loaded on first use: `pip install 'seggpt-jax[video]'`.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from seggpt_jax.compilation import compile_notice
from seggpt_jax.errors import InputError
from seggpt_jax.files import MOMENT, expand, remove_leftovers, write_whole, writing
from seggpt_jax.formats.folders import list_images
from seggpt_jax.formats.images import is_image, read_image
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.inference import outputs
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.pictures import write_png
from seggpt_jax.inference.prediction import Prediction
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.prompts import (
  PreparedPrompt,
  Prompt,
  load_prompt,
  load_prompts,
  read_label_map,
  without_ignored,
)
from seggpt_jax.written import check_outputs, open_record

_Frame = UInt8[np.ndarray, "h w 3"]

# Containers of videos. Playlists and concatenations are left out: they would open other files and addresses.
_CONTAINERS = "3g2,3gp,asf,avi,flv,gif,h264,hevc,m4a,matroska,mj2,mov,mp4,mpeg,mpegts,mpegvideo,mxf,ogg,wav,webm"
_DEFAULT_RATE = Fraction(25)  # frames per second, for the few containers without a rate
_SLACK = 1.0, 0.05  # error of the length in containers: seconds, and share of the length
_BT709 = 1  # the same number for primaries, transfer and matrix


@dataclasses.dataclass(frozen=True)
class VideoInfo:
  """Properties of a video that are known before it is decoded."""

  rate: Fraction  # frames per second; the mean if the rate varies
  size: tuple[int, int]  # height and width of the first frame, upright
  num_frames: int | None  # number of frames, from the container or from the length; None if both are unknown


def probe(path: str | os.PathLike) -> VideoInfo:
  """Reads the header and the first frame of a video.

  Raises:
    InputError: the file is missing, is not a video, or has no video stream or no frames; PyAV is not installed.
  """
  if os.path.isdir(path):
    files = _frame_files(path)
    return VideoInfo(_DEFAULT_RATE, read_image(files[0]).shape[:2], len(files))
  with _opened(path) as (container, stream):
    first = next(_decoded(path, container, stream), None)
    if first is None:
      raise InputError(f"{path}: found a video stream without frames, expected at least one")
    rate = stream.average_rate or stream.guessed_rate or _DEFAULT_RATE
    end = _promised_end(stream)
    return VideoInfo(Fraction(rate), first.shape[:2], stream.frames or (None if end is None else round(end * rate)))


def read_frames(path: str | os.PathLike) -> Iterator[_Frame]:
  """Decodes the first video stream of a file, one frame at a time, and applies its rotation.

  A folder of images is a video of 25 frames a second.

  Raises:
    InputError: the file is missing, is not a video, has no video stream, or is cut off; PyAV is not installed.
  """
  if os.path.isdir(path):
    yield from map(read_image, _frame_files(path))
    return
  with _opened(path) as (container, stream):
    yield from _decoded(path, container, stream)


def _frame_files(folder: str | os.PathLike) -> list[str]:
  """Returns the images of a folder in the order of the numbers in their names: 2.jpg comes before 10.jpg."""
  files = list_images(folder)

  def place(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]

  return [files[name] for name in sorted(files, key=place)]


def write_video(path: str | os.PathLike, frames: Iterable[_Frame], rate: Fraction | float | int) -> int:
  """Writes H.264 video of constant rate to an MP4 file.

  Such video must have even sides, so a frame of odd height or width repeats its last row or column.

  Args:
    path: path of the file; its folder is created if missing.
    frames: at least one frame; all frames have the same size.
    rate: frames per second.

  Returns:
    The number of frames.

  Raises:
    InputError: there are no frames, they differ in size, or the file cannot be written; PyAV is not installed.
  """
  av, frames = _pyav(), iter(frames)
  first = next(frames, None)
  if first is None:
    raise InputError(f"{path}: found no frames to write, expected at least one")
  count = 0

  def write(file: BinaryIO) -> None:
    nonlocal count
    with av.open(file, "w", format="mp4") as container:
      stream = _add_stream(container, first.shape[:2], Fraction(rate).limit_denominator(100_000))
      for count, pixels in enumerate(itertools.chain([first], frames), 1):
        if pixels.shape != first.shape:
          found = f"{pixels.shape[1]} x {pixels.shape[0]} pixels"
          raise InputError(f"{path}: frame {count - 1}: found {found}, expected {first.shape[1]} x {first.shape[0]}")
        frame = av.VideoFrame.from_ndarray(_even(pixels), format="rgb24")
        container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace="ITU709")))
      container.mux(stream.encode())

  write_whole(Path(path), write)
  return count


def _pyav() -> ModuleType:
  try:
    import av
  except ImportError as error:
    raise InputError("PyAV is not installed; pip install 'seggpt-jax[video]'") from error
  return av


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[tuple[Any, Any]]:
  """Opens a file; gives its container and its first video stream."""
  av = _pyav()
  if os.path.exists(path) and not os.path.isfile(path):
    raise InputError(f"{path}: cannot be read as a video: found a folder, device or pipe, expected a file")
  try:
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
    container = av.open(os.fspath(path), options=options, metadata_errors="replace")
  except FileNotFoundError as error:
    raise InputError(f"{path}: not found, expected a video") from error
  except (av.FFmpegError, OSError) as error:
    raise InputError(f"{path}: cannot be read as a video: {error.strerror or error}") from error
  with container:
    if not container.streams.video:
      raise InputError(f"{path}: found no video stream, expected one")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    yield container, stream


def _decoded(path: str | os.PathLike, container: Any, stream: Any) -> Iterator[_Frame]:
  av, count, end = _pyav(), 0, None
  frames = container.decode(stream)
  while True:
    # Only decoding is guarded, because an error of the caller who takes the frames is not the file's.
    try:
      frame = next(frames, None)
    except (av.FFmpegError, OSError) as error:
      reason = error.strerror or error
      raise InputError(f"{path}: ends early after {count} frames, expected a whole video: {reason}") from error
    if frame is None:
      break
    count, end = count + 1, frame.time
    # Phones store a rotation, counter-clockwise, as rot90 turns.
    yield np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4))
  # FFmpeg decodes a Matroska or AVI file that was cut off without an error.
  promised = _promised_end(stream)
  if end is not None and promised is not None and end < promised - max(_SLACK[0], _SLACK[1] * promised):
    raise InputError(f"{path}: ends early after {count} frames, at {end:.1f} s, expected {promised:.1f} s as it says")


def _promised_end(stream: Any) -> float | None:
  """Returns the time in seconds at which the last frame ends; None if the container does not say."""
  if stream.container.format.name == "avi" and stream.frames and stream.average_rate:
    return float(stream.frames / stream.average_rate)  # FFmpeg guesses an AVI's duration from the size of the file
  if stream.duration is not None:
    return float((stream.duration + (stream.start_time or 0)) * stream.time_base)
  # Matroska has no field for the duration of a stream; most programs write a tag.
  note = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
  return None if note is None else 3600 * int(note[1]) + 60 * int(note[2]) + float(note[3])


def _add_stream(container: Any, size: tuple[int, int], rate: Fraction) -> Any:
  height, width = (side + side % 2 for side in size)
  stream = container.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "veryfast"})
  stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
  # Otherwise players take small frames for BT.601 and large ones for BT.709.
  context = stream.codec_context
  context.color_primaries = context.color_trc = context.colorspace = _BT709
  context.color_range = 1  # limited
  return stream


def _even(pixels: _Frame) -> UInt8[np.ndarray, "h2 w2 3"]:
  height, width, _ = pixels.shape
  return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def segment_frames(
  predictor: Predictor,
  frames: Iterable[UInt8[np.ndarray, "h w 3"]],
  prompts: Sequence[Prompt],
  options: InferenceOptions | None = None,
  *,
  num_frames: int = 0,
  keep_empty: bool = False,
  palette: np.ndarray | None = None,
) -> Iterator[Prediction]:
  """Segments frames in order, with recent frames and their predictions as further prompts.

  The given prompts serve all frames, so that their classes can always be found and drift can be undone. Up to
  `num_frames` recent frames join them, each with its own prediction. Frames in which nothing was found are skipped, and
  the frames before them stay: an object that is hidden for a while is still shown by the frames before it vanished.

  Without recent frames, no frame depends on another, and frames share batches. With recent frames, one frame is
  predicted at a time, and the network is compiled for each number of prompts as they accumulate.

  Args:
    predictor: the network. With a learned prompt, `prompts` may be empty if `num_frames` is 0.
    frames: frames of a video, or images that change little. A generator is read only a few batches ahead.
    prompts: pairs of image and label map; see `Predictor.predict`.
    options: tiles, overlap and mirrored copies; one tile for the whole frame by default.
    num_frames: largest number of recent frames that serve as prompts.
    keep_empty: also uses frames in which nothing was found as prompts, as the original tool does.
    palette: the color of each class; see `Predictor.predict`.

  Yields:
    The prediction for each frame.

  Raises:
    InputError: an argument is not as described above.
  """
  if num_frames < 0:
    raise InputError(f"num_frames: found {num_frames}, expected 0 or more")
  options = options or InferenceOptions()
  if prompts or predictor.learned is None:
    named = load_prompts(prompts)
    prompts = [_prepared(prompt, predictor, options, name) for name, prompt in named]
  elif num_frames:
    raise InputError("num_frames cannot be combined with a learned prompt, which recent frames would replace")
  if not num_frames:
    yield from predictor.predict_many(((frame, prompts) for frame in frames), options, palette=palette)
    return
  recent: collections.deque[Prompt] = collections.deque(maxlen=num_frames)
  for frame in frames:
    (prediction,) = predictor.predict_many([(frame, [*prompts, *recent])], options, palette=palette)
    yield prediction
    if keep_empty or prediction.labels.any():
      recent.append(_prepared(PreparedPrompt(frame, prediction.labels), predictor, options))


def _prepared(
  prompt: PreparedPrompt, predictor: Predictor, options: InferenceOptions, name: str | None = None
) -> PreparedPrompt:
  """Resizes a prompt once, not for every frame, unless several splits need several sizes; a named one can warn."""
  if len(options.scales) > 1:
    return prompt
  if name is not None:
    predictor.warn_of_small(prompt, options.scale, name)
  return prompt.at(options.scale, predictor.tile_size)


def run_video(
  predictor: Predictor,
  path: str | os.PathLike,
  outdir: str | os.PathLike,
  *,
  prompt_images: Sequence[str | os.PathLike] = (),
  prompt_labels: Sequence[str | os.PathLike] = (),
  num_frames: int = 0,
  options: InferenceOptions | None = None,
  labels: LabelFormat | None = None,
  save_frames: bool = True,
) -> Path:
  """Segments a video file; writes OUT/NAME.mp4 and the class indices of each frame, OUT/label/NAME/000000.png and on.

  Label maps have the size of the source. The written video shows the classes in display colors over the frames; it has
  even sides (see `write_video`), and the mean rate of a source with a variable frame rate. Files that an earlier run
  left under these names are removed first, after a line that says so; anything else there is refused. A run that fails
  leaves the label maps so far and no video.

  Args:
    predictor: the network.
    path: the video file, or a folder of its frames.
    outdir: folder of the results, created if missing.
    prompt_images: image files of the prompts; empty if the video's first frame is the prompt.
    prompt_labels: a label file for each prompt image, or one for the first frame; empty for a learned prompt.
    num_frames: largest number of recent frames that serve as prompts; see `segment_frames`.
    options: tiles, overlap and mirrored copies; one tile for the whole frame by default.
    labels: format of the label files; class indices by default. Ignored pixels are background.
    save_frames: also writes the label maps.

  Raises:
    InputError: a file cannot be read or written, prompts do not match, or the video would be overwritten.
  """
  source, outdir = Path(expand(path)), Path(expand(outdir))
  info = probe(source)
  target, folder = outdir / f"{source.stem}.mp4", outdir / "label" / source.stem
  frames = sorted(folder.glob("*.png"))
  shown = sorted(source.iterdir()) if source.is_dir() else [source]
  check_outputs([target, *frames], [*shown, *prompt_images, *prompt_labels], is_image=is_image)
  named = _read_prompts(source, prompt_images, prompt_labels, labels or LabelFormat())
  prompts = [_prepared(prompt, predictor, options or InferenceOptions(), name) for name, prompt in named]
  if target.exists():
    print(
      f"{target}: overwriting the video of an earlier run and its label maps; to keep them, choose another --outdir"
    )
  with writing(outdir):
    outdir.mkdir(parents=True, exist_ok=True)
    open_record(outdir)
  remove_leftovers(outdir, "label", least_age=MOMENT)
  for stale in (target, *frames):
    outputs.remove(stale)
  print(compile_notice("the network", predictor.config.depth, training=False))

  def overlays() -> Iterator[np.ndarray]:
    predictions = segment_frames(predictor, read_frames(source), prompts, options, num_frames=num_frames)
    for index, prediction in enumerate(tqdm(predictions, desc="video", unit="frame", total=info.num_frames)):
      if save_frames:
        write_png(folder / f"{index:06}.png", prediction.labels)
      yield prediction.overlay()

  write_video(target, overlays(), info.rate)
  return target


def _read_prompts(
  video: Path, images: Sequence[str | os.PathLike], labels: Sequence[str | os.PathLike], label_format: LabelFormat
) -> list[tuple[str, PreparedPrompt]]:
  """Reads pairs of images and label maps, by label file; without images, the video's first frame is the image."""
  if images and len(images) != len(labels):
    found = f"{len(images)} images and {len(labels)} label files"
    raise InputError(f"--prompt-image, --prompt-label: found {found}, expected as many of both")
  if not images and len(labels) > 1:
    raise InputError(
      f"--prompt-label: found {len(labels)} label files without images, expected one, of the first frame"
    )
  pixels = (read_image(path) for path in images) if images else read_frames(video)
  pairs = zip(map(str, labels), pixels, strict=False)
  return [
    (path, load_prompt((image, without_ignored(read_label_map(path, image, label_format))), path))
    for path, image in pairs
  ]
