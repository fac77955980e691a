"""The few-shot benchmarks by name, and the readers of those outside of everyday photographs.

A folder in, `FewShotData` out. A new benchmark is a reader and an entry in `BENCHMARKS`.

Layouts, classes and episodes are those of published code:
- iSAID-5i (Yao et al., 2021): the folders of caoql98/SDM, and the lists of linhanwang/SCCNet, which GF-SAM and INSID3
  also read. Fold i has classes 5i+1 .. 5i+5; each pair of a list is a query once.
- ISIC 2018 and chest X-rays (Lei et al., ECCV 2022): slei109/PATNet, `data/isic.py` and `data/lung.py`. One fold, 600
  episodes, classes in turn, queries and prompts at random. Masks are foreground from 128 on.
- SUIM (Islam et al., 2020): Vision-Kek/ABCDFSS, `data/suim.py`, which INSID3 also follows. One fold, seven classes in
  turn, and as many episodes as there are masks that are not empty.
"""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seggpt_jax.data.class_index import scan_classes
from seggpt_jax.data.sources import FileSource
from seggpt_jax.errors import InputError
from seggpt_jax.evaluation import few_shot_data
from seggpt_jax.evaluation.class_names import ISAID_CLASSES
from seggpt_jax.evaluation.dataset_folders import find_root
from seggpt_jax.evaluation.few_shot_data import listed_queries, pools_of_queries
from seggpt_jax.evaluation.few_shot_episodes import Pools
from seggpt_jax.evaluation.few_shot_samples import FewShotData, LabelMaps, StretchedImages
from seggpt_jax.formats.images import list_images, read_text
from seggpt_jax.formats.labels import IGNORE, LabelFormat
from seggpt_jax.formats.layouts import Item

NUM_ISAID_FOLDS = 3
_NUM_EPISODES = 600  # of ISIC and chest X-rays
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
_MASKS = LabelFormat("binary", threshold=127)


def isaid5i(directory: str | os.PathLike, lists: str | os.PathLike | None = None) -> FewShotData:
  """Opens iSAID-5i, aerial images in patches, where pairs of a validation patch and one of its classes are queries.

  Args:
    directory: the folder that contains val/images/NAME.png and val/semantic_png/NAME_instance_color_RGB.png, or a
      folder that contains it as iSAID/ or iSAID_patches/.
    lists: folder with the published fold0.txt .. fold2.txt, whose lines are NAME__CLASS; by default splits/val if it is
      there, and otherwise every pair that the labels show.

  Raises:
    InputError: a folder, list or image is missing.
  """
  candidates = ("", "iSAID", "iSAID_patches", "remote_sensing/iSAID_patches")
  root = find_root(directory, candidates, "val/semantic_png")
  items = []
  for name, path in list_images(root / "val" / "semantic_png").items():
    if not name.endswith(_ISAID_ENDING):
      raise InputError(f"{path}: found this name, expected NAME{_ISAID_ENDING}.png")
    name = name.removesuffix(_ISAID_ENDING)
    items.append(_item(name, root / "val" / "images" / f"{name}.png", Path(path)))
  if lists is None and (root / "splits" / "val").is_dir():
    lists = root / "splits" / "val"
  source = FileSource(items, 1 + len(ISAID_CLASSES), LabelFormat(ignore=(IGNORE,)))
  folds = {fold: list(range(5 * fold + 1, 5 * fold + 6)) for fold in range(NUM_ISAID_FOLDS)}
  queries = listed_queries(source, [item.name for item in items], folds, lists)
  folds = {fold: folds[fold] for fold in queries}
  return FewShotData(
    LabelMaps(source),
    dict(enumerate(ISAID_CLASSES, 1)),
    folds,
    pools_of_queries(folds, queries),
    {fold: len(pairs) for fold, pairs in queries.items()},
    queries=queries,
    notes=() if lists else ("Queries from the labels, not from the published lists (--lists).",),
  )


def isic2018(directory: str | os.PathLike) -> FewShotData:
  """Opens ISIC 2018, skin lesions of three kinds.

  Images are at the size of their masks: a published script for sorting them stores them as 512 x 512 pixels.

  Args:
    directory: the folder that contains ISIC2018_Task1-2_Training_Input/ and ISIC2018_Task1_Training_GroundTruth/, or a
      folder that contains it as ISIC/. The images are sorted into folders 1, 2 and 3, or the published class_id.csv
      with the columns ID and Class is next to the two folders.

  Raises:
    InputError: a folder, image or mask is missing, or the list of classes cannot be read.
  """
  root = find_root(directory, ("", "ISIC"), _ISIC_IMAGES)
  table = root / "class_id.csv"
  images = _sorted_lesions(root / _ISIC_IMAGES) if not table.exists() else _listed_lesions(root / _ISIC_IMAGES, table)
  items = [
    [_item(f"{number}/{image.stem}", image, root / _ISIC_MASKS / f"{image.stem}_segmentation.png") for image in paths]
    for number, paths in enumerate(images, 1)
  ]
  source = FileSource([item for group in items for item in group], 2, _MASKS)
  names = [name.replace("_", " ") for name in _ISIC_CLASSES]
  return _one_fold(StretchedImages(source), names, [len(group) for group in items])


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


