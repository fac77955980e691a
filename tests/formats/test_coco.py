"""COCO annotations: labels are the outlines as pycocotools reads them, and errors name the damaged file."""

import json
import pickle
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask

from seggpt_jax.data.datasets import Dataset, check_categories, open_dataset
from seggpt_jax.errors import InputError
from tests.formats.annotation_folders import coco_source

SQUARE = [[2, 2, 12, 2, 12, 12, 2, 12]]
SMALL = [[4, 4, 8, 4, 8, 8, 4, 8]]


def annotation(image_id, category_id, segmentation, iscrowd=0, **more):
  return {
    "id": 1, "image_id": image_id, "category_id": category_id, "segmentation": segmentation, "iscrowd": iscrowd, **more,
  }  # fmt: skip


def write(path, annotations, images=None, layout="coco", categories=None):
  """Writes a split `val` with images 20 pixels wide and 16 high."""
  images = images or [{"id": i, "file_name": f"{name}.png", "height": 16, "width": 20} for i, name in enumerate("ab")]
  categories = categories or [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
  place = path / "annotations/instances_val.json" if layout == "coco" else path / "val/_annotations.coco.json"
  place.parent.mkdir(parents=True, exist_ok=True)
  place.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
  for image in images:
    file = path / "val" / image["file_name"]
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 20, 3), 9, np.uint8)).save(file)
  return place


def drawn(segmentation):
  if isinstance(segmentation, dict):
    return mask.decode(segmentation)
  return mask.decode(mask.merge(mask.frPyObjects(segmentation, 16, 20))).astype(bool)


@pytest.mark.parametrize("layout", ["coco", "roboflow"])
def test_polygons_become_classes_in_the_order_of_their_ids(tmp_path, layout):
  write(tmp_path, [annotation(0, 7, SMALL), annotation(0, 3, SQUARE)], layout=layout)
  source = open_dataset(Dataset("coco", str(tmp_path), 3), "val")
  sample = source[0]
  # The small dog is on top of the large cat although it comes first in the file.
  expected = np.where(drawn(SMALL), 2, np.where(drawn(SQUARE), 1, 0))
  np.testing.assert_array_equal(sample["label"], expected)
  assert sample["image"].shape == (16, 20, 3) and sample["name"] == source.name(0) == "a"
  assert source.classes(0) == (1, 2)


def test_images_without_annotations_are_background(tmp_path):
  write(tmp_path, [annotation(0, 7, SMALL)])
  source = coco_source(tmp_path, "val", 3)
  assert not source[1]["label"].any() and source.classes(1) == ()


def test_run_lengths_of_both_kinds_are_the_polygon_they_were_made_of(tmp_path):
  square = drawn(SQUARE)
  compressed = mask.encode(np.asfortranarray(square.astype(np.uint8)))
  flat = square.T.ravel().astype(np.int8)
  runs = np.diff(np.flatnonzero(np.concatenate([[True], np.diff(flat) != 0, [True]]))).tolist()
  write(
    tmp_path,
    [
      annotation(0, 3, {"counts": compressed["counts"].decode(), "size": [16, 20]}),
      annotation(1, 3, {"counts": runs if not flat[0] else [0, *runs], "size": [16, 20]}),
    ],
  )
  source = coco_source(tmp_path, "val", 3)
  for i in range(2):
    np.testing.assert_array_equal(source.label(i), square)


def test_crowds_are_ignored_where_no_object_lies(tmp_path):
  write(tmp_path, [annotation(0, 3, SMALL), annotation(0, 3, SQUARE, iscrowd=1)])
  source = coco_source(tmp_path, "val", 3)
  np.testing.assert_array_equal(source.label(0), np.where(drawn(SMALL), 1, np.where(drawn(SQUARE), 255, 0)))
  assert source.classes(0) == (1,)


