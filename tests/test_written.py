"""Nothing of the user's is replaced or deleted: the record of written files, and random trees for every command."""

from __future__ import annotations

import contextlib
import os
import random
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from seggpt_jax.cli import inspect as cli_inspect
from seggpt_jax.data.datasets import Dataset
from seggpt_jax.errors import InputError, MachineError
from seggpt_jax.evaluation import parts
from seggpt_jax.files import write_whole, written_whole
from seggpt_jax.formats.folders import list_images
from seggpt_jax.formats.images import is_image, read_image
from seggpt_jax.inference import batch, outputs, video
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.prediction import Prediction
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.queries import list_queries
from seggpt_jax.inference.trained import OperatingPoint, write_operating_point
from seggpt_jax.model import weights
from seggpt_jax.palette import fixed_palette
from seggpt_jax.prepare.conversion import Settings, prepare
from seggpt_jax.retrieval import mapping
from seggpt_jax.retrieval.labeled_images import read_facts
from seggpt_jax.retrieval.mapping import write_mappings
from seggpt_jax.training import resume
from seggpt_jax.training.config import default_config
from seggpt_jax.training.monitor import Monitor
from seggpt_jax.training.trackers import Tracker
from seggpt_jax.written import RECORD, check_outputs, is_own, open_record

# ----------------------------------------------------------------------------------------------------------- the record


def put(path, text="of the user"):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  return path


def write(path, text="a result"):
  write_whole(path, lambda file: file.write(text.encode()))
  return path


def refused(path):
  before = path.read_bytes()
  with pytest.raises(InputError, match=r"not a result|has changed since"):
    write(path, "another result")
  return path.read_bytes() == before


def test_results_are_replaced_and_files_of_the_user_are_not(tmp_path):
  result = write(tmp_path / "out/a.json")
  assert is_own(result)
  assert write(result, "a newer result").read_text() == "a newer result"
  assert refused(put(tmp_path / "out/b.json"))
  result.write_text("corrected by hand")
  assert refused(result)


def test_a_link_to_a_file_or_folder_of_the_user_is_not_followed(tmp_path):
  mine = put(tmp_path / "mine/a.json")
  (tmp_path / "out").mkdir()
  (tmp_path / "out/folder").symlink_to(tmp_path / "mine")
  (tmp_path / "out/b.json").symlink_to(mine)
  assert refused(tmp_path / "out/folder/a.json") and refused(tmp_path / "out/b.json")
  (tmp_path / "out" / RECORD).symlink_to(mine)
  with pytest.raises(InputError, match="cannot be written"):
    write(tmp_path / "out/c.json")
  assert mine.read_text() == "of the user"


def test_one_record_serves_a_folder_of_results(tmp_path):
  (tmp_path / "out").mkdir()
  open_record(tmp_path / "out")
  result = write(tmp_path / "out/label/deep/a.json")
  assert [path.parent for path in tmp_path.rglob(RECORD)] == [tmp_path / "out"]
  (tmp_path / "out").rename(tmp_path / "moved")
  assert is_own(tmp_path / "moved" / result.relative_to(tmp_path / "out"))


