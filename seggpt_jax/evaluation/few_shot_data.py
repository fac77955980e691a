"""The datasets of the few-shot benchmarks as they lie on people's disks: a folder in, `FewShotData` out.

- FSS-1000: CLASS/1.jpg .. 10.jpg, the mask of each beside it as .png, foreground above 127.
- PASCAL-5i: VOC2012 with JPEGImages, SegmentationClassAug or SegmentationClass, ImageSets/Segmentation/val.txt; 255 is
  ignored. Fold i has classes 5i+1 .. 5i+5.
- COCO-20i: val2014/ with annotations/val2014/NAME.png (class indices, categories by id are 1 .. 80) or else with
  annotations/instances_val2014.json. Fold i has the classes i+1, i+5, ... i+77.

The field's code draws from lists that it ships, and those of PASCAL-5i have fewer pairs of image and class than the
labels show (HSNet's of fold 0 has 346). They can be given; without them, every image that has a pixel of a class stands
for it, in the order of names, which is that of the lists.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from seggpt_jax.data.class_index import scan_classes
from seggpt_jax.data.coco import CocoSource
from seggpt_jax.data.images import list_images
from seggpt_jax.data.labels import IGNORE, LabelFormat
from seggpt_jax.data.sources import FileSource, Item, Source
from seggpt_jax.errors import InputError
from seggpt_jax.evaluation import few_shot_episodes
from seggpt_jax.evaluation.few_shot_episodes import Episode


def _names(text: str) -> tuple[str, ...]:
  return tuple(" ".join(name.split()) for name in text.split(","))


VOC_CLASSES = _names("""
  aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, motorbike, person,
  pottedplant, sheep, sofa, train, tvmonitor
""")
COCO_CLASSES = _names("""
  person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
  parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
  handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
  surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
  broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
  mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors,
  teddy bear, hair drier, toothbrush
