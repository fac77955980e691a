"""The form of a dataset: a folder in, the kind of its layout and the names of its splits out."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from etils import epath

from seggpt_jax.errors import InputError, reading_values
from seggpt_jax.formats.coco import coco_files, read_coco
from seggpt_jax.formats.cvat import cvat_splits, read_cvat
from seggpt_jax.formats.folders import DatasetFiles, order_splits
from seggpt_jax.formats.images import remote_or_local
from seggpt_jax.formats.label_studio import label_studio_files, read_label_studio
from seggpt_jax.formats.labelme import is_labelme, labelme_files, read_labelme
from seggpt_jax.formats.layouts import IMAGE_FOLDERS, LABEL_FOLDERS, find_folders, voc_root, voc_splits
from seggpt_jax.formats.outlines import Reader
from seggpt_jax.formats.yolo import read_yolo, yolo_splits

_PROBED = 8  # files that decide whether JSON files are LabelMe's


# Kinds whose labels are outlines of objects, and the functions that read them.
OUTLINES: dict[str, Reader] = {
  "coco": read_coco,
  "labelme": read_labelme,
  "yolo": read_yolo,
  "cvat": read_cvat,
  "label_studio": read_label_studio,
}
KINDS = {
  "folder": "SPLIT/images/NAME.* and SPLIT/labels/NAME.*, or images/SPLIT/NAME.* and labels/SPLIT/NAME.*",
  "class_folders": "SPLIT/PRODUCT/DEFECT/image/NAME.* and .../label/NAME.*",
  "masks": "one mask file for each class or instance: SPLIT/images/NAME.* and SPLIT/labels/NAME/*.png, "
  "SPLIT/labels/CLASS/NAME.*, or SPLIT/NAME/{images,masks}/*.png",
  "coco": "COCO annotations: annotations/instances_SPLIT.json, SPLIT/_annotations.coco.json, or any other JSON file",
  "voc": "PASCAL VOC or CVAT's segmentation masks: JPEGImages, SegmentationClass, ImageSets/Segmentation/SPLIT.txt",
  "labelme": "LabelMe: NAME.json next to NAME.jpg, in SPLIT/ or all in one folder",
  "yolo": "YOLO's polygons: images/SPLIT/NAME.* with labels/SPLIT/NAME.txt, and data.yaml",
  "cvat": "CVAT for images: annotations.xml and its images",
  "label_studio": "Label Studio's JSON export and its images",
  "tfds": "a TFDS dataset in ArrayRecord format, for example one that `seggpt prepare` wrote",
}


class Form(NamedTuple):
  """The form of a dataset."""

  kind: str  # a key of `KINDS`
  splits: tuple[str, ...] = ()  # names of its splits, the one to train on first; () if they are not known


def recognize(path: str, kind: str | None = None) -> Form:
  """Finds out the form of a dataset from its folders and files.

  Args:
    path: folder of the dataset, local or remote.
    kind: kind of its layout, if known; only its splits are found out then.

  Raises:
    InputError: the folder does not exist, or has files of no known form.
  """
  if not path:
    raise InputError("path: found an empty value, expected a dataset")
  directory = remote_or_local(path)
  if not directory.is_dir():
    raise InputError(f"{path!r}: folder not found, expected a dataset")
  if kind in _SPLITS:
    with reading_values(path):
      return Form(kind, tuple(_SPLITS[kind](DatasetFiles(path))))
  if kind == "tfds" or any(True for depth in ("", "*/", "*/*/") for _ in directory.glob(f"{depth}dataset_info.json")):
    return Form("tfds")
  if kind is not None:
    return Form(kind, tuple(folder_splits(directory)) if kind in ("folder", "masks") else ())
  files = DatasetFiles(path)
  for known, splits_of in _SPLITS.items():
    with reading_values(path):
      splits = splits_of(files)
    if splits:
      return Form(known, tuple(splits))
  return _folders(directory, files)


def _labelme_splits(files: DatasetFiles) -> list[str]:
  if not any(is_labelme(files.full(path)) for path in files.ending(".json")[:_PROBED]):
    return []
  return order_splits(list(labelme_files(files)))


def _label_studio_splits(files: DatasetFiles) -> list[str]:
  found = label_studio_files(files)
  return ["."] if len(found) == 1 else order_splits([path.partition("/")[0].removesuffix(".json") for path in found])


_SPLITS: dict[str, Callable[[DatasetFiles], list[str]]] = {
  "labelme": _labelme_splits,
  "coco": lambda files: order_splits(list(coco_files(files))),
  "label_studio": _label_studio_splits,
  "cvat": cvat_splits,
  "voc": lambda files: voc_splits(files) if voc_root(files) is not None else [],
  "yolo": yolo_splits,
}


def _folders(directory: epath.Path, files: DatasetFiles) -> Form:
  """Recognizes images with label images in folders."""
  splits = folder_splits(directory)
  for split in splits:
    images, labels = find_folders(directory, split) or (None, None)
    if images is not None and labels is not None:
      # Folders of labels that images have too belong to names such as street/0001; others hold masks.
      inside = {each.name for each in labels.iterdir() if each.is_dir()}
      alike = {each.name for each in images.iterdir() if each.is_dir()}
      return Form("masks" if inside - alike else "folder", tuple(splits))
  below, joined = files.folders(), "\n".join(files.paths)
  masked = [split for split in below if any(f"{split}/{each}/masks/" in joined for each in files.folders(split))]
  if masked:
    return Form("masks", tuple(order_splits(masked)))
  # SPLIT/PRODUCT/DEFECT/image. For deeper folders the user has to set --kind.
  deep = [split for split in below if any("/image/" in path for path in files.paths if path.startswith(f"{split}/"))]
  if deep:
    return Form("class_folders", tuple(order_splits(deep)))
  listed = "; ".join(f"{kind}: {meaning}" for kind, meaning in KINDS.items())
  raise InputError(
    f"{os.fspath(directory)}: found {files.describe()}, which is no known form of a dataset, expected one of {listed}"
  )


def folder_splits(directory: epath.Path) -> list[str]:
  """Returns the splits of a dataset whose images and label maps are in folders, see `layouts.folder_layout`."""
  if not directory.is_dir():
    return []
  below = [each.name for each in directory.iterdir() if each.is_dir() and not each.name.startswith(".")]
  found = [name for name in below if name not in (*IMAGE_FOLDERS, *LABEL_FOLDERS) and find_folders(directory, name)]
  if found:
    return order_splits(found)
  top = next((directory / name for name in IMAGE_FOLDERS if (directory / name).is_dir()), None)
  if top is None:
    return []
  inside = [each.name for each in top.iterdir() if each.is_dir() and find_folders(directory, each.name)]
  known = [name for name in inside if name.lower().startswith(("train", "val", "test", "dev"))]
  if known:
    return order_splits(inside)
  return ["."] if find_folders(directory, ".") else []