def test_only_named_categories_become_classes(tmp_path):
  write(tmp_path, [annotation(0, 7, SMALL), annotation(0, 3, SQUARE)])
  source = coco_source(tmp_path, "val", 2, ("dog",))
  np.testing.assert_array_equal(source.label(0), drawn(SMALL))
  assert source.classes(0) == (1,)


def test_gray_and_cmyk_images_are_read(tmp_path):
  """COCO contains both kinds of image."""
  write(tmp_path, [], [{"id": i, "file_name": f"{i}.jpg", "height": 16, "width": 20} for i in range(2)])
  Image.fromarray(np.full((16, 20), 9, np.uint8)).save(tmp_path / "val/0.jpg")
  Image.fromarray(np.full((16, 20, 3), 9, np.uint8)).convert("CMYK").save(tmp_path / "val/1.jpg")
  source = coco_source(tmp_path, "val", 3)
  for i in range(2):
    np.testing.assert_allclose(source[i]["image"], 9, atol=3)


def test_folders_are_part_of_the_name_and_other_keys_are_fields(tmp_path):
  write(tmp_path, [], [{"id": 4, "file_name": "x/y.v1.png", "height": 16, "width": 20, "license": 5, "more": []}])
  source = pickle.loads(pickle.dumps(coco_source(tmp_path, "val", 3)))
  assert source.name(0) == "x/y.v1" and source[0]["image"].shape == (16, 20, 3)
  assert source.field(0, "license") == "5"
  refused(
    "found no 'patient', expected one of id, file_name, height, width, license", lambda: source.field(0, "patient")
  )


def refused(match, make):
  with pytest.raises(InputError, match=match) as caught:
    make()
  assert "\n" not in str(caught.value)


def test_missing_annotations_name_the_usual_places_and_the_files_that_are_there(tmp_path):
  write(tmp_path, []).rename(tmp_path / "annotations/instances_other.json")
  refused(
    r"no annotations of the split 'val' \(COCO files: annotations/instances_other.json\), expected "
    r"annotations/instances_val.json, val/_annotations.coco.json or val.json",
    lambda: coco_source(tmp_path, "val", 2),
  )


@pytest.mark.parametrize("place", ["annotations.json", "val.json", "labels/val_coco.json", "val/annotations.json"])
@pytest.mark.parametrize("folder", ["val", "images", "images/val", ""])
def test_annotations_are_found_anywhere_and_images_by_their_names(tmp_path, place, folder):
  found = write(tmp_path / "x", [annotation(0, 3, SQUARE)]).read_text()
  (tmp_path / place).parent.mkdir(exist_ok=True)
  (tmp_path / place).write_text("\ufeff" + found)  # with a byte order mark
  for name in "ab":
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / "x/val" / f"{name}.png").rename(tmp_path / folder / f"{name}.png")
  shutil.rmtree(tmp_path / "x")
  source = coco_source(tmp_path, "." if place == "annotations.json" else "val", 3)
  assert len(source) == 2 and source[0]["label"].any() and not source[1]["label"].any()


@pytest.mark.parametrize("stated", ["images/val/{}.png", "val\\\\{}.png", "C:\\\\data\\\\{}.png", "../{}.png"])
def test_folders_in_file_names_need_not_exist(tmp_path, stated):
  place = write(tmp_path, [])
  text = place.read_text()
  for name in "ab":
    text = text.replace(f'"{name}.png"', f'"{stated.format(name)}"')
  place.write_text(text)
  source = coco_source(tmp_path, "val", 3)
  assert all(source[i]["image"].shape == (16, 20, 3) for i in range(2))


def test_names_match_in_any_unicode_form(tmp_path):
  write(tmp_path, [], [{"id": 0, "file_name": "ru\u0308ckseite.png", "height": 16, "width": 20}])
  (tmp_path / "val/ru\u0308ckseite.png").rename(tmp_path / "val/r\u00fcckseite.png")
  assert coco_source(tmp_path, "val", 3)[0]["image"].shape == (16, 20, 3)


