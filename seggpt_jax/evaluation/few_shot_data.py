"""The few-shot benchmarks by name: the folder of a dataset in, `FewShotData` out.

A new benchmark is a reader and an entry in `BENCHMARKS`. Layouts, classes and episodes are those of published code.
Masks are foreground from 128 on; in label maps 255 is ignored.

- FSS-1000: CLASS/1.jpg .. 10.jpg, each with its mask next to it as .png. Every image of every class is a query once.
  The published test split has 240 of the 1000 classes, whose list is not part of the dataset. Without the list all
  folders are classes, including classes that a network may have been trained on.
- PASCAL-5i: VOC2012 with JPEGImages, SegmentationClassAug or SegmentationClass, ImageSets/Segmentation/val.txt. Fold i
  has classes 5i+1 .. 5i+5. Pairs of a validation image and one of its classes are the queries in turn.
- COCO-20i: val2014/ with annotations/val2014/NAME.png (class indices, categories in order of their ids are 1 .. 80), or
  else with annotations/instances_val2014.json, read as in `formats.coco`. Fold i has the classes i+1, i+5, ... i+77.
  Classes, queries and prompts are drawn from all images.
- iSAID-5i (Yao et al., 2021), aerial images in patches: val/images/NAME.png and
  val/semantic_png/NAME_instance_color_RGB.png as in caoql98/SDM, and the lists of linhanwang/SCCNet, which GF-SAM and
  INSID3 also read. Fold i has classes 5i+1 .. 5i+5; each pair of a list is a query once.
- ISIC 2018, skin lesions, and chest X-rays of Montgomery and Shenzhen (Lei et al., ECCV 2022): slei109/PATNet,
  `data/isic.py` and `data/lung.py`. One fold, 600 episodes, classes in turn, queries and prompts at random. ISIC's
  images are in folders 1, 2 and 3, or the published class_id.csv with the columns ID and Class is next to the two
  folders; they get the size of their masks, because a published script for sorting them stores them as 512 x 512
  pixels. Chest X-rays are CXR_png/NAME.png with masks/NAME.png or masks/NAME_mask.png.
- SUIM (Islam et al., 2020), underwater images, training and test together: Vision-Kek/ABCDFSS, `data/suim.py`, which
  INSID3 also follows. images/NAME.jpg and a folder of masks for each class, such as masks/FV. One fold, seven classes
  in turn, and as many episodes as there are masks that are not empty.

Published code draws episodes from lists that come with it. The lists of PASCAL-5i have fewer pairs of image and class
than the labels show (346 in HSNet's list of fold 0). The lists can be given: a folder with fold0.txt, fold1.txt, ...,
whose lines are IMAGE__CLASS such as 2007_000033__01, those of some folds are enough; for FSS-1000 a file with the name
of a class in each line. Without them, every image with a pixel of a class is used for that class, in the order of
names, which is also the order of the lists.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seggpt_jax.data.datasets import OutlineSource
from seggpt_jax.data.groups import scan_classes
from seggpt_jax.data.sources import FileSource
from seggpt_jax.errors import InputError
from seggpt_jax.evaluation.few_shot import FewShotData, Samples
from seggpt_jax.evaluation.parts import find_root, read_lines
from seggpt_jax.formats.coco import read_coco
from seggpt_jax.formats.folders import list_images
from seggpt_jax.formats.images import read_text
from seggpt_jax.formats.labels import IGNORE, LabelFormat
from seggpt_jax.formats.layouts import Item


def _names(text: str) -> dict[int, str]:
  """Returns class names by their class indices, which start at 1."""
  return dict(enumerate((" ".join(name.split()) for name in text.split(",")), 1))


_VOC = _names("""
  aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, motorbike, person,
  pottedplant, sheep, sofa, train, tvmonitor
""")
_COCO = _names("""
  person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
  parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
  handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
  surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
  broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
  mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors,
  teddy bear, hair drier, toothbrush
