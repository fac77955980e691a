"""The few-shot benchmarks by name: the folder of a dataset in, `FewShotData` out.

A new benchmark is an entry in `BENCHMARKS`, with a function that lists its files. docs/evaluation.md shows the layouts;
classes and episodes follow published code. Masks are foreground from 128 on; in label maps 255 is ignored.

- FSS-1000: the published test split has 240 of the 1000 classes, whose list is not part of the dataset. Without it all
  folders are classes, including classes that a network may have been trained on.
- COCO-20i: classes in label maps are 1 .. 80, in the order of the categories' ids. Classes, queries and prompts are
  drawn from all images.
- iSAID-5i (Yao et al., 2021), aerial images in patches: caoql98/SDM, and the lists of linhanwang/SCCNet, which GF-SAM
  and INSID3 also read.
- ISIC 2018, skin lesions, and chest X-rays of Montgomery and Shenzhen (Lei et al., ECCV 2022): slei109/PATNet. Images
  of ISIC get the size of their masks, because a published script for sorting them stores them as 512 x 512 pixels.
- SUIM (Islam et al., 2020), underwater images, training and test together: Vision-Kek/ABCDFSS, as INSID3.

Published code draws episodes from lists that come with it. The lists of PASCAL-5i have fewer pairs of image and class
than the labels show (346 in HSNet's list of fold 0). The lists can be given: a folder with fold0.txt, fold1.txt, ...,
whose lines are IMAGE__CLASS such as 2007_000033__01, those of some folds are enough; for FSS-1000 a file with the name
of a class in each line. Without them, every image with a pixel of a class is used for that class, in the order of
names, which is also the order of the lists.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seggpt_jax.data.datasets import OutlineSource
from seggpt_jax.data.groups import scan_classes
from seggpt_jax.data.sources import EncodedSource, FileSource, View
from seggpt_jax.errors import InputError
from seggpt_jax.evaluation.few_shot import FewShotData, Samples
from seggpt_jax.files import expand
from seggpt_jax.formats.coco import read_coco
from seggpt_jax.formats.folders import list_images, read_csv
from seggpt_jax.formats.images import read_lines
from seggpt_jax.formats.labels import IGNORE, LabelFormat
from seggpt_jax.formats.layouts import Item

Lists = str | os.PathLike | None
Pairs = list[tuple[int, int]]  # of sample and class

# Names of classes 1, 2, ... by benchmark.
_NAMES: dict[str, list[str]] = json.loads(Path(__file__).with_name("few_shot_classes.json").read_text("utf-8"))
_ISIC_IMAGES, _ISIC_MASKS = "ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"
_ISIC_CLASSES = ("seborrheic_keratosis", "nevus", "melanoma")  # the folders 1, 2 and 3
_SUIM_CODES = ("FV", "HD", "PF", "RI", "RO", "SR", "WR")  # folders of its classes


class Benchmark(NamedTuple):
  """A few-shot benchmark: its files, its classes, and how its episodes are drawn."""

  # Returns images with label maps, or images with masks by class; takes the folder and the published lists.
  files: Callable[[Path, Lists], Sequence[Item] | OutlineSource | dict[str, list[Item]]]
  inside: str = ""  # folder that the folder of the dataset contains
  candidates: tuple[str, ...] = ()  # paths of that folder below the one that the user names, besides that one itself
  folds: tuple[range, ...] = ()  # classes of each fold; () has all classes in one fold
  episodes: int | None = None  # number of episodes of a fold; None has one for each pair of an image and a class
  drawn: str = ""  # "classes" draws queries of one class after the other, "all" at random; "" takes all pairs in turn
  lists: str | None = None  # where published lists may be in the dataset; None if none can be given
  test_classes: int = 0  # number of classes of published figures, if the dataset has more
  without_empty: bool = False  # whether empty masks are left out
  stretched: bool = False  # whether images may be stored at another size than their masks
  note: str = ""  # sentence below results that differ from published ones


def read_benchmark(
  name: str, directory: str | os.PathLike, lists: Lists = None, cache: str | os.PathLike | None = None
) -> FewShotData:
  """Opens the dataset of a benchmark.

  Args:
    name: a key of `BENCHMARKS`.
    directory: the folder of the dataset, or one that contains it under its usual name.
    lists: folder with published lists, or file with names of classes, or None.
    cache: file to keep the classes of every image in.

  Raises:
    InputError: a folder, list or file is missing or damaged.
  """
  benchmark = BENCHMARKS[name]
  root = find_root(directory, ("", *benchmark.candidates), benchmark.inside)
  if lists is None and benchmark.lists and (root / benchmark.lists).is_dir():
    lists = root / benchmark.lists
  files = benchmark.files(root, lists)
  if isinstance(files, dict):
    names, (source, pairs) = tuple(files), _masks(benchmark, files, cache)
  else:
    names, (source, pairs) = tuple(_NAMES[name]), _label_maps(benchmark, files, lists, cache)
  folds = {fold: list((benchmark.folds or (range(1, 1 + len(names)),))[fold]) for fold in pairs}
  pools: dict[int, list[int]] = {class_index: [] for fold in folds for class_index in folds[fold]}
  for sample, class_index in itertools.chain(*pairs.values()):
    pools[class_index].append(sample)
  if benchmark.test_classes:
    # Prompts are drawn in the order of their numbers; queries come in the order of their names: 1, 10, 2, ...
    pools = {c: sorted(pool, key=lambda sample: _number(source.name(sample))) for c, pool in pools.items()}
  is_published = len(names) == benchmark.test_classes if benchmark.test_classes else lists is not None
  return FewShotData(
    Samples(source, own_class=isinstance(files, dict), stretched=benchmark.stretched),
    dict(enumerate(names, 1)),
    folds,
    pools,
    {fold: benchmark.episodes or len(each) for fold, each in pairs.items()},
    queries=None if benchmark.drawn else pairs,
    classes_in_turn=benchmark.drawn == "classes",
    notes=(benchmark.note.format(len(names)),) if benchmark.note and not is_published else (),
    comparable=is_published or not benchmark.test_classes,
  )


def _masks(
  benchmark: Benchmark, groups: Mapping[str, list[Item]], cache: str | os.PathLike | None
) -> tuple[EncodedSource, dict[int, Pairs]]:
  """Returns the masks of all classes, with the pairs of their only fold."""
  source: EncodedSource = FileSource(list(itertools.chain(*groups.values())), 2, LabelFormat("binary", threshold=127))
  classes = np.repeat(np.arange(1, 1 + len(groups)), [len(group) for group in groups.values()])
  if benchmark.without_empty:
    shown = np.flatnonzero(scan_classes(source, cache)[:, 1])
    source, classes = View(source, indices=shown), classes[shown]
  return source, {0: list(enumerate(classes.tolist()))}


def _label_maps(
  benchmark: Benchmark, files: Sequence[Item] | OutlineSource, lists: Lists, cache: str | os.PathLike | None
) -> tuple[EncodedSource, dict[int, Pairs]]:
  """Returns label maps with the pairs of each fold, which are those of the published lists if there are any."""
  num_classes, folds = 1 + max(map(max, benchmark.folds)), dict(enumerate(benchmark.folds))
  source = files if isinstance(files, OutlineSource) else FileSource(files, num_classes, LabelFormat(ignore=(IGNORE,)))
  if lists is None:
    table = scan_classes(source, cache if benchmark.drawn else None)
    return source, {f: [(i, c) for i in range(len(source)) for c in folds[f] if table[i, c]] for f in folds}
  places = {source.name(index): index for index in range(len(source))}
  paths = {fold: Path(lists) / f"fold{fold}.txt" for fold in folds}
  # If no list exists at all, the error names the first.
  found = [fold for fold in folds if paths[fold].exists()] or list(folds)
  return source, {fold: _read_list(paths[fold], places, folds[fold]) for fold in found}


def _read_list(path: Path, places: Mapping[str, int], classes: Sequence[int]) -> Pairs:
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


def _item(name: str, image: Path, mask: Path) -> Item:
  for path, other in ((image, mask), (mask, image)):
    if not path.exists():
      raise InputError(f"{path}: not found; it belongs to {other}")
  return Item(name, os.fspath(image), os.fspath(mask))


def _labeled(labels: Path, images: Path, ending: str = ".jpg", label_end: str = "", prefix: str = "") -> list[Item]:
  """Returns the label files of a folder with their images, which are called the same without `label_end`."""
  named = ((name.removesuffix(label_end), Path(path)) for name, path in list_images(labels).items())
  return [_item(prefix + name, images / f"{name}{ending}", path) for name, path in named]


def _fss1000(root: Path, lists: Lists) -> dict[str, list[Item]]:
  while inner := next((root / name for name in ("fewshot_data", "FSS-1000") if (root / name).is_dir()), None):
    root = inner
  folders = (path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
  names = sorted(set(folders if lists is None else read_lines(lists)))
  if not names:
    raise InputError(f"{lists or root}: found no classes, expected folders CLASS with 1.jpg and 1.png in it")
  for name in names:
    if os.path.basename(name) != name:
      raise InputError(f"{lists}: found {name[:80]!r}, expected the names of folders in {root}")
    if not os.path.isdir(root / name):  # unlike pathlib's, it takes names of any length
      raise InputError(f"{root / name}: folder not found, expected one of the class with 1.jpg and 1.png in it")
  images = {name: sorted((root / name).glob("*.jpg")) for name in names}
  return {name: [_item(f"{name}/{p.stem}", p, p.with_suffix(".png")) for p in images[name]] for name in names}


def _number(name: str) -> tuple[int, str]:
  digits = re.sub(r"\D", "", name.rpartition("/")[2])
  return int(digits or 0), name


def _pascal5i(root: Path, lists: Lists) -> list[Item]:
  labels = next((path for kind in ("Aug", "") if (path := root / f"SegmentationClass{kind}").is_dir()), None)
  if labels is None:
    raise InputError(f"{root}: found neither SegmentationClassAug/ nor SegmentationClass/, expected one of them")
  names = read_lines(root / "ImageSets" / "Segmentation" / "val.txt")
  return [Item(name, f"{root}/JPEGImages/{name}.jpg", f"{labels}/{name}.png") for name in names]


def _isaid5i(root: Path, lists: Lists) -> list[Item]:
  labels, ending = root / "val" / "semantic_png", "_instance_color_RGB"
  if wrong := [path for name, path in list_images(labels).items() if not name.endswith(ending)]:
    raise InputError(f"{wrong[0]}: found this name, expected NAME{ending}.png")
  return _labeled(labels, root / "val" / "images", ".png", ending)


class _DrawnCoco(OutlineSource):
  """COCO with classes from the drawn labels: an object can be hidden by others, or be smaller than a pixel."""

  def classes(self, index: int) -> None:
    return None


def _coco20i(root: Path, lists: Lists) -> Sequence[Item] | OutlineSource:
  labels = root / "annotations" / "val2014"
  return _labeled(labels, root / "val2014") if labels.is_dir() else _DrawnCoco(read_coco(root, "val2014"), 81)


def _isic2018(root: Path, lists: Lists) -> dict[str, list[Item]]:
  folder, masks, table = root / _ISIC_IMAGES, root / _ISIC_MASKS, root / "class_id.csv"
  images: dict[str, list[Path]] = {name: [] for name in _ISIC_CLASSES}
  if table.exists():
    for where, name, kind in read_csv(table, "ID", "Class"):
      if kind not in images:
        raise InputError(f"{where}: found class {kind!r}, expected one of {', '.join(_ISIC_CLASSES)}")
      path = folder / f"{os.path.basename(name or '')}.jpg"
      images[kind] += [path] if path.exists() else []  # ISIC 2018 left out some of them
  else:
    for number, kind in enumerate(_ISIC_CLASSES, 1):
      if not (folder / str(number)).is_dir():
        raise InputError(f"{folder}: found no folder {number}, expected the images in folders 1, 2 and 3, or {table}")
      images[kind] = list((folder / str(number)).glob("*.jpg"))
  return {
    kind.replace("_", " "): [_item(f"{index}/{p.stem}", p, masks / f"{p.stem}_segmentation.png") for p in sorted(paths)]
    for index, (kind, paths) in enumerate(images.items(), 1)
  }


def _suim(root: Path, lists: Lists) -> dict[str, list[Item]]:
  masks, images = root / "masks", root / "images"
  named = zip(_SUIM_CODES, _NAMES["suim"], strict=True)
  return {name: _labeled(masks / code, images, prefix=f"{code}/") for code, name in named}


def _chest_xray(root: Path, lists: Lists) -> dict[str, list[Item]]:
  return {"lung": _labeled(root / "masks", root / "CXR_png", ".png", "_mask")}


BENCHMARKS: Mapping[str, Benchmark] = {
  "fss1000": Benchmark(
    _fss1000,
    lists="",
    test_classes=240,
    note="{} classes; published figures are of the 240 of the test split (--lists).",
  ),
  "pascal5i": Benchmark(
    *(_pascal5i, "JPEGImages", ("VOC2012", "VOCdevkit/VOC2012")),
    folds=tuple(range(first, first + 5) for first in (1, 6, 11, 16)),
    episodes=1000,
    lists="",
    note="Queries from the labels; the published lists have fewer (--lists).",
  ),
  "coco20i": Benchmark(
    *(_coco20i, "val2014", ("COCO2014",)),
    folds=tuple(range(first, 81, 4) for first in (1, 2, 3, 4)),
    episodes=1000,
    drawn="all",
    note="Episodes are drawn from the labels, not from the published list.",
  ),
  "isaid5i": Benchmark(
    *(_isaid5i, "val/semantic_png", ("iSAID", "iSAID_patches", "remote_sensing/iSAID_patches")),
    folds=tuple(range(first, first + 5) for first in (1, 6, 11)),
    lists="splits/val",
    note="Queries from the labels, not from the published lists (--lists).",
  ),
  "isic2018": Benchmark(_isic2018, _ISIC_IMAGES, ("ISIC",), episodes=600, drawn="classes", stretched=True),
  "suim": Benchmark(_suim, "masks", ("SUIM", "suim_merged"), drawn="classes", without_empty=True),
  "chest_xray": Benchmark(
    *(_chest_xray, "CXR_png", ("LungSegmentation", "Lung Segmentation")), episodes=600, drawn="classes"
  ),
}


def find_root(directory: str | os.PathLike, candidates: Sequence[str], inside: str) -> Path:
  """Returns the first candidate, a path below the folder that the user named, that contains a certain folder.

  Raises:
    InputError: the named folder does not exist, or no candidate contains the other folder.
  """
  root = Path(expand(directory))
  if not root.is_dir():
    raise InputError(f"{directory}: folder not found, expected the dataset (--data-dir)")
  for candidate in candidates:
    if (root / candidate / inside).is_dir():
      return root / candidate
  looked = ", ".join(os.path.join(directory, candidate, inside) for candidate in candidates)
  raise InputError(f"{directory}: found no {inside}/ in it, expected {looked}")
