"""Annotations, lists and mappings, as small files that commands read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.fuzz_targets import Target
from benchmarks.fuzz_targets.datasets import CLASSES, check_source, inspect_folder, make_dataset, make_target, palette
from seggpt_jax.data.datasets import Dataset, open_dataset
from seggpt_jax.data.groups import group_names
from seggpt_jax.data.sources import FileSource
from seggpt_jax.evaluation.few_shot_data import read_benchmark
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.formats.layouts import DatasetFiles, folder_layout, read_label_map
from seggpt_jax.inference.queries import list_queries
from tests.formats import annotation_folders as folders


def _coco_file(folder: Path, segmentations: Sequence, **more) -> Target:
  folders.save_image(folder / "images" / "a.png")
  folders.save_image(folder / "images" / "b.png", 1)
  image = {"height": folders.HEIGHT, "width": folders.WIDTH, "license": 1}
  content = {
    "info": {"year": 2024},
    "images": [{"id": 1, "file_name": "a.png", **image}, {"id": 2, "file_name": "images/b.png", **image}],
    "annotations": [
      {"id": place, "image_id": 1 + place % 2, "category_id": 1 + place % 2, "segmentation": each, "iscrowd": 0, **more}
      for place, each in enumerate(segmentations)
    ],
    "categories": [{"id": 1, "name": "crack", "supercategory": "x"}, {"id": 2, "name": "hole", "supercategory": "x"}],
  }
  (folder / "annotations.json").write_text(json.dumps(content))
  return make_dataset(folder, ["annotations.json"], "coco")


def _coco_polygons(folder: Path) -> Target:
  flat = [[value for point in polygon for value in point] for polygon in (folders.CRACK, folders.HOLE)]
  return _coco_file(folder, [[each] for each in flat], area=10.0, bbox=[1, 2, 3, 4])


def _run_lengths(mask: np.ndarray) -> list[int]:
  values = mask.ravel(order="F").astype(np.int8)
  ends = np.flatnonzero(np.diff(values)) + 1
  runs = np.diff([0, *ends.tolist(), values.size]).tolist()
  return [0, *runs] if values[0] else runs


def _coco_run_lengths(folder: Path) -> Target:
  masks = [folders.drawn(polygon) for polygon in (folders.CRACK, folders.HOLE)]
  return _coco_file(folder, [{"counts": _run_lengths(mask), "size": list(folders.SIZE)} for mask in masks])


def _coco_compressed(folder: Path) -> Target:
  masks = [folders.drawn(polygon) for polygon in (folders.CRACK, folders.HOLE)]
  encoded = [folders.mask_module.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
  return _coco_file(folder, [{"counts": each["counts"].decode(), "size": list(folders.SIZE)} for each in encoded])


def _labelme(folder: Path) -> Target:
  shapes = [
    {"label": "crack", "points": folders.CRACK, "shape_type": "polygon", "group_id": None, "flags": {}},
    {"label": "hole", "points": [[2, 3], [9, 8]], "shape_type": "rectangle"},
    {"label": "hole", "points": [[20, 15], [23, 15]], "shape_type": "circle"},
    {"label": "crack", "points": [[5, 5], [9, 8]], "shape_type": "mask", "mask": folders.labelme_mask(np.eye(4, 5))},
    {"label": "_background_", "points": folders.HOLE},
  ]
  folders.labelme(folder, "a", shapes)
  folders.labelme(folder, "b", seed=1)
  return make_dataset(folder, ["a.json", "b.json"], "labelme")


def _yolo(folder: Path) -> Target:
  folders.yolo(folder)
  folders.yolo(folder, "val", name="b", text="1 0.1 0.1 0.5 0.1 0.5 0.5\n0 0.2 0.2 0.9 0.2 0.9 0.9 0.2 0.9\n")
  return make_dataset(folder, ["data.yaml", "labels/train/a.txt"], "yolo", "train")


def _yolo_lists(folder: Path) -> Target:
  folders.yolo(folder)
  (folder / "data.yaml").write_text("names: {0: crack, 1: hole}\ntrain: lists/train.txt\nval: images/train\nnc: 2\n")
  (folder / "lists").mkdir()
  (folder / "lists/train.txt").write_text("./images/train/a.png\n")
  (folder / "classes.txt").write_text("crack\nhole\n")
  return make_dataset(folder, ["data.yaml", "lists/train.txt", "classes.txt", "labels/train/a.txt"], "yolo", "train")


def _cvat(folder: Path) -> Target:
  polygon = ";".join(f"{x},{y}" for x, y in folders.CRACK)
  shapes = (
    f'<polygon label="crack" points="{polygon}" z_order="1" occluded="0"><attribute name="x">1</attribute></polygon>'
  )
  shapes += '<box label="hole" xtl="2" ytl="3" xbr="9" ybr="8" rotation="30" z_order="0"/>'
  shapes += '<ellipse label="hole" cx="20" cy="15" rx="3" ry="5" rotation="10"/>'
  shapes += '<mask label="crack" rle="2,3,4,1" left="5" top="5" width="5" height="2"/>'
  folders.cvat(folder, shapes, 'name="a.png" subset="train"')
  return make_dataset(folder, ["annotations.xml"], "cvat", "train")


def _label_studio(folder: Path) -> Target:
  result = folders.label_studio_result
  results = [
    result("polygonlabels", "crack", points=[(100 * x / 40, 100 * y / 30) for x, y in folders.CRACK]),
    result("rectanglelabels", "hole", x=1.0, y=2.0, width=20.0, height=30.0, rotation=10),
    result("ellipselabels", "hole", x=50.0, y=50.0, radiusX=5.0, radiusY=8.0, rotation=0),
    result("brushlabels", "crack", format="rle", rle=folders.encode_brush(folders.drawn(folders.HOLE))),
  ]
  folders.label_studio(folder, results)
  return make_dataset(folder, ["export.json"], "label_studio")


def _label_studio_short(folder: Path) -> Target:
  folders.label_studio(folder)
  size = {"original_width": folders.WIDTH, "original_height": folders.HEIGHT}
  label = [{"points": [[1, 2], [50, 2], [50, 60]], "polygonlabels": ["crack"], **size}]
  content = [
    {"id": 7, "image": "/data/local-files/?d=images/a.png", "annotator": 1, "annotation_id": 3, "label": label}
  ]
  (folder / "export.json").write_text(json.dumps(content))
  return make_dataset(folder, ["export.json"], "label_studio")


def _masks(folder: Path) -> Target:
  folders.save_image(folder / "images" / "a.png")
  (folder / "labels" / "a").mkdir(parents=True)
  for name, points in (("crack_1", folders.CRACK), ("hole_1", folders.HOLE)):
    Image.fromarray(folders.drawn(points).astype(np.uint8) * 255).save(folder / "labels" / "a" / f"{name}.png")
  dataset = Dataset("masks", str(folder), 3, LabelFormat("binary"), ("crack", "hole"))

  def read() -> None:
    inspect_folder(folder)
    check_source(open_dataset(dataset, "."))

  return make_target(folder, ["labels/a/crack_1.png"], read)


def _voc(folder: Path) -> Target:
  folders.voc(folder)
  Image.open(io.BytesIO(palette(folders.expected()))).save(folder / "SegmentationClass" / "a.png")
  (folder / "labelmap.txt").write_text("# label:color\nbackground:0,0,0::\ncrack:255,0,0::\nhole:0,255,0::\n")
  names = ["labelmap.txt", "ImageSets/Segmentation/train.txt"]

  def read() -> None:
    found = read_label_map(DatasetFiles(folder))
    assert found is not None and len(found.names) + 1 == len(found.label_format.table)
    inspect_folder(folder)
    check_source(open_dataset(Dataset("voc", str(folder), CLASSES, found.label_format), "train"))

  return make_target(folder, names, read)


def _mapping(folder: Path) -> Target:
  for place, name in enumerate(("q/images/a.png", "q/images/x/b.png", "p/images/1.png", "p/images/2.png")):
    folders.save_image(folder / name, place)
  for name in ("1", "2"):
    folders.save_image(folder / "p/labels" / f"{name}.png")
  (folder / "map.json").write_text(json.dumps({"a.png": ["1.png", "2.png"], "x/b": ["p/images/2.png"]}))

  def read() -> None:
    arguments = (folder / "q", folder / "p/images", folder / "p/labels", folder / "map.json")
    for only in (False, True):
      for query in list_queries(*arguments, top_k=2, mapped_only=only):
        assert 1 <= len(query.prompts) <= 2 and all(prompt.labels.is_file() for prompt in query.prompts)

  return make_target(folder, ["map.json"], read)


def _groups(folder: Path) -> Target:
  for place, name in enumerate("ab"):
    folders.save_image(folder / "images" / f"{name}.png", place)
    folders.save_image(folder / "labels" / f"{name}.png", place)
  (folder / "groups.csv").write_text('name,group,date\na,"p,1",2020\nb,p2,2021\n')

  def read() -> None:
    source = FileSource(folder_layout(folder), 3, LabelFormat())
    assert all(group_names(source, f"csv:{folder / 'groups.csv'}"))

  return make_target(folder, ["groups.csv"], read)


def _class_lists(folder: Path) -> Target:
  folders.voc(folder / "VOC2012", "val")
  folders.voc(folder / "VOC2012", "val", name="b")
  (folder / "lists").mkdir()
  (folder / "lists/fold0.txt").write_text("a__01\nb__02\n")
  folders.save_image(folder / "fss/dog/1.jpg")
  folders.save_image(folder / "fss/dog/1.png")
  (folder / "classes.txt").write_text("dog\n")

  def read() -> None:
    read_benchmark("pascal5i", folder, folder / "lists")
    read_benchmark("fss1000", folder / "fss", folder / "classes.txt")

  return make_target(folder, ["lists/fold0.txt", "classes.txt", "VOC2012/ImageSets/Segmentation/val.txt"], read)


TARGETS: dict[str, Callable[[Path], Target]] = {
  "coco": _coco_polygons,
  "coco_run_lengths": _coco_run_lengths,
  "coco_compressed": _coco_compressed,
  "labelme": _labelme,
  "yolo": _yolo,
  "yolo_lists": _yolo_lists,
  "cvat": _cvat,
  "label_studio": _label_studio,
  "label_studio_short": _label_studio_short,
  "voc": _voc,
  "masks": _masks,
  "mapping": _mapping,
  "groups": _groups,
  "class_lists": _class_lists,
}
