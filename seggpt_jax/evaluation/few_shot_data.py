"""The few-shot benchmarks of photographs in the layouts that people download: a folder in, `FewShotData` out.

- FSS-1000: CLASS/1.jpg .. 10.jpg, each with its mask next to it as .png, foreground above 127.
- PASCAL-5i: VOC2012 with JPEGImages, SegmentationClassAug or SegmentationClass, ImageSets/Segmentation/val.txt; 255 is
  ignored. Fold i has classes 5i+1 .. 5i+5.
- COCO-20i: val2014/ with annotations/val2014/NAME.png (class indices, categories in order of their ids are 1 .. 80), or
  else with annotations/instances_val2014.json. Fold i has the classes i+1, i+5, ... i+77.

Published code draws episodes from lists that come with it. The lists of PASCAL-5i have fewer pairs of image and class
than the labels show (346 in HSNet's list of fold 0). The lists can be given; without them, every image with a pixel of
a class is used for that class, in the order of names, which is also the order of the lists.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from seggpt_jax.data.class_index import scan_classes
from seggpt_jax.data.outline_source import OutlineSource
from seggpt_jax.data.sources import FileSource, Source
from seggpt_jax.errors import InputError
from seggpt_jax.evaluation.class_names import COCO_CLASSES, VOC_CLASSES
from seggpt_jax.evaluation.dataset_folders import existing_folder, find_root, read_lines
from seggpt_jax.evaluation.few_shot_episodes import Pools
from seggpt_jax.evaluation.few_shot_samples import FewShotData, LabelMaps
from seggpt_jax.formats.coco import read_coco
from seggpt_jax.formats.images import list_images
from seggpt_jax.formats.labels import IGNORE, LabelFormat
from seggpt_jax.formats.layouts import Item

NUM_FOLDS = 4
_NUM_EPISODES = 1000  # per fold of PASCAL-5i and COCO-20i


def fss1000(directory: str | os.PathLike, classes: str | os.PathLike | None = None) -> FewShotData:
  """Opens FSS-1000, where every image of every class is a query once.

  The published test split has 240 of the 1000 classes. Its list is not part of the dataset. Without the list all
  folders are classes, including classes that a network may have been trained on.

  Args:
    directory: the folder of class folders, or a folder that contains it as fewshot_data/ or FSS-1000/.
    classes: text file with the name of a class in each line, in any order; all folders by default.

  Raises:
    InputError: there are no class folders, a class has no folder, or an image has no mask.
  """
  root = existing_folder(directory)
  while inner := next((root / name for name in ("fewshot_data", "FSS-1000") if (root / name).is_dir()), None):
    root = inner
  if classes is None:
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
  else:
    names = sorted(set(read_lines(classes)))
  if not names:
    raise InputError(f"{classes or root}: found no classes, expected folders CLASS with 1.jpg and 1.png in it")
  if wrong := [name for name in names if os.path.basename(name) != name]:
    raise InputError(f"{classes}: found {wrong[0][:80]!r}, expected the names of folders in {root}")
  is_test_split = len(names) == 240
  items: list[Item] = []
  pools, queries = {}, []
  for class_index, name in enumerate(names, 1):
    new = _fss_items(root / name)
    places = range(len(items), len(items) + len(new))
    items += new
    queries += [(place, class_index) for place in places]
    # Prompts are drawn in the order of their numbers; queries come in the order of their names: 1, 10, 2, ...
    pools[class_index] = sorted(places, key=lambda place: _number(items[place].name))
  note = f"{len(names)} classes; published figures are of the 240 of the test split (--lists)."
  return FewShotData(
    LabelMaps(FileSource(items, 2, LabelFormat("binary", threshold=127)), own_class=True),
    dict(enumerate(names, 1)),
    {0: list(pools)},
    Pools(pools),
    {0: len(queries)},
    queries={0: queries},
    notes=() if is_test_split else (note,),
    comparable=is_test_split,
  )


def _fss_items(folder: Path) -> list[Item]:
  """Returns the images of a class, by name, with the masks next to them."""
  if not os.path.isdir(folder):  # unlike pathlib's, it takes names of any length
    raise InputError(f"{folder}: folder not found, expected one of the class with 1.jpg and 1.png in it")
  items = []
  for image in sorted(folder.glob("*.jpg")):
    mask = image.with_suffix(".png")
    if not mask.exists():
      raise InputError(f"{image}: found no mask for it, expected {mask}")
    items.append(Item(f"{folder.name}/{image.stem}", os.fspath(image), os.fspath(mask)))
  return items


def _number(name: str) -> tuple[int, str]:
  digits = re.sub(r"\D", "", name.rpartition("/")[2])
  return int(digits or 0), name


def pascal5i(directory: str | os.PathLike, lists: str | os.PathLike | None = None) -> FewShotData:
  """Opens PASCAL-5i, where pairs of a validation image and one of its classes are the queries in turn.

  Args:
    directory: VOC2012, or a folder that contains VOC2012/ or VOCdevkit/VOC2012/.
    lists: folder with the published lists fold0.txt .. fold3.txt, whose lines are IMAGE__CLASS such as
      2007_000033__01; by default every pair that the labels show.

  Raises:
    InputError: a folder, list or file is missing.
  """
  root = find_root(directory, ("", "VOC2012", "VOCdevkit/VOC2012"), "JPEGImages")
  labels = next(
    (root / f"SegmentationClass{kind}" for kind in ("Aug", "") if (root / f"SegmentationClass{kind}").is_dir()), None
  )
  if labels is None:
    raise InputError(f"{root}: found neither SegmentationClassAug/ nor SegmentationClass/, expected one of them")
  names = read_lines(root / "ImageSets" / "Segmentation" / "val.txt")
  items = [
    Item(name, os.fspath(root / "JPEGImages" / f"{name}.jpg"), os.fspath(labels / f"{name}.png")) for name in names
  ]
  source = FileSource(items, 1 + len(VOC_CLASSES), LabelFormat(ignore=(IGNORE,)))
  folds = {fold: list(range(5 * fold + 1, 5 * fold + 6)) for fold in range(NUM_FOLDS)}
  queries = listed_queries(source, names, folds, lists)
  notes = () if lists else ("Queries from the labels; the published lists have fewer (--lists).",)
  return FewShotData(
    LabelMaps(source),
    dict(enumerate(VOC_CLASSES, 1)),
    {fold: folds[fold] for fold in queries},
    pools_of_queries({fold: folds[fold] for fold in queries}, queries),
    dict.fromkeys(queries, _NUM_EPISODES),
    queries=queries,
    notes=notes,
  )


def listed_queries(
  source: Source, names: Sequence[str], folds: Mapping[int, Sequence[int]], lists: str | os.PathLike | None
) -> dict[int, list[tuple[int, int]]]:
  """Returns the (sample, class) pairs of each fold, in order.

  Args:
    source: label maps with class indices.
    names: name of each sample in the lists.
    folds: classes of each fold.
    lists: folder with the published lists fold0.txt, fold1.txt, ...; those of some folds are enough. None takes every
      pair that the labels show.

  Raises:
    InputError: a list cannot be read, or none is there.
  """
  if lists is None:
    table = scan_classes(source)
    return {fold: [(i, c) for i in range(len(names)) for c in folds[fold] if table[i, c]] for fold in folds}
  places = {name: index for index, name in enumerate(names)}
  files = {fold: Path(lists) / f"fold{fold}.txt" for fold in folds}
  # If no list exists at all, the error names the first.
  found = [fold for fold in folds if files[fold].exists()] or list(folds)
  return {fold: _read_list(files[fold], places, folds[fold]) for fold in found}


def pools_of_queries(folds: Mapping[int, Sequence[int]], queries: Mapping[int, Sequence[tuple[int, int]]]) -> Pools:
  """Returns the pools whose prompts are the queries of the same class."""
  return Pools({c: [i for i, class_index in queries[fold] if class_index == c] for fold in folds for c in folds[fold]})


def _read_list(path: Path, places: Mapping[str, int], classes: Sequence[int]) -> list[tuple[int, int]]:
  """Returns (sample, class) for each line of a published list."""
  pairs = []
  for line in read_lines(path):
    name, _, number = line.rpartition("__")
    if name not in places or not number.isdecimal() or int(number) not in classes:
      raise InputError(
        f"{path}: found line {line!r}, expected IMAGE__CLASS with an image of the validation images "
        f"and a class of {classes[0]}..{classes[-1]}"
      )
    pairs.append((places[name], int(number)))
  return pairs


def coco20i(directory: str | os.PathLike, cache: str | os.PathLike | None = None) -> FewShotData:
  """Opens COCO-20i, where classes, queries and prompts are drawn from val2014.

  Labels made from annotations/instances_val2014.json follow `formats.coco`: smaller objects cover larger ones, and
  crowds are ignored where no object is. The labels are read once to find which images show a class.

  Args:
    directory: the folder that contains val2014/ and annotations/, or a folder that contains it as COCO2014/.
    cache: file to keep the classes of every image in.

  Raises:
    InputError: a folder is missing, or the annotations are missing or damaged.
  """
  root = find_root(directory, ("", "COCO2014"), "val2014")
  source = _coco_masks(root) if (root / "annotations" / "val2014").is_dir() else _DrawnCoco(root)
  table = scan_classes(source, cache)
  pools = {c: np.flatnonzero(table[:, c]).tolist() for c in range(1, 1 + len(COCO_CLASSES))}
  folds = {fold: list(range(fold + 1, 1 + len(COCO_CLASSES), NUM_FOLDS)) for fold in range(NUM_FOLDS)}
  notes = ("Episodes are drawn from the labels, not from the published list.",)
  names, count = dict(enumerate(COCO_CLASSES, 1)), dict.fromkeys(folds, _NUM_EPISODES)
  return FewShotData(LabelMaps(source), names, folds, Pools(pools), count, notes=notes)


class _DrawnCoco(OutlineSource):
  """COCO with classes from the drawn labels: an object can be hidden by others, or be smaller than a pixel."""

  def __init__(self, root: Path):
    super().__init__(read_coco(root, "val2014"), 1 + len(COCO_CLASSES))

  def classes(self, index: int) -> None:
    return None


def _coco_masks(root: Path) -> FileSource:
  images, labels = list_images(root / "val2014"), list_images(root / "annotations" / "val2014")
  for name, path in labels.items():
    if name not in images:
      raise InputError(f"{path}: found no image for it, expected {root / 'val2014' / name}.jpg")
  items = [Item(name, images[name], path) for name, path in labels.items()]
  return FileSource(items, 1 + len(COCO_CLASSES), LabelFormat(ignore=(IGNORE,)))
