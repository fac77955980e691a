"""Small datasets in the layouts of the benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def save(path: Path, pixels: np.ndarray) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path)


@pytest.fixture(scope="session")
def fss(tmp_path_factory):
  """Three classes of ten images each; one mask of each class is in color, like some masks of the dataset."""
  root = tmp_path_factory.mktemp("fss")
  generator = np.random.default_rng(1)
  for name in ("abacus", "zebra", "mug"):
    for number in range(1, 11):
      save(root / name / f"{number}.jpg", generator.integers(0, 256, (20, 24, 3), np.uint8))
      mask = np.where(generator.random((20, 24)) < 0.3, 255, 0).astype(np.uint8)
      save(root / name / f"{number}.png", np.stack([mask] * 3, axis=-1) if number == 3 else mask)
  return root


@pytest.fixture(scope="session")
def voc(tmp_path_factory):
  """VOC2012 with 50 images of different sizes. Each class is in several images; each label has ignored pixels."""
  root = tmp_path_factory.mktemp("voc") / "VOCdevkit" / "VOC2012"
  generator = np.random.default_rng(2)
  names = [f"2007_{index:06}" for index in range(50)]
  for index, name in enumerate(names):
    size = (18 + index % 5, 25 - index % 3)
    label = np.zeros(size, np.uint8)
    label[2:8, 3:12], label[9:15, 5:20] = 1 + index % 20, 1 + (7 * index + 3) % 20
    label[9, 5:20] = 255
    save(root / "JPEGImages" / f"{name}.jpg", generator.integers(0, 256, (*size, 3), np.uint8))
    save(root / "SegmentationClassAug" / f"{name}.png", label)
  (root / "ImageSets" / "Segmentation").mkdir(parents=True)
  (root / "ImageSets" / "Segmentation" / "val.txt").write_text("\n".join(names) + "\n")
  return root.parent.parent


_COCO_IDS = [index for index in range(1, 91) if index not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


@pytest.fixture(scope="session")
def coco(tmp_path_factory):
  """val2014 with three images of each class of fold 1. An object of class 80 covers the object of the first image."""
  root = tmp_path_factory.mktemp("coco")
  generator = np.random.default_rng(3)
  images, annotations = [], []
  for index in range(60):
    name = f"COCO_val2014_{index:012}.jpg"
    save(root / "val2014" / name, generator.integers(0, 256, (20, 24, 3), np.uint8))
    images.append({"id": 500 + index, "file_name": name, "height": 20, "width": 24})
    boxes = [(_COCO_IDS[1 + 4 * (index % 20)], (2, 2, 14, 12))]
    if index == 0:
      # The same size and later in the list, so that nothing is left of the object below.
      boxes.append((_COCO_IDS[-1], (2, 2, 14, 12)))
    for category, (left, top, right, bottom) in boxes:
      polygon = [[left, top, right, top, right, bottom, left, bottom]]
      annotations.append({"image_id": 500 + index, "category_id": category, "iscrowd": 0, "segmentation": polygon})
  categories = [{"id": id_, "name": f"category {id_}"} for id_ in _COCO_IDS]
  (root / "annotations").mkdir()
  content = {"images": images, "annotations": annotations, "categories": categories}
  (root / "annotations" / "instances_val2014.json").write_text(json.dumps(content))
  return root


@pytest.fixture(scope="session")
def davis(tmp_path_factory):
  """A video with two objects and one with a single object: moving squares, one of which vanishes in one frame."""
  root = tmp_path_factory.mktemp("davis") / "DAVIS"
  generator = np.random.default_rng(4)
  for name, frames, objects in (("bear", 5, 2), ("swan", 7, 1)):
    for index in range(frames):
      label = np.zeros((24, 30), np.uint8)
      label[3:10, 2 + index : 9 + index] = 1
      if objects == 2 and index != 3:
        label[12:20, 20 - index : 28 - index] = 2
      label[0, :4] = 255
      save(root / "JPEGImages" / "480p" / name / f"{index:05}.jpg", generator.integers(0, 256, (24, 30, 3), np.uint8))
      image = Image.fromarray(label)
      image.putpalette([index % 256 for index in range(768)])
      path = root / "Annotations" / "480p" / name / f"{index:05}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      image.save(path)
  (root / "ImageSets" / "2017").mkdir(parents=True)
  (root / "ImageSets" / "2017" / "val.txt").write_text("swan\nbear\n")
  return root.parent
