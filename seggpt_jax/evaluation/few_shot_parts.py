"""The few-shot benchmarks of Matcher whose labels are outlines: a folder in, `FewShotData` out.

Layouts, classes and episodes are those of the published code of Matcher (Liu et al., ICLR 2024, aim-uofa/Matcher:
`datasets/README.md` and `matcher/data/{lvis,pascal_part,paco_part}.py`), which GF-SAM and INSID3 use unchanged.
- LVIS-92i: categories with more validation images than prompts, in the order of the file; fold i of 10 has the i-th,
  (i+10)-th, ..., 92 of them. 2300 episodes for each fold, classes in turn.
- PASCAL-Part: four folds: animals, indoor, person and vehicles. Classes are the parts of each object that have training
  and validation images, without the tail of aeroplanes. Up to 2500 episodes for each fold, classes in turn.
- PACO-Part: fold i of 4 has the i-th, (i+4)-th, ... of the 448 parts of the training file, without those that have too
  few validation images. 2500 episodes for each fold, classes at random.

The two benchmarks of parts show one object at a time, cut out of its image by its box.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from seggpt_jax.data.coco import parse_outline
from seggpt_jax.data.images import read_text
from seggpt_jax.data.outlines import Shape, mask_shape
from seggpt_jax.errors import InputError, one_line, reading_values
from seggpt_jax.evaluation.dataset_folders import find_root
from seggpt_jax.evaluation.few_shot_episodes import Pools
from seggpt_jax.evaluation.few_shot_samples import FewShotData, OutlinedRegions, Region
from seggpt_jax.evaluation.plain_pickle import read_plain_pickle
from seggpt_jax.files import parse_json

NUM_LVIS_FOLDS, NUM_PASCAL_FOLDS, NUM_PACO_FOLDS = 10, 4, 4
_LVIS_CLASSES_PER_FOLD, _PACO_CLASSES = 92, 448  # of the published files, with one prompt
_LVIS_EPISODES, _PART_EPISODES = 2300, 2500
_PASCAL_FOLDS = ("animals", "indoor", "person", "vehicles")
_PASCAL_LEFT_OUT = ("aeroplane", "TAIL")
_PASCAL_ANNOTATIONS = "Annotations_Part_json_merged_part_classes"


def lvis92i(directory: str | os.PathLike, shots: int = 1) -> FewShotData:
  """Opens LVIS-92i.

  Args:
    directory: the folder that contains lvis_val.pkl and coco/ with train2017/ and val2017/, or a folder that contains
      it as LVIS/.
    shots: number of prompts per query, which the classes depend on.

  Raises:
    InputError: a folder or the file is missing, or the file is damaged.
  """
  root = find_root(directory, ("", "LVIS"), "coco")
  path = root / "lvis_val.pkl"
  found = read_plain_pickle(path)
  with reading_values(path):
    kept = [category for category, images in found.items() if len(images) > shots]
    per_fold = len(kept) // NUM_LVIS_FOLDS
    if not per_fold:
      raise InputError(f"{path}: found {len(kept)} categories with more than {shots} images, expected at least 10")
    names = sorted({name for category in kept for name in found[category]})
    places = {name: index for index, name in enumerate(names)}
    pools = {c: [places[name] for name in found[category]] for c, category in enumerate(kept, 1)}
  folds = {fold: [1 + fold + NUM_LVIS_FOLDS * v for v in range(per_fold)] for fold in range(NUM_LVIS_FOLDS)}

  def shapes(sample: int, class_index: int) -> tuple[Shape, ...]:
    with reading_values(f"{path}: {names[sample]}"):
      annotations = found[kept[class_index - 1]][names[sample]]["annotations"]
      return _shapes([annotation["segmentation"] for annotation in annotations])

  regions = [Region(name, _coco_image(root, name), os.fspath(path)) for name in names]
  comparable = shots > 1 or per_fold == _LVIS_CLASSES_PER_FOLD
  note = f"{per_fold} classes in each fold; published figures are of {_LVIS_CLASSES_PER_FOLD}."
  return FewShotData(
    OutlinedRegions(regions, shapes),
    {c: f"category {category}" for c, category in enumerate(kept, 1)},
    folds,
    Pools(pools),
    dict.fromkeys(folds, _LVIS_EPISODES),
    classes_in_turn=True,
    notes=() if comparable else (note,),
    comparable=comparable,
  )


def paco_part(directory: str | os.PathLike, shots: int = 1) -> FewShotData:
  """Opens PACO-Part.

  Args:
    directory: the folder that contains paco/paco_part_train.pkl, paco/paco_part_val.pkl and coco/ with train2017/ and
      val2017/, or a folder that contains it as PACO-Part/.
    shots: number of prompts per query, which the classes depend on.

  Raises:
    InputError: a folder or a file is missing, or a file is damaged.
  """
  root = find_root(directory, ("", "PACO-Part"), "paco")
  train_path, path = root / "paco" / "paco_part_train.pkl", root / "paco" / "paco_part_val.pkl"
  with reading_values(train_path):
    categories = list(read_plain_pickle(train_path)["cid2img"])
  found = read_plain_pickle(path)
  parts = _Parts()
  with reading_values(path):
    for class_index, category in enumerate(categories, 1):
      # An image can be listed several times; the first one counts.
      images: dict[Any, str] = {}
      for image in found["cid2img"].get(category, ()):
        for id_, name in image.items():
          images.setdefault(id_, name)
      for id_, name in images.items():
        region = Region(f"{id_}#{category}", _coco_image(root, name), os.fspath(path))
        parts.add(class_index, id_, _paco_objects(found["img2anno"][id_], category, region))
  per_fold = len(categories) // NUM_PACO_FOLDS
  folds = {
    fold: [
      c for c in range(1 + fold, 1 + NUM_PACO_FOLDS * per_fold, NUM_PACO_FOLDS) if len(parts.images.get(c, ())) > shots
    ]
    for fold in range(NUM_PACO_FOLDS)
  }
  if empty := [fold for fold, classes in folds.items() if not classes]:
    raise InputError(f"{path}: found no part of fold {empty[0]} with more than {shots} images, expected some")
  comparable = len(categories) == _PACO_CLASSES
  note = f"Drawn from {len(categories)} parts; published figures are of {_PACO_CLASSES}."
  return FewShotData(
    OutlinedRegions(parts.regions, parts.shapes),
    {c: f"category {category}" for c, category in enumerate(categories, 1)},
    folds,
    Pools(parts.images, parts.samples),
    dict.fromkeys(folds, _PART_EPISODES),
    notes=() if comparable else (note,),
    comparable=comparable,
  )


def _paco_objects(annotations: Sequence[Mapping[str, Any]], category: Any, region: Region) -> list[_Object]:
  """Returns the objects of an image that have a part, in order, each with all outlines of the part."""
  objects: dict[Any, _Object] = {}
  for annotation in annotations:
    if annotation["category_id"] == category:
      key = annotation["obj_ann_id"]
      if key not in objects:
        left, top, width, height = annotation["obj_bbox"]
        box = int(left), int(top), int(left + width), int(top + height)
        objects[key] = _Object(region._replace(name=f"{region.name}#{key}", box=box), [])
      objects[key].segmentations.append(annotation["segmentation"])
  return list(objects.values())


def pascal_part(directory: str | os.PathLike) -> FewShotData:
  """Opens PASCAL-Part.

  Args:
    directory: the folder VOC2010 that contains all_obj_part_to_image.json, JPEGImages/ and
      Annotations_Part_json_merged_part_classes/, or a folder that contains it as VOC2010/, VOCdevkit/VOC2010/ or
      Pascal-Part/VOCdevkit/VOC2010/.

  Raises:
    InputError: a folder or a file is missing, or a file is damaged.
  """
  candidates = ("", "VOC2010", "VOCdevkit/VOC2010", "Pascal-Part/VOCdevkit/VOC2010")
  root = find_root(directory, candidates, _PASCAL_ANNOTATIONS)
  path = root / "all_obj_part_to_image.json"
  with reading_values(path):
    listed = list(_pascal_classes(_read_json(path)))
  lengths, names = collections.Counter[int](), {}
  folds: dict[int, list[int]] = {fold: [] for fold in range(NUM_PASCAL_FOLDS)}
  images = _PascalImages(root)
  parts = _Parts()
  for fold, object_name, part, ids, kept in tqdm(listed, desc="reading parts", unit="part", delay=2.0, leave=False):
    lengths[fold] += len(ids)
    if kept:
      names[class_index := 1 + len(names)] = f"{object_name} {part}"
      folds[fold].append(class_index)
      for id_ in ids:
        parts.add(class_index, id_, images.objects(id_, object_name, part))
  if empty := [name for fold, name in enumerate(_PASCAL_FOLDS) if not folds[fold]]:
    raise InputError(f"{path}: found no part of {empty[0]} with training and validation images, expected some")
  return FewShotData(
    OutlinedRegions(parts.regions, parts.shapes),
    names,
    folds,
    Pools(parts.images, parts.samples, distinct=True),
    {fold: min(lengths[fold], _PART_EPISODES) for fold in folds},
    classes_in_turn=True,
  )


def _pascal_classes(table: Any) -> Iterator[tuple[int, str, str, list[str], bool]]:
  """Yields the fold, the object, the part, its validation images, and whether the benchmark asks for the part."""
  for fold, category in enumerate(_PASCAL_FOLDS):
    for object_name, entry in table[category]["object"].items():
      for part, images in entry["part"].items():
        kept = bool(images["train"] and images["val"]) and (object_name, part) != _PASCAL_LEFT_OUT
        yield fold, object_name, part, [str(id_) for id_ in images["val"]], kept


class _PascalImages:
  """Reads the objects of an image; the parsed file of each image is kept, because it has many parts."""

  def __init__(self, root: Path):
    self._root, self._parsed = root, {}

  def objects(self, id_: str, object_name: str, part: str) -> list[_Object | None]:
    """Returns the objects of a name in an image, in order; None for those without the part."""
    path = self._root / _PASCAL_ANNOTATIONS / f"{os.path.basename(id_)}.json"
    image = self._root / "JPEGImages" / f"{os.path.basename(id_)}.jpg"
    with reading_values(path):
      if id_ not in self._parsed:
        self._parsed[id_] = _read_json(path)["object"]
      objects: list[_Object | None] = []
      for number, entry in enumerate(self._parsed[id_]):
        if entry["name"] == object_name:
          # The four values come in the order left, top, right, bottom.
          left, top, right, bottom = (int(value) for value in entry["bndbox"].values())
          masks = [mask for each in entry["parts"] if each["name"] == part for mask in each["mask"]]
          name = f"{id_}#{number}#{part}"
          region = Region(name, os.fspath(image), os.fspath(path), (left, top, right, bottom))
          objects.append(_Object(region, masks) if masks else None)
    return objects


class _Object(NamedTuple):
  """One object, with the COCO segmentations of a part of it."""

  region: Region
  segmentations: list[Any]


class _Parts:
  """The images, objects and outlines that a benchmark of parts is made of.

  Attributes:
    regions: the samples: one for each object and part.
    segmentations: the COCO segmentations of each sample.
    images: images of each class, in order.
  """

  def __init__(self) -> None:
    self.regions: list[Region] = []
    self.segmentations: list[list[Any]] = []
    self.images: dict[int, list[int]] = {}
    self._places: dict[Any, int] = {}
    self._samples: dict[tuple[int, int], list[int | None]] = {}

  def add(self, class_index: int, image: Any, objects: Sequence[_Object | None]) -> None:
    """Adds an image of a class with its objects. One without pixels cannot be a sample."""
    place = self._places.setdefault(image, len(self._places))
    self.images.setdefault(class_index, []).append(place)
    if (class_index, place) in self._samples:
      return
    samples = self._samples[class_index, place] = []
    for each in objects:
      if each is None or each.region.box[0] >= each.region.box[2] or each.region.box[1] >= each.region.box[3]:
        samples.append(None)
      else:
        samples.append(len(self.regions))
        self.regions.append(each.region)
        self.segmentations.append(each.segmentations)

  def samples(self, class_index: int, image: int) -> Sequence[int | None]:
    """Returns the samples of a class in an image, see `few_shot_episodes.Pools`."""
    return self._samples[class_index, image]

  def shapes(self, sample: int, _: int) -> tuple[Shape, ...]:
    """Returns the outlines of a sample."""
    with reading_values(f"{self.regions[sample].where}: {self.regions[sample].name}"):
      return _shapes(self.segmentations[sample])


def _shapes(segmentations: Sequence[Any]) -> tuple[Shape, ...]:
  """Returns COCO segmentations as outlines."""
  shapes = []
  for segmentation in segmentations:
    if isinstance(segmentation, np.ndarray) and segmentation.ndim == 2:
      shapes.append(mask_shape("", segmentation.astype(np.uint8), (0, 0), segmentation.shape))
    else:
      outline, size = parse_outline(segmentation)
      shapes.append(Shape("", outline, size))
  return tuple(shapes)


def _coco_image(root: Path, name: str) -> str:
  """Returns the path of a COCO image, of which the last folder and the file name count."""
  folder, file = os.path.split(str(name))
  return os.path.join(root, "coco", os.path.basename(folder), file)


def _read_json(path: Path) -> Any:
  try:
    return parse_json(read_text(path))
  except InputError:
    raise
  except ValueError as error:
    raise InputError(f"{path}: cannot be read as JSON: {one_line(error)}") from error