def test_of_two_images_of_one_name_that_of_the_split_is_taken(tmp_path):
  write(tmp_path, [])
  for split in ("train", "one", "two"):
    (tmp_path / split).mkdir()
    Image.new("RGB", (3, 3)).save(tmp_path / split / "a.png")
  assert coco_source(tmp_path, "val", 3)[0]["image"].shape == (16, 20, 3)
  (tmp_path / "val/a.png").unlink()
  refused("'a.png': found one/a.png and two/a.png", lambda: coco_source(tmp_path, "val", 3))
  (tmp_path / "one/a.png").unlink()
  assert "a.png is two/a.png" in coco_source(tmp_path, "val", 3).notes[0]
  (tmp_path / "two/a.png").unlink()
  # The image of another split is not taken for the missing one.
  refused("val/a.png: not found", lambda: coco_source(tmp_path, "val", 3)[0])


@pytest.mark.parametrize(
  "images, categories, match",
  [
    (["a", "b"], None, "image id 0 twice, for a.png and b.png"),
    (None, [("dog", 3), ("cat", 3)], "category id 3 twice, for dog and cat"),
    (None, [("dog", 3), ("dog", 4)], "category 'dog' under two ids"),
  ],
)
def test_ids_and_names_that_are_there_twice_are_refused(tmp_path, images, categories, match):
  images = images and [{"id": 0, "file_name": f"{name}.png", "height": 16, "width": 20} for name in images]
  categories = categories and [{"id": id_, "name": name} for name, id_ in categories]
  write(tmp_path, [], images, categories=categories)
  refused(match, lambda: coco_source(tmp_path, "val", 3))


def test_the_category_that_only_groups_the_others_is_no_class(tmp_path):
  """Roboflow writes it with id 0."""
  categories = [{"id": 0, "name": "parts", "supercategory": "none"}]
  categories += [{"id": i, "name": name, "supercategory": "parts"} for i, name in enumerate(("nut", "bolt"), 1)]
  write(tmp_path, [annotation(0, 2, SQUARE)], layout="roboflow", categories=categories)
  source = coco_source(tmp_path, "val", 3)
  assert source.categories == ("nut", "bolt") and source.classes(0) == (2,)
  write(tmp_path, [annotation(0, 0, SQUARE)], layout="roboflow", categories=categories)
  refused("found objects of 'parts', which is also the supercategory", lambda: coco_source(tmp_path, "val", 3))


def test_splits_with_other_categories_are_refused(tmp_path):
  write(tmp_path, [])
  one = coco_source(tmp_path, "val", 3)
  write(tmp_path, [], categories=[{"id": 3, "name": "cat"}])
  two = coco_source(tmp_path, "val", 3)
  check_categories([one, one])
  refused("found categories cat, dog in one split and cat in another", lambda: check_categories([one, two]))


@pytest.mark.parametrize(
  "text, match",
  [
    ("{", "instances_val.json: cannot be read as JSON"),
    ("[]", "found a list, expected an object"),
    ("{}", "found no images"),
    ('{"images": [{"id": 1}]}', "found no categories"),
    ('{"images": [{"id": 1}], "categories": [{"id": 1, "name": "a"}]}', "found no valid COCO .*file_name"),
    ('{"images": [3], "categories": [{"id": 1, "name": "a"}]}', "found no valid COCO"),
    ('{"images": [{"id": 1}], "categories": [{"id": 1}]}', "found no valid COCO .*name"),
  ],
)
def test_damaged_annotations(tmp_path, text, match):
  write(tmp_path, []).write_text(text)
  refused(match, lambda: coco_source(tmp_path, "val", 2))