""")
NUM_FOLDS = 4
_EPISODES = 1000  # of a fold of PASCAL-5i and COCO-20i


@dataclasses.dataclass(frozen=True, eq=False)
class FewShotData:
  """A dataset with the classes that are asked for.

  Attributes:
    source: the samples.
    class_names: of each class.
    folds: the classes of each fold.
    pools: of each class the samples that show it, in order.
    queries: of each fold (sample, class) in order, where every query has its turn; None where they are drawn.
    own_class: whether label files are masks of their folder's class, not class indices.
    notes: sentences for whoever compares the numbers with others.
    comparable: whether published figures are of the same classes.
  """

  source: Source
  class_names: Mapping[int, str]
  folds: Mapping[int, Sequence[int]]
  pools: Mapping[int, Sequence[int]]
  queries: Mapping[int, Sequence[tuple[int, int]]] | None
  own_class: bool = False
  notes: tuple[str, ...] = ()
  comparable: bool = True

  def episodes(self, fold: int, shots: int, seed: int = 0, count: int | None = None) -> list[Episode]:
    """The episodes of a fold, the same for the same files and arguments.

    Args:
      fold: one of `folds`.
      shots: prompts of each query.
      seed: of the draws.
      count: only so many, evenly spread; all by default: 1000, or one for each image of FSS-1000.

    Raises:
      InputError: there is no such fold, or a class of it has too few images.
    """
    if fold not in self.folds:
      raise InputError(f"--fold: found {fold}, expected some of {', '.join(map(str, self.folds))}")
    classes = self.folds[fold]
    few_shot_episodes.check_pools(classes, self.pools, shots, self.class_names)
    if self.queries is None:
      drawn = few_shot_episodes.at_random(classes, self.pools, _EPISODES, shots, seed)
    else:
      total = len(self.queries[fold]) if self.own_class else _EPISODES
      drawn = few_shot_episodes.in_turn(self.queries[fold], self.pools, total, shots, seed)
    return few_shot_episodes.spread(drawn, count)

  def read(self, sample: int, class_index: int) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """An image and its mask of a class: 1 where the class is, IGNORE where that is not known.

    Raises:
      InputError: a file is missing, cannot be read, or is of another size than its image; names it.
    """
    read = self.source[sample]
    label = read["label"]
    mask = (label == (1 if self.own_class else class_index)).astype(np.uint8)
    mask[label == IGNORE] = IGNORE
    return read["image"], mask


# ------------------------------------------------------------------------------------------------------------ readers


def fss1000(directory: str | os.PathLike, classes: str | os.PathLike | None = None) -> FewShotData:
  """FSS-1000: every image of every class is a query once.

  The published test split has 240 of the 1000 classes. Its list is not part of the dataset, and without it all folders
  are classes, also those that a network may have been trained on.

  Args:
    directory: the folder of class folders, or one with fewshot_data/ or FSS-1000/ in it.
    classes: a text file with the name of a class in each line, in any order; all folders by default.

  Raises:
    InputError: no class folders, a class without folder, or an image without mask.
  """
  root = _folder(directory)
  while inner := next((root / name for name in ("fewshot_data", "FSS-1000") if (root / name).is_dir()), None):
    root = inner
  if classes is None:
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
  else:
    names = sorted(set(_lines(classes)))
  if not names:
    raise InputError(f"{classes or root}: found no classes, expected folders CLASS with 1.jpg and 1.png in it")
  known = len(names) == 240
  items: list[Item] = []
  pools, queries = {}, []
  for class_index, name in enumerate(names, 1):
    places = range(len(items), len(items) + len(files := _fss_items(root / name)))
    items += files
    queries += [(place, class_index) for place in places]
    # Prompts are drawn by their number, queries come by name: 1, 10, 2, ...
    pools[class_index] = sorted(places, key=lambda place: _number(items[place].name))
  return FewShotData(
    FileSource(items, 2, LabelFormat("binary", threshold=127)),
    dict(enumerate(names, 1)),
    {0: list(pools)},
    pools,
    {0: queries},
    own_class=True,
    notes=() if known else (f"{len(names)} classes; published figures are of the 240 of the test split (--classes).",),
    comparable=known,
  )


def pascal5i(directory: str | os.PathLike, lists: str | os.PathLike | None = None) -> FewShotData:
  """PASCAL-5i: the pairs of a validation image and one of its classes come in their turn, 1000 times.

  Args:
    directory: VOC2012, or a folder with VOC2012/ or VOCdevkit/VOC2012/ in it.
    lists: a folder with the published lists fold0.txt .. fold3.txt, lines IMAGE__CLASS such as 2007_000033__01; by
      default every pair that the labels show.

  Raises:
    InputError: a folder, list or file is missing.
  """
  root = _root(directory, ("", "VOC2012", "VOCdevkit/VOC2012"), "JPEGImages")
  labels = next(
    (root / f"SegmentationClass{kind}" for kind in ("Aug", "") if (root / f"SegmentationClass{kind}").is_dir()), None
  )
  if labels is None:
    raise InputError(f"{root}: found neither SegmentationClassAug/ nor SegmentationClass/, expected one of them")
  names = _lines(root / "ImageSets" / "Segmentation" / "val.txt")
  items = [
    Item(name, os.fspath(root / "JPEGImages" / f"{name}.jpg"), os.fspath(labels / f"{name}.png")) for name in names
  ]
  source = FileSource(items, 1 + len(VOC_CLASSES), LabelFormat(ignore=(IGNORE,)))
  folds = {fold: list(range(5 * fold + 1, 5 * fold + 6)) for fold in range(NUM_FOLDS)}
  if lists is None:
    table = scan_classes(source)
    queries = {fold: [(i, c) for i in range(len(items)) for c in folds[fold] if table[i, c]] for fold in folds}
  else:
    places = {name: index for index, name in enumerate(names)}
    files = {fold: Path(lists) / f"fold{fold}.txt" for fold in folds}
    # Those of the folds that are asked for are enough; where there is none, the first one is missing.
    folds = {fold: folds[fold] for fold in folds if files[fold].exists()} or folds
    queries = {fold: _published(files[fold], places, folds[fold]) for fold in folds}
  pools = {c: [i for i, of in queries[fold] if of == c] for fold in folds for c in folds[fold]}
  notes = () if lists else ("Queries from the labels; the published lists have fewer (--lists).",)
  return FewShotData(source, dict(enumerate(VOC_CLASSES, 1)), folds, pools, queries, notes=notes)


def coco20i(directory: str | os.PathLike, cache: str | os.PathLike | None = None) -> FewShotData:
  """COCO-20i: classes, queries and prompts are drawn from val2014.

  From annotations/instances_val2014.json labels are drawn as `data.coco` draws them: the smaller object on top, crowds
  ignored where no object lies. Which images show a class is read from the labels once.

  Args:
    directory: the folder with val2014/ and annotations/ in it, or one with COCO2014/ in it.
    cache: a file to keep in which classes every image shows.

  Raises:
    InputError: a folder is missing, or annotations are missing or damaged.
  """
  root = _root(directory, ("", "COCO2014"), "val2014")
  source = _coco_masks(root) if (root / "annotations" / "val2014").is_dir() else _Drawn(root)
  table = scan_classes(source, cache)
  pools = {c: np.flatnonzero(table[:, c]).tolist() for c in range(1, 1 + len(COCO_CLASSES))}
  folds = {fold: list(range(fold + 1, 1 + len(COCO_CLASSES), NUM_FOLDS)) for fold in range(NUM_FOLDS)}
  notes = ("Episodes are drawn from a listing of its own, not from the published one.",)
  return FewShotData(source, dict(enumerate(COCO_CLASSES, 1)), folds, pools, None, notes=notes)


class _Drawn(CocoSource):
  """COCO annotations whose classes are those of the drawn label: an object may lie under others, or between pixels."""

  def __init__(self, root: Path):
    super().__init__(root, "val2014", 1 + len(COCO_CLASSES))

  def classes(self, index: int) -> None:
    return None


def _coco_masks(root: Path) -> FileSource:
  images, labels = list_images(root / "val2014"), list_images(root / "annotations" / "val2014")
  for name, path in labels.items():
    if name not in images:
      raise InputError(f"{path}: found no image for it, expected {root / 'val2014' / name}.jpg")
  items = [Item(name, images[name], path) for name, path in labels.items()]
  return FileSource(items, 1 + len(COCO_CLASSES), LabelFormat(ignore=(IGNORE,)))


def _fss_items(folder: Path) -> list[Item]:
  """Images by name with the masks beside them."""
  if not folder.is_dir():
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


def _published(path: Path, places: Mapping[str, int], classes: Sequence[int]) -> list[tuple[int, int]]:
  """(sample, class) of each line of a list."""
  pairs = []
  for line in _lines(path):
    name, _, number = line.rpartition("__")
    if name not in places or not number.isdecimal() or int(number) not in classes:
      raise InputError(
        f"{path}: found line {line!r}, expected IMAGE__CLASS with an image of val.txt and a class of {classes[0]}.."
        f"{classes[-1]}"
      )
    pairs.append((places[name], int(number)))
  return pairs


# ---------------------------------------------------------------------------------------------------- folders and lists


def _folder(directory: str | os.PathLike) -> Path:
  path = Path(directory).expanduser()
  if not path.is_dir():
    raise InputError(f"{directory}: folder not found, expected the dataset (--data-dir)")
  return path


def _root(directory: str | os.PathLike, places: Sequence[str], inside: str) -> Path:
  """The first of those places under the folder that has such a folder in it."""
  root = _folder(directory)
  for place in places:
    if (root / place / inside).is_dir():
      return root / place
  looked = ", ".join(os.path.join(directory, place, inside) for place in places)
  raise InputError(f"{directory}: found no {inside}/ in it, expected {looked}")


def _lines(path: str | os.PathLike) -> list[str]:
  """The lines of a text file that are not empty."""
  try:
    lines = Path(path).read_text().splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f"{path}: cannot be read ({error}), expected a text file with one name in each line") from error
  return [line.strip() for line in lines if line.strip()]