def test_a_kill_between_the_record_and_the_file_does_not_lock_the_folder(tmp_path, monkeypatch):
  result = write(tmp_path / "a.json")

  def killed(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr("seggpt_jax.files.os.replace", killed)
  with pytest.raises(KeyboardInterrupt):
    write(result, "the next one")
  monkeypatch.undo()
  with open(tmp_path / RECORD, "ab") as file:
    file.write(b'{"name": "a.js')  # a kill while a line was written
  assert result.read_text() == "a result" and is_own(result)
  assert write(result, "the last one").read_text() == "the last one" and is_own(result)


def test_a_name_of_254_bytes_can_be_written(tmp_path):
  for name in ("x" * 250 + ".png", "漢" * 83 + ".png"):
    assert write(tmp_path / name).read_text() == "a result"
  with pytest.raises(InputError, match="found a name of 259 bytes, expected at most 255"):
    check_outputs([tmp_path / ("x" * 255 + ".png")])


def test_a_new_path_that_exists_is_refused(tmp_path):
  with pytest.raises(InputError, match="already exists"), written_whole(put(tmp_path / "a")):
    pytest.fail("entered")


def test_outputs_are_compared_with_inputs_by_what_they_are(tmp_path):
  image = put(tmp_path / "photos/a.png")
  result = write(tmp_path / "out/label/a.png")
  os.link(image, tmp_path / "hard.png")
  (tmp_path / "link").symlink_to(tmp_path / "photos")
  for output in (image, tmp_path / "link/a.png", tmp_path / "hard.png", tmp_path / "photos/../photos/a.png"):
    with pytest.raises(InputError, match="is a file that this command reads; choose another --outdir"):
      check_outputs([output], [image])
  with pytest.raises(InputError, match="is a file that this command reads"):
    check_outputs([result], [result])  # a result that is now a prompt
  with pytest.raises(InputError, match="among the files that this command reads"):
    check_outputs([tmp_path / "link/new.png"], [image], is_image=is_image)
  check_outputs([result, tmp_path / "photos/metrics.json"], [image, "gs://bucket/a.png"], is_image=is_image)


def test_results_inside_a_folder_of_images_are_never_read_as_images(tmp_path):
  """Otherwise a second run would segment the pictures of the first."""
  for name in ("a.png", "color/b.png"):
    put(tmp_path / "photos" / name)
  out = tmp_path / "photos"
  for kind in outputs.KINDS:
    write(out / kind / "a.png")
  assert len(list_images(out, recursive=True)) > 2  # nothing says that this is a folder of results
  write(out / "run.json", "{}")
  (out / "progress").mkdir()
  assert sorted(list_images(out, recursive=True)) == ["a", "color/b"]
  assert list(list_images(out / "label")) == ["a"]  # one who names the folder wants it
  put(tmp_path / "all/c.png")
  out.rename(tmp_path / "all/results")
  assert list(list_images(tmp_path / "all", recursive=True)) == ["c"]


def test_links_in_a_circle_are_passed_over(tmp_path):
  put(tmp_path / "photos/cam1/a.png")
  (tmp_path / "photos/cam1/again").symlink_to(tmp_path / "photos")
  (tmp_path / "photos/other").symlink_to(tmp_path / "photos/cam1")
  assert sorted(list_images(tmp_path / "photos", recursive=True)) == ["cam1/a", "other/a"]


# --------------------------------------------------------------------------------------------------------- random trees

FOLDERS = (
  "label",
  "color",
  "concat",
  "images",
  "labels",
  "panels",
  "checkpoints",
  "progress",
  "parts",
  "train",
  "Label",
)
FILES = (
  *("run.json", "metrics.json", "summary.txt", "annotations.json", "bad_files.txt", "config.json", "metrics.jsonl"),
  *("inspect.json", "inspect.png", "results.md", "results.json", "examples.png", "map.json", "prepare.json"),
  *(
    "operating_point.json",
    "operating_point.png",
    "net.onnx",
    "clip.mp4",
    "curves.png",
    "1-of-1.jsonl",
    ".journal-train",
  ),
)
NAMES = ("a", "b", "000000", "classes")


STAND_IN = Predictor.__new__(Predictor)  # what it would do is replaced
STAND_IN.config, STAND_IN.learned = SimpleNamespace(depth=1, head_classes=0, backbone=""), None


def draw_picture(path: Path, rng: random.Random, label: bool = False) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  values = np.random.default_rng(rng.randrange(2**32))
  pixels = values.integers(0, 2, (8, 8), np.uint8) if label else values.integers(0, 255, (8, 8, 3), np.uint8)
  Image.fromarray(pixels).save(path)


def draw_tree(root: Path, rng: random.Random) -> list[Path]:
  """Draws files of a user, some under the names of results. Returns the folders that results may go to."""
  for split in ("train", "val"):
    for name in ("a", "b"):
      draw_picture(root / f"d/{split}/images/{name}{rng.choice(['.png', '.PNG', '.jpg', '.tif'])}", rng)
      draw_picture(root / f"d/{split}/labels/{name}.png", rng, label=True)
  targets = [root, root / "d", root / "d/train", root / "d/val", root / "d/val/images", root / "out", root / "new/er"]
  for _ in range(rng.randrange(12)):
    folder = rng.choice(targets)
    with contextlib.suppress(OSError):  # a file is where a folder would be
      if rng.random() < 0.4:
        put(folder / rng.choice(["", "progress", "parts"]) / rng.choice(FILES), str(rng.random()))
      else:
        draw_picture(folder / rng.choice(FOLDERS) / f"{rng.choice(NAMES)}.png", rng, rng.random() < 0.5)
  for _ in range(rng.randrange(4)):  # links of files and folders, and hard links
    link = rng.choice(targets) / rng.choice([*FOLDERS, *FILES, "label/a.png"])
    place = rng.choice([*root.rglob("*"), root])
    with contextlib.suppress(OSError):
      link.parent.mkdir(parents=True, exist_ok=True)
      os.link(place, link) if place.is_file() and rng.random() < 0.3 else link.symlink_to(place)
  return targets


def snapshot(root: Path) -> dict[str, tuple]:
  """Returns what is in a tree: content of files, targets of links."""
  found = {}
  for folder, folders, files in os.walk(root):
    for name in (*folders, *files):
      path = os.path.join(folder, name)
      if os.path.islink(path):
        found[path] = ("link", os.readlink(path))
      elif os.path.isfile(path):
        found[path] = ("file", Path(path).read_bytes())
  return found


def run_infer(root, out, rng):
  dataset = rng.choice([root / "d/val", root / "d/val/images", root / "d", root])
  prompts = root / "d/train"
  queries = list_queries(dataset, prompts / "images", prompts / "labels", apart=(out,))
  kinds = rng.sample(outputs.KINDS, 3)
  options = InferenceOptions(split=2, stitch_width=1) if rng.random() < 0.3 else InferenceOptions()
  batch.run(STAND_IN, queries, out, kinds=kinds, options=options, resume=rng.random() < 0.3)


def run_video(root, out, rng):
  video.run_video(STAND_IN, root / "clip.avi", out, prompt_labels=["first.png"])


def run_inspect(root, out, rng):
  cli_inspect.flags.FLAGS.outdir = str(out)
  cli_inspect.main("d")


def run_retrieve(root, out, rng):
  prompts, output = root / "d/train", out / rng.choice([*FILES, "a.png", "label/a.png"])
  write_mappings(
    *("small", root / "d/val", prompts / "images", prompts / "labels", output),
    labels=parts_labels(),
  )


class StandInIndex(mapping.PromptIndex):
  """Stands in for the index of the labeled images, which needs a network."""

  def __init__(self, prompts, labels):
    self.facts, self._count = read_facts(prompts, labels), len(prompts)
    self.encoder = types.SimpleNamespace(size=(16, 16))

  def score_many(self, images):
    yield from (np.zeros(self._count) for _ in images)


def parts_labels():
  return Dataset("folder", ".", 2).label_format


def run_evaluate(root, out, rng):
  class Benchmark:
    name, settings = "some", {"model": "small"}

    def parts(self, shard):
      return ["a", "b"]

    def run(self, predictor, part, outdir):
      return parts.Finished({"iou": 1.0}, np.zeros((4, 4, 3), np.uint8))

    def results(self, finished):
      return {"table": parts.Table("some", ["all"], {"IoU": [1.0]}, {})}

  parts.run(Benchmark(), lambda: STAND_IN, out)


def run_prepare(root, out, rng):
  out = out / rng.choice(["", "prepared", "train"])
  prepare(Settings(Dataset("folder", str(root / "d"), 2), ("train", "val"), "folder"), out, num_workers=1)


def run_train(root, out, rng):
  resume.check_workdir(out)
  for folder in ("checkpoints", "best", "panels"):
    (out / folder).mkdir(parents=True, exist_ok=True)
  resume.store_config(out, default_config())
  with contextlib.closing(Monitor(out, 2, 0, enabled=True, tracker=lambda: Tracker(out, 0, {}))) as monitor:
    monitor.log(1, "train", {"loss": 1.0, "miou": 0.5, "pairs_per_second": 1.0})


def run_calibrate(root, out, rng):
  write_operating_point(out, OperatingPoint((1.0,), 0), {})


def run_export(root, out, rng):
  weights.check_new(out / "net.onnx")
  write(out / "net.onnx")


COMMANDS = (
  *(run_infer, run_infer, run_video, run_inspect, run_retrieve),
  *(run_evaluate, run_prepare, run_train, run_calibrate, run_export),
)


@pytest.fixture
def stand_ins(monkeypatch, tmp_path):
  """Replaces everything that is slow: the network, and decoding and encoding of videos."""

  def predicted(image):
    labels = (image[..., 0] > 99).astype(np.uint8)
    return Prediction(labels, image, fixed_palette(2), (0, 1), image=image)

  def segment(predictor, queries, options, labels=None, skip=None):
    for query in queries:
      image = read_image(query.image)
      found = predicted(image)
      stitched = Prediction(found.labels, image, found.palette, (0, 1), unstitched=found)
      yield batch.Read(query, image, None, [], []), stitched if options.stitch_width else found

  frames = [np.full((8, 8, 3), 50 * number, np.uint8) for number in range(3)]
  monkeypatch.setattr(mapping.weights, "load_model", lambda *_, **__: None)
  monkeypatch.setattr(mapping.PromptIndex, "build", lambda _, prompts, labels, **__: StandInIndex(prompts, labels))
  monkeypatch.setattr(batch, "segment", segment)
  monkeypatch.setattr(batch, "_weights_of", lambda predictor: "weights")
  monkeypatch.setattr(batch, "compile_notice", lambda *_, **__: "")
  monkeypatch.setattr(video, "probe", lambda path: SimpleNamespace(num_frames=3, rate=25))
  monkeypatch.setattr(video, "_read_prompts", lambda *_: [])
  monkeypatch.setattr(video, "segment_frames", lambda *_, **__: map(predicted, frames))
  monkeypatch.setattr(video, "compile_notice", lambda *_, **__: "")
  monkeypatch.setattr(video, "write_video", lambda path, shown, rate: write(path, str(len(list(shown)))))
  values = SimpleNamespace(path=None, split=None, kind=None, groups="", max_images=0, outdir="")
  monkeypatch.setattr(cli_inspect, "flags", SimpleNamespace(FLAGS=values))
  monkeypatch.setattr(cli_inspect, "is_given", lambda name: False)
  monkeypatch.setattr(cli_inspect, "dataset_from_flags", lambda path: Dataset("folder", "d", 2))


def check_trees(tmp_path, monkeypatch, seeds):
  """Runs three commands on each random tree. Returns how many of them finished."""
  finished = dict.fromkeys(COMMANDS, 0)
  for seed in seeds:
    rng, root = random.Random(seed), tmp_path / str(seed)
    targets = draw_tree(root, rng)
    put(root / "clip.avi") if not os.path.lexists(root / "clip.avi") else None
    before = snapshot(root)
    monkeypatch.chdir(root)
    out = rng.choice(targets)
    for command in rng.choices(COMMANDS, k=3):
      out = out if rng.random() < 0.7 else rng.choice(targets)
      with contextlib.suppress(InputError, MachineError):
        command(root, out, rng)
        finished[command] += 1
      after = snapshot(root)
      gone = [path for path, content in before.items() if after.get(path) != content]
      assert not gone, f"tree {seed}: {command.__name__} to {out} has changed {gone}"
      halves = [path for path in after if ".seggpt-" in path]
      assert not halves, f"tree {seed}: {command.__name__} has left {halves}"
  return finished


def test_no_command_changes_a_file_of_the_user(tmp_path, monkeypatch, stand_ins):
  """In random trees, outputs meet inputs: the same folder, one above or below it, links, the same names."""
  finished = check_trees(tmp_path, monkeypatch, range(60))
  assert all(finished.values()), finished  # none is refused everywhere


@pytest.mark.slow
def test_no_command_changes_a_file_of_the_user_in_500_trees(tmp_path, monkeypatch, stand_ins):
  check_trees(tmp_path, monkeypatch, range(1000, 1500))