def chest_xray(directory: str | os.PathLike) -> FewShotData:
  """Opens the chest X-rays of Montgomery and Shenzhen with masks of the lungs.

  Args:
    directory: the folder that contains CXR_png/NAME.png and masks/NAME.png or masks/NAME_mask.png, or a folder that
      contains it as LungSegmentation/ or "Lung Segmentation"/.

  Raises:
    InputError: a folder or an image is missing.
  """
  root = find_root(directory, ("", "LungSegmentation", "Lung Segmentation"), "CXR_png")
  masks = sorted(map(Path, list_images(root / "masks").values()))
  names = [mask.stem.removesuffix("_mask") for mask in masks]
  items = [_item(name, root / "CXR_png" / f"{name}.png", mask) for name, mask in zip(names, masks, strict=True)]
  return _one_fold(LabelMaps(FileSource(items, 2, _MASKS), own_class=True), ["lung"], [len(items)])


def suim(directory: str | os.PathLike, cache: str | os.PathLike | None = None) -> FewShotData:
  """Opens SUIM, underwater images of seven classes, training and test images together.

  Args:
    directory: the folder that contains images/NAME.jpg and a folder of masks for each class: masks/FV, HD, PF, RI, RO,
      SR and WR; or a folder that contains it as SUIM/ or suim_merged/.
    cache: file to keep the list of masks in that are not empty.

  Raises:
    InputError: a folder or an image is missing, or a mask cannot be read.
  """
  root = find_root(directory, ("", "SUIM", "suim_merged"), "masks")
  groups = []
  for code in _SUIM_CLASSES:
    masks = sorted(map(Path, list_images(root / "masks" / code).values()))
    groups.append([_item(f"{code}/{mask.stem}", root / "images" / f"{mask.stem}.jpg", mask) for mask in masks])
  shown = scan_classes(FileSource([item for group in groups for item in group], 2, _MASKS), cache)[:, 1]
  places = iter(shown)
  groups = [[item for item in group if next(places)] for group in groups]
  source = FileSource([item for group in groups for item in group], 2, _MASKS)
  sizes = [len(group) for group in groups]
  return _one_fold(LabelMaps(source, own_class=True), list(_SUIM_CLASSES.values()), sizes, num_episodes=sum(sizes))


def _item(name: str, image: Path, mask: Path) -> Item:
  for path, other in ((image, mask), (mask, image)):
    if not path.exists():
      raise InputError(f"{path}: not found; it belongs to {other}")
  return Item(name, os.fspath(image), os.fspath(mask))


def _one_fold(
  samples: LabelMaps, names: Sequence[str], sizes: Sequence[int], num_episodes: int = _NUM_EPISODES
) -> FewShotData:
  """Returns a benchmark of one fold whose samples come class after class, `sizes` of each."""
  ends = np.cumsum(sizes).tolist()
  pools = {c: list(range(end - size, end)) for c, (end, size) in enumerate(zip(ends, sizes, strict=True), 1)}
  return FewShotData(
    samples, dict(enumerate(names, 1)), {0: list(pools)}, Pools(pools), {0: num_episodes}, classes_in_turn=True
  )


class Opening(NamedTuple):
  """The choices of the user that a reader may need.

  Attributes:
    directory: folder of the dataset.
    lists: folder with published lists, or file with names of classes, or None.
    cache: file to keep the classes of every image in.
  """

  directory: str | os.PathLike
  lists: str | None = None
  cache: str | os.PathLike | None = None


@dataclasses.dataclass(frozen=True)
class FewShotBenchmark:
  """A few-shot benchmark.

  Attributes:
    read: opens the dataset.
    num_folds: number of folds.
    has_lists: whether `Opening.lists` has an effect.
  """

  read: Callable[[Opening], FewShotData]
  num_folds: int = 1
  has_lists: bool = False


BENCHMARKS: Mapping[str, FewShotBenchmark] = {
  "fss1000": FewShotBenchmark(lambda given: few_shot_data.fss1000(given.directory, given.lists), has_lists=True),
  "pascal5i": FewShotBenchmark(
    lambda given: few_shot_data.pascal5i(given.directory, given.lists), few_shot_data.NUM_FOLDS, True
  ),
  "coco20i": FewShotBenchmark(
    lambda given: few_shot_data.coco20i(given.directory, given.cache), few_shot_data.NUM_FOLDS
  ),
  "isaid5i": FewShotBenchmark(
    lambda given: isaid5i(given.directory, given.lists),
    NUM_ISAID_FOLDS,
    True,
  ),
  "isic2018": FewShotBenchmark(lambda given: isic2018(given.directory)),
  "suim": FewShotBenchmark(lambda given: suim(given.directory, given.cache)),
  "chest_xray": FewShotBenchmark(lambda given: chest_xray(given.directory)),
}
