"""Predictions as annotations that labeling tools load: COCO, labelme and YOLO files of instances with polygons.

In: predictions one by one, then the entries of a finished run. Out: for each image coco/NAME.json, labelme/NAME.json
and yolo/labels/NAME.txt; for the run annotations.json, joined from the files in coco/, and yolo/data.yaml.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from seggpt_jax.data.ledger import read_note
from seggpt_jax.errors import InputError
from seggpt_jax.files import is_plain_text
from seggpt_jax.formats.labels import LabelFormat, classes_in, read_labels
from seggpt_jax.inference import outputs
from seggpt_jax.inference.instances import TOLERANCE, Instance, instances
from seggpt_jax.inference.prediction import Prediction
from seggpt_jax.inference.queries import Query
from seggpt_jax.inference.trained import run_data

COCO_FILE = "annotations.json"
_LABELME_VERSION = "5.5.0"  # labelme reads files of other versions too, and says so
_RESERVED = ("_background_", "__ignore__")  # labels with which labelme's converters mean no class
_DATA_YAML = """\
# Put the images into images/ next to labels/, under the same names.
train: images
val: images
names:
"""

_MOST_TOLERANCE = 1000  # pixels


@dataclasses.dataclass(frozen=True)
class AnnotationOptions:
  """Options of annotations.

  Raises:
    InputError: a name is empty, given twice or reserved, or the tolerance is negative or very large.
  """

  names: tuple[str, ...] = ()  # names of classes 1, 2, ...; further classes are called class_N
  tolerance: float | int = TOLERANCE  # see `instances`
  # Folder that the `file_name` of COCO is relative to. Images outside of it, or all without it, have their file name
  # alone.
  root: Path | None = None

  def __post_init__(self):
    if not 0 <= self.tolerance <= _MOST_TOLERANCE:
      raise InputError(
        f"polygon_tolerance: found {self.tolerance}, expected a number of pixels, or 0, at most {_MOST_TOLERANCE}"
      )
    for place, name in enumerate(self.names):
      if not name or name in _RESERVED or name in self.names[:place] or not is_plain_text(name):
        why = " twice" if name in self.names[:place] else ""
        raise InputError(f"class_names: found {name!a}{why}, expected a different name for each of classes 1, 2, ...")

  def name(self, class_index: int) -> str:
    """Returns the name of a class."""
    return self.names[class_index - 1] if class_index <= len(self.names) else f"class_{class_index}"


def class_names(
  given: Sequence[str], model_path: str | os.PathLike, prompt_labels: Iterable[Path], labels: LabelFormat
) -> tuple[str, ...]:
  """Returns the names of classes 1, 2, ...: given by the user, else by the training run.

  Args:
    given: the user's names; none for those of the run.
    model_path: weights, a training run, or the run of an adapter.
    prompt_labels: label files of all prompts, which show how many classes there are; unreadable ones do not count.
    labels: format of the label files.

  Raises:
    InputError: the number of the given names is not that of the classes, or the run's config.json cannot be read.
  """
  path, data = run_data(model_path)
  if not given:
    stored = data.get("class_names") or ()
    if not isinstance(stored, list | tuple) or not all(isinstance(name, str) for name in stored):
      raise InputError(f"{path}: data.class_names: found {stored!r}, expected a list of names")
    # A command line passes crack,hole as one string.
    return tuple(name.strip() for names in stored for name in names.split(","))
  trained, shown = data.get("num_classes", 1), 0
  if not isinstance(trained, int):
    raise InputError(f"{path}: data.num_classes: found {trained!r}, expected a number")
  for file in sorted(set(prompt_labels)):
    with contextlib.suppress(InputError):
      shown = max([shown, *classes_in(read_labels(file, labels))])
  expected = max(shown, trained - 1)
  if len(given) != expected:
    counted = "the training run" if trained > shown else "the prompts"
    found = f"{','.join(given)}, {len(given)} name{'s' * (len(given) != 1)}"
    raise InputError(
      f"class_names: found {found}, expected {expected}, one for each of classes 1 to {expected} of {counted}; the "
      "background has none"
    )
  return tuple(name.strip() for name in given)


def write(
  directory: Path,
  query: Query,
  prediction: Prediction,
  kinds: Sequence[outputs.Kind],
  options: AnnotationOptions,
  least_area: int = 0,
) -> dict[str, Any]:
  """Writes the annotations of one image. Predictions with stitched seams go to stitch/.

  Args:
    directory: folder of the results.
    query: the files of the image.
    prediction: its prediction.
    kinds: kinds of results; kinds other than annotations are left to `outputs.write_prediction`.
    options: names of classes, and how polygons are simplified.
    least_area: see `instances`.

  Returns:
    JSON values for the run's ledger, from which `finish` knows what was written; none without annotations.

  Raises:
    InputError: the directory cannot be written to.
  """
  kinds = [kind for kind in kinds if kind in outputs.ANNOTATION_KINDS]
  if not kinds:
    return {}
  versions = outputs.versions(prediction)
  for folder, each in versions.items():
    found, size = instances(each, least_area, options.tolerance), each.labels.shape
    for kind in kinds:
      path = directory / folder / kind / f"{query.name}.json"
      if kind == "coco":
        outputs.write_json(path, coco_image(_file_name(query, options.root), found, size), None)
      elif kind == "labelme":
        outputs.write_json(path, _labelme(path, query, found, size, options), None)
      else:
        outputs.write_text(directory / folder / kind / "labels" / f"{query.name}.txt", _yolo(found, size))
  return {"annotated": list(versions), "classes": prediction.classes[-1]}


def _file_name(query: Query, root: Path | None) -> str:
  """Returns the path of an image below a folder, or its name alone outside of it."""
  path, root = query.image.absolute(), (root or query.image.parent).absolute()
  return (path.relative_to(root) if path.is_relative_to(root) else Path(path.name)).as_posix()


def coco_image(file_name: str, found: Sequence[Instance], size: Sequence[int]) -> dict[str, Any]:
  """Returns one image of a COCO file, without ids."""
  annotations = [
    {
      "category_id": each.class_index,
      "segmentation": [each.polygon.round(2).ravel().tolist()],
      "area": each.area,
      "bbox": list(each.box),
      "iscrowd": 0,
      "score": round(each.confidence, 4),
    }
    for each in found
  ]
  return {"image": {"file_name": file_name, "height": size[0], "width": size[1]}, "annotations": annotations}


def _labelme(
  path: Path, query: Query, found: Sequence[Instance], size: Sequence[int], options: AnnotationOptions
) -> dict[str, Any]:
  """Returns a labelme file; `path` is where it goes."""
  shapes = [
    {
      "label": options.name(each.class_index),
      "points": each.polygon.round(2).tolist(),
      "group_id": None,
      "description": f"confidence {each.confidence:.2f}",
      "shape_type": "polygon",
      "flags": {},
    }
    for each in found
  ]
  image = query.image.parent.resolve() / query.image.name
  with contextlib.suppress(ValueError):  # on Windows there is no relative path to another drive
    image = Path(os.path.relpath(image, path.parent.resolve()))
  return {
    "version": _LABELME_VERSION,
    "flags": {},
    "shapes": shapes,
    "imagePath": image.as_posix(),
    "imageData": None,
    "imageHeight": size[0],
    "imageWidth": size[1],
  }


def _yolo(found: Sequence[Instance], size: Sequence[int]) -> str:
  """Returns one line for each instance: its class from 0, then x and y of each corner as shares of width and height."""
  lines = []
  for each in found:
    corners = (each.polygon / [size[1], size[0]]).ravel()
    lines.append(" ".join([str(each.class_index - 1), *(f"{value:.6f}" for value in corners)]) + "\n")
  return "".join(lines)


def finish(
  directory: Path,
  queries: Sequence[Query],
  entries: Mapping[str, Mapping[str, Any]],
  kinds: Sequence[outputs.Kind],
  options: AnnotationOptions,
) -> None:
  """Writes the files that describe all images: annotations.json for "coco", yolo/data.yaml for "yolo".

  Args:
    directory: folder of the results.
    queries: all queries of the run.
    entries: entries of the run's ledger, by name of the query, with what `write` returned.
    kinds: kinds of results.
    options: names of classes.

  Raises:
    InputError: a file cannot be written, or an image was finished without annotations.
  """
  if not {"coco", "yolo"} & set(kinds):
    return
  good = [query for query in queries if "bad" not in entries[query.name]]
  for query in good:
    if "annotated" not in entries[query.name]:
      raise InputError(
        f"{directory}: {query.name} was finished without annotations, expected some; start over without --resume"
      )
  last = max([len(options.names), *(entries[query.name]["classes"] for query in good)])
  names = {index: options.name(index) for index in range(1, last + 1)}
  for folder in sorted({each for query in good for each in entries[query.name]["annotated"]}):
    of_folder = [query for query in good if folder in entries[query.name]["annotated"]]
    if "coco" in kinds:
      parts = (_read_coco(directory / folder / "coco" / f"{query.name}.json") for query in of_folder)
      head = {"info": {"description": "predictions of seggpt-jax"}, "licenses": []}
      outputs.write_json(directory / folder / COCO_FILE, head | join_coco(parts, names), None)
    if "yolo" in kinds:
      lines = (f"  {index - 1}: {json.dumps(name, ensure_ascii=False)}\n" for index, name in names.items())
      outputs.write_text(directory / folder / "yolo" / "data.yaml", _DATA_YAML + "".join(lines))


def _read_coco(path: Path) -> dict[str, Any]:
  part = read_note(path)
  if part is None or not {"image", "annotations"} <= part.keys():
    raise InputError(f"{path}: missing or damaged, expected what this run has written; start over without --resume")
  return part


def join_coco(parts: Iterable[Mapping[str, Any]], names: Mapping[int, str]) -> dict[str, Any]:
  """Joins images from `coco_image` to one COCO dataset with these names of classes."""
  images, annotations = [], []
  for image_id, part in enumerate(parts, start=1):
    images.append({"id": image_id, **part["image"]})
    for each in part["annotations"]:
      annotations.append({"id": 1 + len(annotations), "image_id": image_id, **each})
  categories = [{"id": index, "name": name, "supercategory": ""} for index, name in names.items()]
  return {"images": images, "annotations": annotations, "categories": categories}
