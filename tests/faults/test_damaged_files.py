"""Files that are damaged, or made to do harm, end in one line: never in other weights, a program, or no end."""

import io
import json
import os
import random
import shutil

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from benchmarks.nano import NANO
from seggpt_jax.errors import InputError
from seggpt_jax.formats.images import FORMATS, read_bytes, read_image
from seggpt_jax.inference import video
from seggpt_jax.inference.queries import read_mapping
from seggpt_jax.model import digests, parameters, torch_files, weights
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.training.checkpoints import WRITTEN_LAST, Checkpoints
from tests.formats.annotation_folders import coco_source
from tests.training.test_checkpoints import abstract, state_at


def refused(match, make):
  with pytest.raises(InputError, match=match) as caught:
    make()
  assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------- flipped bits


def nano_params():
  generator = np.random.default_rng(0)
  shapes = {name: leaf.shape for name, leaf in parameters.abstract(NANO)[1].items()}
  return {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A weights directory."""
  folder = tmp_path_factory.mktemp("weights") / "nano"
  weights.save_weights(folder, nano_params(), NANO)
  return folder


def flip(path, seed):
  """Flips one bit of a file."""
  content = bytearray(path.read_bytes())
  place = random.Random(seed).randrange(8 * len(content))
  content[place // 8] ^= 1 << place % 8
  path.write_bytes(content)


def files_of(folder):
  return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


@pytest.mark.parametrize("beside, tries", [(False, 40), pytest.param(True, 15, marks=pytest.mark.slow)])
def test_no_flipped_bit_is_read_as_other_weights(saved, tmp_path, monkeypatch, beside, tries):
  """Orbax alone reads 11 of 40 of them without an error. Large files are compared in addition, here also small ones."""
  monkeypatch.setattr(digests, "SMALL", -1 if beside else digests.SMALL)
  whole = weights.load_params(saved)
  paths = files_of(saved)
  folder = tmp_path / "copy"
  shutil.copytree(saved, folder)
  for seed in range(tries):
    path = folder / random.Random(seed).choice(paths).relative_to(saved)
    content = path.read_bytes()
    flip(path, seed)
    with pytest.raises(InputError):
      weights.load_params(folder)
    path.write_bytes(content)
  assert all((weights.load_params(saved)[name] == array).all() for name, array in whole.items())


def test_no_flipped_bit_of_a_checkpoint_is_resumed_from(tmp_path, monkeypatch):
  monkeypatch.setattr(digests, "SMALL", -1)
  run = tmp_path / "run"
  checkpoints = Checkpoints(run, NANO, keep=10)
  for step in (2, 4):
    checkpoints.save(state_at(step), {"epoch": step, "best_miou": 0.5})
  checkpoints.close()
  assert all((run / f"checkpoints/{step}/{digests.FILE}").is_file() for step in (2, 4))
  paths = [path for path in files_of(run / "checkpoints/4") if path.name not in WRITTEN_LAST]
  for seed in range(6):
    shutil.copytree(run, tmp_path / f"copy{seed}")
    flip(tmp_path / f"copy{seed}" / random.Random(seed).choice(paths).relative_to(run), seed)
    checkpoints = Checkpoints(tmp_path / f"copy{seed}", NANO, keep=10)
    state, progress = checkpoints.restore(abstract(state_at(0)))
    assert (int(state.step), progress["epoch"]) == (2, 2) and "checkpoint" in checkpoints.warnings[0]
    checkpoints.close()


def test_what_orbax_writes_last_may_be_damaged_as_nothing_is_read_from_it(tmp_path):
  checkpoints = Checkpoints(tmp_path, NANO, keep=10)
  checkpoints.save(state_at(4), {"epoch": 4, "best_miou": 0.5})
  checkpoints.close()
  for seed in range(5):
    flip(tmp_path / "checkpoints/4/_CHECKPOINT_METADATA", seed)
    checkpoints = Checkpoints(tmp_path, NANO, keep=10)
    state, progress = checkpoints.restore(abstract(state_at(0)))
    checkpoints.close()
    assert progress["epoch"] == 4 and not checkpoints.warnings
    assert all((state.params[name] == value).all() for name, value in state_at(4).params.items())
    if not (tmp_path / "checkpoints/4/_CHECKPOINT_METADATA").exists():
      break  # garbled, so that it was dropped


def test_missing_and_cut_files_are_named(saved, tmp_path):
  for number, spoil in enumerate((os.unlink, lambda path: os.truncate(path, 1))):
    folder = tmp_path / str(number)
    shutil.copytree(saved, folder)
    spoil(max(files_of(folder / "params"), key=lambda path: path.stat().st_size))
    refused(
      "cannot be read as weights, damaged: params/.*(cannot be read|is not what was written)",
      lambda: weights.load_params(folder),  # noqa: B023 - called at once
    )


def test_weights_of_before_have_no_digests_and_are_read(saved, tmp_path):
  shutil.copytree(saved, tmp_path / "old")
  (tmp_path / "old" / digests.FILE).unlink()
  assert weights.load_params(tmp_path / "old").keys() == weights.load_params(saved).keys()


# ------------------------------------------------------------------------------------------------------------- images


def test_a_file_that_would_start_a_program_is_no_image(tmp_path):
  """Pillow gives EPS files of any name to Ghostscript, which would never end with this one."""
  (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n%%EOF\n")
  refused("a.png: cannot be read as an image: found none of AVIF, BMP", lambda: read_image(tmp_path / "a.png"))
  assert not {"EPS", "WMF", "PSD", "DDS", "FITS", "SPIDER"} & set(FORMATS)


def test_devices_and_pipes_have_no_end_and_are_no_files(tmp_path):
  os.mkfifo(tmp_path / "pipe.png")
  (tmp_path / "zero.png").symlink_to("/dev/zero")
  (tmp_path / "folder.png").mkdir()
  for name, what in (("pipe", "device or pipe"), ("zero", "device or pipe"), ("folder", "folder")):
    refused(f"{name}.png: found a {what}, expected a file", lambda: read_image(tmp_path / f"{name}.png"))  # noqa: B023
  refused("cannot be a file", lambda: read_bytes("a\0b.png"))
  refused("folder, device or pipe", lambda: list(video.read_frames(tmp_path / "pipe.png")))


@pytest.mark.parametrize("error", [KeyError(3), IndexError(), OverflowError("big"), ZeroDivisionError(), MemoryError()])
def test_any_error_of_a_decoder_names_the_file(tmp_path, monkeypatch, error):
  Image.new("RGB", (4, 4)).save(tmp_path / "a.png")

  def fail(*_):
    raise error

  monkeypatch.setattr(PngImagePlugin.PngImageFile, "_open", fail)
  refused("a.png: cannot be read as an image", lambda: read_image(tmp_path / "a.png"))
  monkeypatch.undo()
  monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
  refused("a.png: cannot be read as an image", lambda: read_image(tmp_path / "a.png"))


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "JPEG2000", "PPM", "TGA"])
def test_mutated_images_are_read_or_refused(file_format):
  """Bytes of a real file are replaced, cut out and repeated."""
  generator = np.random.default_rng(0)
  buffer = io.BytesIO()
  Image.fromarray(generator.integers(0, 256, (24, 24, 3), np.uint8)).save(buffer, file_format)
  from seggpt_jax.formats.images import decode_image

  for seed in range(150):
    draw = random.Random(seed)
    data = bytearray(buffer.getvalue())
    for _ in range(draw.randint(1, 4)):
      place = draw.randrange(min(len(data), 200 if draw.random() < 0.7 else len(data)))
      kind = draw.randrange(3)
      if kind == 0:
        data[place] = draw.randrange(256)
      elif kind == 1:
        del data[place : place + draw.randint(1, 30)]
      else:
        data[place:place] = data[place : place + draw.randint(1, 30)]
      if not data:
        break
    try:
      pixels = decode_image(bytes(data), "a")
    except InputError as error:
      assert str(error).startswith("a: ") and "\n" not in str(error)
    else:
      assert pixels.dtype == np.uint8 and pixels.ndim == 3


def test_playlists_open_no_other_files(tmp_path):
  av = pytest.importorskip("av")
  with av.open(tmp_path / "secret.ts", "w", format="mpegts") as container:
    stream = container.add_stream("mpeg2video", rate=25)
    stream.width = stream.height = 64
    for packet in stream.encode(av.VideoFrame(64, 64, "yuv420p")):
      container.mux(packet)
    for packet in stream.encode():
      container.mux(packet)
  assert len(list(video.read_frames(tmp_path / "secret.ts"))) == 1
  playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n"
  (tmp_path / "a.mp4").write_text(playlist)
  (tmp_path / "b.mp4").write_text("ffconcat version 1.0\nfile secret.ts\n")
  for name in ("a.mp4", "b.mp4"):
    refused(f"{name}: cannot be read as a video", lambda: list(video.read_frames(tmp_path / name)))  # noqa: B023


# ---------------------------------------------------------------------------------------- JSON, weights and annotations


def test_deeply_nested_json_is_no_crash(tmp_path):
  (tmp_path / "map.json").write_text('{"a.png": ' + "[" * 200_000 + "]" * 200_000 + "}")
  refused("map.json: cannot be read as JSON: nested too deeply", lambda: read_mapping(tmp_path / "map.json"))


@pytest.mark.parametrize(
  "values, match",
  [
    ({"depth": 10**9}, "depth: found 1000000000, expected 1..1000"),
    ({"width": 0}, "width: found 0, expected 1..65536"),
    ({"image_std": [0.0, 0.2, 0.2]}, "image_std: found .*, expected numbers above 0"),
    ({"mlp_dim": True}, "mlp_dim: found 'True', expected an integer"),
    ({"patch_size": 10**6}, "patch_size: found 1000000"),
  ],
)
def test_an_architecture_out_of_bounds_is_refused_before_anything_is_allocated(saved, tmp_path, values, match):
  shutil.copytree(saved, tmp_path / "w")
  (tmp_path / "w" / digests.FILE).unlink()
  (tmp_path / "w/config/metadata").write_text(json.dumps({**NANO.to_dict(), **values}))
  refused(f"cannot be read as a SegGPT configuration: {match}", lambda: weights.load_model(tmp_path / "w"))
  with pytest.raises(ValueError, match=match):
    SegGPTConfig.from_dict({**NANO.to_dict(), **values})


def test_tensors_that_are_not_stored_as_they_are_claimed(tmp_path):
  torch = pytest.importorskip("torch")
  huge = torch.zeros(1).expand(10**6, 10**6)
  quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
  for name, tensor, match in (
    ("huge", huge, r"huge.pth: a: found \[1000000, 1000000\] in 4 bytes"),
    ("quantized", quantized, "a: found a tensor of torch.qint8"),
    ("sparse", torch.eye(3).to_sparse(), "a: found a tensor of torch.float32 and torch.sparse_coo"),
  ):
    torch.save({"model": {"a": tensor}}, tmp_path / f"{name}.pth")
    refused(match, lambda: torch_files.read(tmp_path / f"{name}.pth"))  # noqa: B023 - called at once


def test_an_index_of_shards_names_files_of_its_folder_only(tmp_path):
  (tmp_path / "hf").mkdir()
  (tmp_path / "hf/config.json").write_text("{}")
  for shard in ("../secret.safetensors", "/etc/passwd", 3):
    index = {"weight_map": {"a": shard}}
    (tmp_path / "hf/model.safetensors.index.json").write_text(json.dumps(index))
    refused("expected the name of a file in the same folder", lambda: torch_files.read(tmp_path / "hf"))


def test_annotations_for_a_picture_of_another_size_allocate_nothing(tmp_path):
  Image.new("RGB", (20, 16)).save(tmp_path / "a.png")
  outline = [[2, 2, 12, 2, 12, 12]]
  content = {
    "images": [{"id": 0, "file_name": "a.png", "height": 100_000, "width": 100_000}],
    "annotations": [{"id": 1, "image_id": 0, "category_id": 1, "segmentation": outline}],
    "categories": [{"id": 1, "name": "thing"}],
  }
  (tmp_path / "val.json").write_text(json.dumps(content))
  source = coco_source(tmp_path, "val", 2)
  for read in (source.label, source.__getitem__):
    refused("a.png: found 100000 x 100000 pixels, expected 20 x 16", lambda: read(0))  # noqa: B023 - called at once
