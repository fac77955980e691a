"""Predictions as annotation files: labeling tools load them, and get back the masks that were predicted."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO

from seggpt_jax.data.bad_files import BadFiles
from seggpt_jax.data.datasets import Dataset, open_dataset
from seggpt_jax.errors import InputError
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.inference import annotation_files, batch
from seggpt_jax.inference.annotation_files import AnnotationOptions
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.queries import Query
from seggpt_jax.inference.run_ledger import Shard
from tests.inference.image_folders import SIZES, command, find, write
from tests.inference.test_instances import fill_as_labelme, fill_as_ultralytics, noise, predicted

KINDS = ("coco", "labelme", "yolo")


@pytest.fixture
def predictor(model):
  return Predictor(model)


@pytest.fixture
def written(tmp_path):
  """Writes annotations of two images, the second without objects, and returns the folder and the label maps."""
  labels = {"a": np.where(noise(0, 2.0), 1 + 2 * noise(1, 9.0), 0), "cam1/b": np.zeros((20, 30), int)}
  queries, entries = [], {}
  options = AnnotationOptions(("crack", "hole: deep", "Staub größer"), 0, tmp_path / "data")
  for name, label in labels.items():
    image = tmp_path / "data" / "images" / f"{name}.png"
    write(image, np.zeros((*label.shape, 3), np.uint8))
    queries.append(Query(name, image, None, ()))
    entries[name] = annotation_files.write(tmp_path / "out", queries[-1], predicted(label), KINDS, options)
  annotation_files.finish(tmp_path / "out", queries, entries, KINDS, options)
  return tmp_path / "out", labels


def coco_labels(path, file_name):
  """Reads the label map of an image as pycocotools does."""
  coco = COCO(path)
  image = next(image for image in coco.dataset["images"] if image["file_name"] == file_name)
  labels = np.zeros((image["height"], image["width"]), np.uint8)
  for entry in coco.loadAnns(coco.getAnnIds(image["id"])):
    labels[coco.annToMask(entry) > 0] = entry["category_id"]
  return labels


def test_coco_has_one_file_that_gives_the_masks_back(written):
  out, labels = written
  content = json.loads((out / "annotations.json").read_text())
  assert [image["file_name"] for image in content["images"]] == ["images/a.png", "images/cam1/b.png"]
  assert [(each["id"], each["name"]) for each in content["categories"]] == [
    (1, "crack"),
    (2, "hole: deep"),
    (3, "Staub größer"),
  ]
  assert [each["id"] for each in content["annotations"]] == list(range(1, 1 + len(content["annotations"])))
  for each in content["annotations"]:
    assert (each["iscrowd"], each["score"], each["image_id"]) == (0, 1.0, 1)
    corners = np.reshape(each["segmentation"][0], (-1, 2))
    left, top, width, height = each["bbox"]
    np.testing.assert_allclose(corners.min(axis=0), [left, top], atol=0.06)
    np.testing.assert_allclose(corners.max(axis=0), [left + width, top + height], atol=0.06)
  for name, label in labels.items():
    np.testing.assert_array_equal(coco_labels(out / "annotations.json", f"images/{name}.png"), label)
  assert sum(each["area"] for each in content["annotations"]) == (labels["a"] > 0).sum()


def test_a_coco_file_of_predictions_is_a_dataset_to_train_on(written, tmp_path):
  out, labels = written
  (tmp_path / "set" / "annotations").mkdir(parents=True)
  shutil.copy(out / "annotations.json", tmp_path / "set" / "annotations" / "instances_val.json")
  shutil.copytree(tmp_path / "data", tmp_path / "set" / "val")
  source = open_dataset(Dataset("coco", str(tmp_path / "set"), 4), "val")
  np.testing.assert_array_equal(source.label(0), labels["a"])


def test_corrected_predictions_are_datasets_to_train_on(written, tmp_path):
  """Predictions in labelme's and YOLO's form, read by the readers that training uses."""
  out, labels = written
  for image in (tmp_path / "data/images").rglob("*.png"):
    copy = out / "yolo" / "images" / image.relative_to(tmp_path / "data/images")
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(image, copy)
  for kind, split in (("labelme", "."), ("yolo", "train")):
    source = open_dataset(Dataset(kind, str(out / kind), 4), split)
    named = {"crack": 1, "hole: deep": 2, "Staub größer": 3}
    read = {source.name(i): source[i]["label"] for i in range(len(source))}
    assert list(read) == list(labels)
    for name, label in labels.items():
      found = np.zeros_like(label)
      for place, category in enumerate(source.categories, 1):
        found[read[name] == place] = named[category]
      np.testing.assert_array_equal(found, label)


def test_labelme_files_give_the_masks_back_and_name_their_images(written):
  out, labels = written
  for name, label in labels.items():
    path = out / "labelme" / f"{name}.json"
    content = json.loads(path.read_text())
    assert (content["version"][:2], content["imageData"], content["flags"]) == ("5.", None, {})
    assert (content["imageHeight"], content["imageWidth"]) == label.shape
    assert Image.open(path.parent / content["imagePath"]).size == label.shape[::-1]
    drawn = np.zeros(label.shape, int)
    for shape in content["shapes"]:
      assert (shape["shape_type"], shape["description"]) == ("polygon", "confidence 1.00")
      drawn[fill_as_labelme(np.array(shape["points"]), label.shape)] = {"crack": 1, "Staub größer": 3}[shape["label"]]
    np.testing.assert_array_equal(drawn, label)


def test_labelme_itself_gives_the_masks_back(written):
  label_file = pytest.importorskip("labelme._label_file")
  shape_module = pytest.importorskip("labelme.utils.shape")
  out, labels = written
  for name, label in labels.items():
    shapes = label_file.LabelFile(str(out / "labelme" / f"{name}.json")).shapes
    drawn, _ = shape_module.shapes_to_label(label.shape, shapes, {"crack": 1, "Staub größer": 3})
    np.testing.assert_array_equal(drawn, label)


def test_yolo_files_give_the_masks_back(written):
  out, labels = written
  description = yaml.safe_load((out / "yolo" / "data.yaml").read_text(encoding="utf-8"))
  assert description["names"] == {0: "crack", 1: "hole: deep", 2: "Staub größer"}
  assert (description["train"], description["val"]) == ("images", "images")
  for name, label in labels.items():
    drawn = np.zeros(label.shape, int)
    for line in (out / "yolo" / "labels" / f"{name}.txt").read_text().splitlines():
      class_index, *numbers = line.split()
      shares = np.array(numbers, float).reshape(-1, 2)
      assert len(shares) >= 3 and shares.min() >= 0 and shares.max() <= 1
      drawn[fill_as_ultralytics(shares * label.shape[::-1], label.shape)] = 1 + int(class_index)
    np.testing.assert_array_equal(drawn, label)
  assert (out / "yolo" / "labels" / "cam1" / "b.txt").read_text() == ""


def test_the_command_writes_annotations_of_its_label_maps(folders, weights_directory):
  flags = ["--save", "label,coco,labelme,yolo", "--class-names", "crack, hole", "--polygon-tolerance", "0"]
  done = command(folders, weights_directory, *flags)
  assert done.returncode == 0, done.stderr
  out = folders / "out"
  for name in SIZES:
    labels = np.asarray(Image.open(out / "label" / f"{name}.png"))
    np.testing.assert_array_equal(coco_labels(out / "annotations.json", f"images/{name}.png"), labels)
    assert (out / "labelme" / f"{name}.json").exists() and (out / "yolo" / "labels" / f"{name}.txt").exists()
  assert yaml.safe_load((out / "yolo" / "data.yaml").read_text())["names"] == {0: "crack", 1: "hole"}
  for wrong, words in (
    (
      ["--save=coco", "--class-names=crack"],
      "--class-names: found crack, 1 name, expected 2, one for each of classes 1",
    ),
    (["--save=coco", "--class-names=a,b,c"], "--class-names: found a,b,c, 3 names, expected 2"),
    (["--save=yolo", "--class-names=a,a"], "--class-names: found 'a' twice, expected a different name"),
    (["--save=label", "--class-names=a,b"], "--class-names cannot be combined with --save=label; add coco"),
    (["--polygon-tolerance=2"], "--polygon-tolerance cannot be combined with --save="),
    (["--save=coco", "--polygon-tolerance=-1"], "--polygon-tolerance: found -1.0, expected a number of pixels, or 0"),
  ):
    done = command(folders, weights_directory, *wrong)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert words in done.stderr
  assert (out / "annotations.json").exists()  # wrong flags leave earlier results alone


def test_a_resumed_or_shared_run_writes_the_coco_file_of_a_single_run(folders, predictor):
  """A file without the images of the first half of a night would look complete."""
  batch.run(predictor, find(folders), folders / "whole", kinds=KINDS)
  whole = (folders / "whole" / "annotations.json").read_bytes()
  assert len(json.loads(whole)["images"]) == 3
  batch.run(predictor, find(folders), folders / "out", kinds=KINDS, shard=Shard(2, 2))
  assert not (folders / "out" / "annotations.json").exists() and not (folders / "out" / "yolo" / "data.yaml").exists()
  batch.run(predictor, find(folders), folders / "out", kinds=KINDS, shard=Shard(1, 2))
  assert (folders / "out" / "annotations.json").read_bytes() == whole
  path = folders / "whole" / "progress" / "1-of-1.jsonl"
  path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
  (folders / "whole" / "annotations.json").unlink()
  assert batch.run(predictor, find(folders), folders / "whole", kinds=KINDS, resume=True).before == 1
  assert (folders / "whole" / "annotations.json").read_bytes() == whole
  (folders / "whole" / "coco" / "a.json").unlink()
  with pytest.raises(InputError, match=r"coco/a\.json: missing or damaged, expected .* start over without --resume"):
    batch.run(predictor, find(folders), folders / "whole", kinds=KINDS, resume=True)
  assert not (folders / "whole" / "annotations.json").exists()
  batch.run(predictor, find(folders), folders / "plain")
  with pytest.raises(InputError, match="a was finished without annotations"):
    batch.run(predictor, find(folders), folders / "plain", kinds=("coco",), resume=True)


def test_bad_images_are_left_out_of_the_coco_file(folders, predictor):
  (folders / "data" / "images" / "a.png").write_bytes(b"no picture")
  batch.run(predictor, find(folders), folders / "out", kinds=("coco",), bad=BadFiles())
  content = json.loads((folders / "out" / "annotations.json").read_text())
  assert [(each["id"], each["file_name"]) for each in content["images"]] == [(1, "b.png"), (2, "c.png")]
  assert {each["image_id"] for each in content["annotations"]} <= {1, 2}


def test_the_least_area_holds_for_each_instance(folders, predictor):
  batch.run(predictor, find(folders), folders / "out", kinds=("coco",), options=InferenceOptions(least_area=5))
  entries = json.loads((folders / "out" / "annotations.json").read_text())["annotations"]
  assert entries and min(entry["area"] for entry in entries) >= 5


def test_stitched_predictions_have_annotations_of_their_own(folders, predictor):
  options = InferenceOptions(split=2, stitch_width=1)
  exact = AnnotationOptions(tolerance=0)
  batch.run(
    predictor, find(folders), folders / "out", kinds=("label", *KINDS), options=options, annotation_options=exact
  )
  for out in (folders / "out", folders / "out" / "stitch"):
    labels = np.asarray(Image.open(out / "label" / "a.png"))
    np.testing.assert_array_equal(coco_labels(out / "annotations.json", "a.png"), labels)
    assert (out / "yolo" / "data.yaml").exists() and (out / "labelme" / "a.json").exists()


def test_names_of_classes_come_from_the_training_run(tmp_path, weights_directory):
  run = tmp_path / "run"
  shutil.copytree(weights_directory, run / "best")
  model, labels = run / "best", LabelFormat()
  assert annotation_files.class_names((), model, (), labels) == ()
  assert [AnnotationOptions().name(index) for index in (1, 2)] == ["class_1", "class_2"]
  (run / "config.json").write_text(json.dumps({"data": {"num_classes": 4, "class_names": ["crack,hole", "dust"]}}))
  assert annotation_files.class_names((), model, (), labels) == ("crack", "hole", "dust")
  assert annotation_files.class_names(("a", "b", "c"), model, (), labels) == ("a", "b", "c")
  with pytest.raises(
    InputError, match="found a,b, 2 names, expected 3, one for each of classes 1 to 3 of the training"
  ):
    annotation_files.class_names(("a", "b"), model, (), labels)
  (run / "config.json").write_text(json.dumps({"data": {"class_names": [3]}}))
  with pytest.raises(InputError, match=r"config\.json: data\.class_names: found \[3\], expected a list of names"):
    annotation_files.class_names((), model, (), labels)


@pytest.mark.parametrize("name", ["", "_background_", "__ignore__"])
def test_names_that_tools_take_for_no_class_are_refused(name):
  with pytest.raises(InputError, match=f"class_names: found '{name}', expected a different name"):
    AnnotationOptions(("crack", name))
