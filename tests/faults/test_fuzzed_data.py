"""Datasets, lists and videos with anything in them are read or refused in one line. `benchmarks/fuzz.py` tries more."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from benchmarks.fuzz_targets import annotation_files, attempt, labels, media, mutation, run_files
from seggpt_jax.data.datasets import Dataset, open_dataset
from seggpt_jax.data.groups import scan_classes
from seggpt_jax.data.sources import FileSource
from seggpt_jax.errors import InputError
from seggpt_jax.evaluation.few_shot_data import read_benchmark
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.formats.layouts import folder_layout
from seggpt_jax.formats.recognize import recognize
from seggpt_jax.inference.trained import FILE, read_operating_point
from tests.formats import annotation_folders as folders
from tests.formats.annotation_folders import coco_source

_TRIES = 15
TARGETS = {**annotation_files.TARGETS, **labels.TARGETS, **media.TARGETS, **run_files.TARGETS}


def refused(match, make):
  with pytest.raises(InputError, match=match) as caught:
    make()
  assert "\n" not in str(caught.value) and len(str(caught.value)) < 2000


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_files_are_read_or_refused_in_one_line(name, tmp_path):
  target = TARGETS[name](tmp_path)
  target.read()
  for number in range(_TRIES):
    outcome = attempt(tmp_path, target, *mutation(target, name, 7, number))
    assert outcome.what in ("read", "refused"), f"try {number}: {outcome.error}"


def test_the_time_limit_of_a_target_holds_for_one_reading(tmp_path):
  """A label of 42 megapixels is read a dozen times in one try."""
  ended = []
  target = TARGETS["label_png_index"](tmp_path)
  target.laps.report = lambda: ended.append(target.laps.longest)
  assert attempt(tmp_path, target, *next(iter(target.seeds.items()))).what == "read"
  assert len(ended) > 12 and 0 < target.laps.longest == max(ended)


def coco(folder, segmentation, **image):
  Image.new("RGB", (20, 16)).save(folder / "a.png")
  content = {
    "images": [{"id": 0, "file_name": "a.png", "height": 16, "width": 20} | image],
    "annotations": [{"id": 1, "image_id": 0, "category_id": 1, "segmentation": segmentation}],
    "categories": [{"id": 1, "name": "thing"}],
  }
  (folder / "val.json").write_text(json.dumps(content))
  return coco_source(folder, "val", 2)


@pytest.mark.parametrize("number", [1e308, -1e308, 2.0**70, float("nan"), float("inf"), None])
def test_points_far_outside_of_the_image_do_not_end_the_process(number, tmp_path):
  """pycocotools ended with a segmentation fault."""
  source = coco(tmp_path, [[2, 2, 12, 2, 12, number]])
  refused("a.png: found an outline that cannot be read: coordinates of a polygon", lambda: source.label(0))


def test_points_somewhat_outside_of_the_image_are_drawn(tmp_path):
  assert coco(tmp_path, [[-30, -30, 60, -30, 60, 60, -30, 60]]).label(0).all()


def test_run_lengths_and_sizes_of_other_types_name_the_file(tmp_path):
  refused("annotation 1: found segmentation", lambda: coco(tmp_path, {"counts": [2**70], "size": [16, 20]}).label(0))
  refused("a.png: found size", lambda: coco(tmp_path, [[2, 2, 9, 2, 9, 9]], width=True))


@pytest.mark.parametrize(
  "text",
  ["names: [&a [*a]]", "names: {0: 9" + "9" * 5000 + "}", "names: [a]\ntrain: true", "x: !!timestamp x\nnames: [a]"],
)
def test_descriptions_in_yaml_with_anything_in_them_are_refused(text, tmp_path):
  folders.yolo(tmp_path)
  (tmp_path / "data.yaml").write_text(text)
  refused("data.yaml: ", lambda: recognize(str(tmp_path)))
  refused("data.yaml: ", lambda: open_dataset(Dataset("yolo", str(tmp_path), 3), "train"))


def test_the_middle_of_a_long_message_is_left_out():
  message = str(InputError("a.json: found " + "x" * 100_000 + ", expected less"))
  assert message.startswith("a.json: found xx") and message.endswith(", expected less") and len(message) < 2000


def test_a_damaged_table_of_classes_is_made_again(tmp_path):
  for folder, pixels in (("images", np.zeros((4, 4, 3), np.uint8)), ("labels", np.ones((4, 4), np.uint8))):
    (tmp_path / folder).mkdir()
    Image.fromarray(pixels).save(tmp_path / folder / "a.png")
  source, cache = FileSource(folder_layout(tmp_path), 2, LabelFormat()), tmp_path / "classes.npz"
  table = scan_classes(source, cache)
  os.truncate(cache, cache.stat().st_size // 2)
  np.testing.assert_array_equal(scan_classes(source, cache), table)
  np.testing.assert_array_equal(np.load(cache)["table"], table)


@pytest.mark.parametrize("values", [{"sensitivity": [1e400]}, {"sensitivity": [-1.0]}, {"sensitivity": 3}, []])
def test_an_operating_point_out_of_range_is_refused(values, tmp_path):
  content = {"sensitivity": [1.0], "least_area": 0} | values if isinstance(values, dict) else values
  (tmp_path / FILE).write_text(json.dumps(content))
  refused("found no operating point in it", lambda: read_operating_point(tmp_path))


@pytest.mark.parametrize("counts", ["", "0", "PPYo0", "1"])
def test_compressed_run_lengths_that_do_not_cover_the_image_are_refused(counts, tmp_path):
  """pycocotools returns what was in memory for the pixels that they leave out."""
  source = coco(tmp_path, {"counts": counts, "size": [16, 20]})
  refused("a.png: found an outline that cannot be read: run lengths of", lambda: source.label(0))


def test_compressed_run_lengths_of_any_mask_are_read(tmp_path):
  for seed in range(20):
    mask = np.random.default_rng(seed).random((16, 20)) < seed / 19
    counts = folders.mask_module.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    np.testing.assert_array_equal(coco(tmp_path, {"counts": counts, "size": [16, 20]}).label(0), mask)


def test_a_class_list_names_folders_of_the_dataset_only(tmp_path):
  (tmp_path / "classes.txt").write_text("/etc\n")
  refused(
    "classes.txt: found '/etc', expected the names of folders",
    lambda: read_benchmark("fss1000", tmp_path, tmp_path / "classes.txt"),
  )