""")
_ISAID = _names("""
  ship, storage tank, baseball diamond, tennis court, basketball court, ground track field, bridge, large vehicle,
  small vehicle, helicopter, swimming pool, roundabout, soccer ball field, plane, harbor
""")
_ISAID_ENDING = "_instance_color_RGB"
_ISIC_IMAGES, _ISIC_MASKS = "ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"
_ISIC_CLASSES = ("seborrheic_keratosis", "nevus", "melanoma")  # the folders 1, 2 and 3
_SUIM_CLASSES = {
  "FV": "fish and vertebrates",
  "HD": "human divers",
  "PF": "plants",
  "RI": "reefs and invertebrates",
  "RO": "robots",
  "SR": "sea floor and rocks",
  "WR": "wrecks and ruins",
}


class _Opening(NamedTuple):
  """Holds what a reader may need: the folder, the published lists or None, and a file to keep classes in or None."""

  root: Path
  lists: str | os.PathLike | None
  cache: str | os.PathLike | None


class Benchmark(NamedTuple):
  """A few-shot benchmark."""

  read: Callable[[_Opening], FewShotData]  # reads the dataset
  inside: str = ""  # folder that the folder of the dataset contains
  candidates: tuple[str, ...] = ()  # paths of that folder below the one that the user names, besides that one itself
  num_folds: int = 1  # number of folds
  has_lists: bool = False  # whether published lists can be given


def read_benchmark(
  name: str,
  directory: str | os.PathLike,
  lists: str | os.PathLike | None = None,
  cache: str | os.PathLike | None = None,
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
  return benchmark.read(_Opening(find_root(directory, ("", *benchmark.candidates), benchmark.inside), lists, cache))


def _masks(items: Sequence[Item]) -> FileSource:
  return FileSource(items, 2, LabelFormat("binary", threshold=127))


def _label_maps(items: Sequence[Item], classes: Mapping[int, str]) -> FileSource:
  return FileSource(items, 1 + len(classes), LabelFormat(ignore=(IGNORE,)))


def _fss1000(given: _Opening) -> FewShotData:
  root, classes = given.root, given.lists
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
    Samples(_masks(items), own_class=True),
    dict(enumerate(names, 1)),
    {0: list(pools)},
    pools,
    {0: len(queries)},
    queries={0: queries},
    notes=() if is_test_split else (note,),
    comparable=is_test_split,
  )


def _fss_items(folder: Path) -> list[Item]:
  """Returns the images of a class, by name, with the masks next to them."""
  if not os.path.isdir(folder):  # unlike pathlib's, it takes names of any length
    raise InputError(f"{folder}: folder not found, expected one of the class with 1.jpg and 1.png in it")
  images = sorted(folder.glob("*.jpg"))
  return [_item(f"{folder.name}/{image.stem}", image, image.with_suffix(".png")) for image in images]


def _number(name: str) -> tuple[int, str]:
  digits = re.sub(r"\D", "", name.rpartition("/")[2])
  return int(digits or 0), name


def _pascal5i(given: _Opening) -> FewShotData:
  root = given.root
  labels = next((path for kind in ("Aug", "") if (path := root / f"SegmentationClass{kind}").is_dir()), None)
  if labels is None:
    raise InputError(f"{root}: found neither SegmentationClassAug/ nor SegmentationClass/, expected one of them")
  names = read_lines(root / "ImageSets" / "Segmentation" / "val.txt")
  items = [
    Item(name, os.fspath(root / "JPEGImages" / f"{name}.jpg"), os.fspath(labels / f"{name}.png")) for name in names
  ]
  note = "Queries from the labels; the published lists have fewer (--lists)."
  return _listed(items, _VOC, given.lists, note, num_episodes=1000)


def _isaid5i(given: _Opening) -> FewShotData:
  items, lists = [], given.lists
  for name, path in list_images(given.root / "val" / "semantic_png").items():
    if not name.endswith(_ISAID_ENDING):
      raise InputError(f"{path}: found this name, expected NAME{_ISAID_ENDING}.png")
    name = name.removesuffix(_ISAID_ENDING)
    items.append(_item(name, given.root / "val" / "images" / f"{name}.png", Path(path)))
  if lists is None and (given.root / "splits" / "val").is_dir():
    lists = given.root / "splits" / "val"
  return _listed(items, _ISAID, lists, "Queries from the labels, not from the published lists (--lists).")


def _listed(
  items: Sequence[Item],
  classes: Mapping[int, str],
  lists: str | os.PathLike | None,
  note: str,
  num_episodes: int | None = None,
) -> FewShotData:
  """Returns a benchmark of label maps in folds of five classes, whose queries are those of the published lists."""
  source = _label_maps(items, classes)
  folds = {fold: list(range(5 * fold + 1, 5 * fold + 6)) for fold in range(len(classes) // 5)}
  if lists is None:
    table = scan_classes(source)
    queries = {fold: [(i, c) for i in range(len(items)) for c in folds[fold] if table[i, c]] for fold in folds}
  else:
    places = {item.name: index for index, item in enumerate(items)}
    files = {fold: Path(lists) / f"fold{fold}.txt" for fold in folds}
    # If no list exists at all, the error names the first.
    found = [fold for fold in folds if files[fold].exists()] or list(folds)
    queries = {fold: _read_list(files[fold], places, folds[fold]) for fold in found}
  folds = {fold: folds[fold] for fold in queries}
  # The prompts of a class are its queries.
  pools = {c: [i for i, class_index in queries[fold] if class_index == c] for fold in folds for c in folds[fold]}
  counts = {fold: len(pairs) if num_episodes is None else num_episodes for fold, pairs in queries.items()}
  return FewShotData(Samples(source), classes, folds, pools, counts, queries=queries, notes=() if lists else (note,))


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


def _coco20i(given: _Opening) -> FewShotData:
  root = given.root
  source = _coco_masks(root) if (root / "annotations" / "val2014").is_dir() else _DrawnCoco(root)
  table = scan_classes(source, given.cache)
  pools = {c: np.flatnonzero(table[:, c]).tolist() for c in _COCO}
  folds = {fold: list(range(fold + 1, 1 + len(_COCO), 4)) for fold in range(4)}
  notes = ("Episodes are drawn from the labels, not from the published list.",)
  return FewShotData(Samples(source), _COCO, folds, pools, dict.fromkeys(folds, 1000), notes=notes)


class _DrawnCoco(OutlineSource):
  """COCO with classes from the drawn labels: an object can be hidden by others, or be smaller than a pixel."""

  def __init__(self, root: Path):
    super().__init__(read_coco(root, "val2014"), 1 + len(_COCO))

  def classes(self, index: int) -> None:
    return None


def _coco_masks(root: Path) -> FileSource:
  images, labels = list_images(root / "val2014"), list_images(root / "annotations" / "val2014")
  expected = {name: Path(images.get(name, root / "val2014" / f"{name}.jpg")) for name in labels}
  return _label_maps([_item(name, expected[name], Path(path)) for name, path in labels.items()], _COCO)


def _isic2018(given: _Opening) -> FewShotData:
  root = given.root
  table = root / "class_id.csv"
  images = _sorted_lesions(root / _ISIC_IMAGES) if not table.exists() else _listed_lesions(root / _ISIC_IMAGES, table)
  groups = [
    [_item(f"{number}/{image.stem}", image, root / _ISIC_MASKS / f"{image.stem}_segmentation.png") for image in paths]
    for number, paths in enumerate(images, 1)
  ]
  return _one_fold(groups, [name.replace("_", " ") for name in _ISIC_CLASSES], stretched=True)


def _sorted_lesions(folder: Path) -> list[list[Path]]:
  """Returns the images of each class from folders 1, 2 and 3."""
  for number in (1, 2, 3):
    if not (folder / str(number)).is_dir():
      raise InputError(
        f"{folder}: found no folder {number}, expected the images in folders 1, 2 and 3, or the published class_id.csv "
        f"in {folder.parent}"
      )
  return [sorted((folder / str(number)).glob("*.jpg")) for number in (1, 2, 3)]


def _listed_lesions(folder: Path, table: Path) -> list[list[Path]]:
  """Returns the images of each class from the published list."""
  images: dict[str, list[Path]] = {name: [] for name in _ISIC_CLASSES}
  try:
    rows = csv.DictReader(read_text(table).splitlines())
    if not {"ID", "Class"} <= set(rows.fieldnames or []):
      raise InputError(f"{table}: found columns {', '.join(rows.fieldnames or [])}, expected ID and Class")
    for row in rows:
      if row["Class"] not in images:
        known = ", ".join(_ISIC_CLASSES)
        raise InputError(f"{table}: line {rows.line_num}: found class {row['Class']!r}, expected one of {known}")
      path = folder / f"{os.path.basename(row['ID'])}.jpg"
      # The list also has images that ISIC 2018 left out.
      if path.exists():
        images[row["Class"]].append(path)
  except (csv.Error, UnicodeDecodeError) as error:
    raise InputError(f"{table}: cannot be read as CSV: {error}") from error
  return [sorted(paths) for paths in images.values()]


def _chest_xray(given: _Opening) -> FewShotData:
  items = []
  for mask in sorted(map(Path, list_images(given.root / "masks").values())):
    name = mask.stem.removesuffix("_mask")
    items.append(_item(name, given.root / "CXR_png" / f"{name}.png", mask))
  return _one_fold([items], ["lung"])


def _suim(given: _Opening) -> FewShotData:
  groups = []
  for code in _SUIM_CLASSES:
    masks = sorted(map(Path, list_images(given.root / "masks" / code).values()))
    groups.append([_item(f"{code}/{mask.stem}", given.root / "images" / f"{mask.stem}.jpg", mask) for mask in masks])
  shown = iter(scan_classes(_masks([item for group in groups for item in group]), given.cache)[:, 1])
  groups = [[item for item in group if next(shown)] for group in groups]
  return _one_fold(groups, list(_SUIM_CLASSES.values()), num_episodes=sum(map(len, groups)))


def _item(name: str, image: Path, mask: Path) -> Item:
  for path, other in ((image, mask), (mask, image)):
    if not path.exists():
      raise InputError(f"{path}: not found; it belongs to {other}")
  return Item(name, os.fspath(image), os.fspath(mask))


def _one_fold(
  groups: Sequence[Sequence[Item]], names: Sequence[str], num_episodes: int = 600, stretched: bool = False
) -> FewShotData:
  """Returns a benchmark of one fold from the images and masks of each class."""
  samples = Samples(_masks([item for group in groups for item in group]), own_class=True, stretched=stretched)
  ends = np.cumsum([len(group) for group in groups]).tolist()
  pools = {c: list(range(end - len(group), end)) for c, (end, group) in enumerate(zip(ends, groups, strict=True), 1)}
  return FewShotData(
    samples, dict(enumerate(names, 1)), {0: list(pools)}, pools, {0: num_episodes}, classes_in_turn=True
  )


BENCHMARKS: Mapping[str, Benchmark] = {
  "fss1000": Benchmark(_fss1000, has_lists=True),
  "pascal5i": Benchmark(_pascal5i, "JPEGImages", ("VOC2012", "VOCdevkit/VOC2012"), 4, True),
  "coco20i": Benchmark(_coco20i, "val2014", ("COCO2014",), 4),
  "isaid5i": Benchmark(
    _isaid5i, "val/semantic_png", ("iSAID", "iSAID_patches", "remote_sensing/iSAID_patches"), 3, True
  ),
  "isic2018": Benchmark(_isic2018, _ISIC_IMAGES, ("ISIC",)),
  "suim": Benchmark(_suim, "masks", ("SUIM", "suim_merged")),
  "chest_xray": Benchmark(_chest_xray, "CXR_png", ("LungSegmentation", "Lung Segmentation")),
}