@pytest.mark.parametrize(
  "entry, match",
  [
    (annotation(0, 3, []), "annotation 1: found segmentation none"),
    (annotation(0, 3, [[1, 2, 3]]), "coordinates do not come in pairs"),
    (annotation(0, 3, [["a", "b"]]), "annotation 1: found segmentation could not convert"),
    (annotation(0, 3, {"counts": [1]}), "annotation 1: found segmentation 'size'"),
    (annotation(0, 3, None, bbox=[1, 1, 5, 5]), "annotation 1: found segmentation none, only a box"),
    (annotation(0, 9, SMALL), "found category 9"),
    (annotation(0, 3, {"counts": [320], "size": [20, 16]}), "a.png: found run lengths for 16 x 20 pixels"),
  ],
)
def test_a_wrong_annotation_is_an_error_of_its_image_alone(tmp_path, entry, match):
  write(tmp_path, [entry, annotation(1, 3, SQUARE)])
  source = coco_source(tmp_path, "val", 3)
  refused(f"instances_val.json: a.png: .*{match}" if "a.png" not in match else match, lambda: source.label(0))
  assert source.label(1).any()


@pytest.mark.parametrize(
  "entry, match",
  [
    (annotation(9, 3, SMALL), "found an annotation of image 9"),
    ({"id": 1}, "found an annotation without image_id"),
  ],
)
def test_an_annotation_of_no_image_is_left_out_on_request(tmp_path, entry, match):
  write(tmp_path, [entry, annotation(1, 3, SQUARE)])
  refused(match, lambda: coco_source(tmp_path, "val", 3))
  problems = []
  assert coco_source(tmp_path, "val", 3, problems=problems).label(1).any()
  assert len(problems) == 1 and match in problems[0]


@pytest.mark.parametrize("counts", [[3], [400], [-1, 321], "]]]]]]"])
def test_damaged_run_lengths_are_refused_when_read(tmp_path, counts):
  write(tmp_path, [annotation(0, 3, {"counts": counts, "size": [16, 20]})])
  source = coco_source(tmp_path, "val", 3)
  refused("a.png: found an outline that cannot be read", lambda: source.label(0))


def test_too_many_categories(tmp_path):
  write(tmp_path, [])
  refused(
    r"found category 'dog' as class 2, expected 0..1 \(data.num_classes=2\)", lambda: coco_source(tmp_path, "val", 2)
  )
  refused("found no category 'cow', expected one of cat, dog", lambda: coco_source(tmp_path, "val", 2, ("cow",)))


def test_size_that_the_file_does_not_have(tmp_path):
  write(tmp_path, [annotation(0, 3, SMALL)], [{"id": 0, "file_name": "a.png", "height": 20, "width": 16}])
  refused("val.json: a.png: found 16 x 20 pixels, expected 20 x 16", lambda: coco_source(tmp_path, "val", 3)[0])


def test_missing_image_and_two_of_one_name(tmp_path):
  write(tmp_path, [])
  (tmp_path / "val/a.png").unlink()
  refused("val/a.png: not found", lambda: coco_source(tmp_path, "val", 3)[0])
  write(tmp_path, [], [{"id": i, "file_name": f"a.{e}", "height": 9, "width": 9} for i, e in enumerate(["png", "jpg"])])
  refused("found a.jpg and a.png", lambda: coco_source(tmp_path, "val", 3))


def test_twenty_thousand_annotations_open_quickly(tmp_path):
  images = [{"id": i, "file_name": f"{i:05d}.png", "height": 16, "width": 20} for i in range(5000)]
  place = write(tmp_path, [annotation(i % 5000, 3, SQUARE) for i in range(20000)], images[:1])
  content = json.loads(place.read_text())
  place.write_text(json.dumps({**content, "images": images}))
  start = time.perf_counter()
  assert len(coco_source(tmp_path, "val", 3)) == 5000
  assert time.perf_counter() - start < 5


def test_a_split_may_lack_a_category_that_another_has(tmp_path):
  write(tmp_path, [annotation(0, 3, SQUARE)])
  source = coco_source(tmp_path, "val", 3, ("cow", "cat"))
  assert set(np.unique(source.label(0))) == {0, 2}
  other = SimpleNamespace(categories=("cow", "cat"), stated=("cow",))
  check_categories([source, other])
  refused("class_names: found no category 'cow', expected one of cat, dog", lambda: check_categories([source]))
