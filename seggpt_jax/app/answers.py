"""The answers of the service: predictions and stored sets in, JSON values out, and their models for OpenAPI."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pydantic
from pydantic import Field

from seggpt_jax.app.fields import PredictFields
from seggpt_jax.app.prompt_sets import PromptSet
from seggpt_jax.inference.annotation_files import AnnotationOptions, coco_image, join_coco
from seggpt_jax.inference.instances import Instance, instances
from seggpt_jax.inference.pictures import encode_png
from seggpt_jax.inference.prediction import Prediction


class ErrorAnswer(pydantic.BaseModel):
  """Why a request was refused, in one line."""

  error: str


class ClassAnswer(pydantic.BaseModel):
  """A class in one image."""

  index: int = Field(alias="class")
  pixels: int
  share: float
  confidence: float | None = Field(None, description="Mean over its pixels, with confidence=true.")


class PolygonAnswer(pydantic.BaseModel):
  """An object in one image."""

  index: int = Field(alias="class")
  name: str
  polygon: list[tuple[float, float]] = Field(description="Corners x, y in pixels; holes are joined to the outline.")
  area: int
  box: tuple[int, int, int, int] = Field(description="Left, top, width and height in pixels.")
  confidence: float


class ImageAnswer(pydantic.BaseModel):
  """The prediction for one image."""

  height: int
  width: int
  classes: list[ClassAnswer]
  labels: str = Field("", description="Label map, a PNG file in base64.")
  overlay: str = Field("", description="The image with its classes in color, a PNG file in base64.")
  polygons: list[PolygonAnswer] = []
  confidence: str = Field("", description="Gray PNG file in base64, 255 for certain.")


class PredictAnswer(pydantic.BaseModel):
  """The predictions for all images of a request."""

  model: str
  predictions: list[ImageAnswer]
  coco: dict[str, Any] = Field({}, description="With answer=coco: images, annotations and categories.")
  warnings: list[str]


class SetAnswer(pydantic.BaseModel):
  """A stored set of prompts."""

  name: str
  classes: list[int]
  sizes: list[tuple[int, int]] = Field(description="Height and width of each prompt.")
  bytes: int
  pinned: bool = Field(description="Stored at the start; it stays when memory is short.")
  warnings: list[str] = []


class SetsAnswer(pydantic.BaseModel):
  """All stored sets of prompts."""

  prompts: list[SetAnswer]


class HealthAnswer(pydantic.BaseModel):
  """The state of the service; details need the token."""

  status: Literal["loading", "ready", "failed", "closed"]
  model: str = Field("", description="Name of the first network.")
  models: list[str] = []
  queue: int = Field(0, description="Images that wait for a network.")


def describe(
  predictions: Sequence[Prediction], images: Sequence[np.ndarray], fields: PredictFields, class_names: tuple[str, ...]
) -> dict[str, Any]:
  """Returns what a request asks for about its images.

  Args:
    predictions: the predictions.
    images: the images.
    fields: the request.
    class_names: names of classes 1, 2, ..., as far as they are known.
  """
  wanted, names = set(fields.answer), AnnotationOptions(class_names)
  objects = [instances(each) for each in predictions] if wanted & {"polygons", "coco"} else [[] for _ in predictions]
  entries = []
  for prediction, image, found in zip(predictions, images, objects, strict=True):
    entry = _shares(prediction, fields.confidence)
    if "labels" in wanted:
      entry["labels"] = _base64(prediction.labels)
    if "overlay" in wanted:
      entry["overlay"] = _base64(prediction.overlay(image))
    if "polygons" in wanted:
      entry["polygons"] = [_polygon(each, names) for each in found]
    entries.append(entry)
  if "coco" not in wanted:
    return {"predictions": entries}
  parts = [
    coco_image(file.file_name, found, prediction.labels.shape)
    for file, found, prediction in zip(fields.image, objects, predictions, strict=True)
  ]
  last = max(len(class_names), *(each.classes[-1] for each in predictions))
  coco = join_coco(parts, {index: names.name(index) for index in range(1, last + 1)})
  return {"predictions": entries, "coco": coco}


def _shares(prediction: Prediction, confidence: bool) -> dict[str, Any]:
  """Returns the size of an image and how much of it each class has."""
  labels = prediction.labels
  counts = np.bincount(labels.ravel(), minlength=max(prediction.classes) + 1)
  classes: list[dict[str, Any]] = [
    {"class": index, "pixels": int(counts[index]), "share": float(counts[index] / labels.size)}
    for index in prediction.classes
  ]
  entry = {"height": labels.shape[0], "width": labels.shape[1], "classes": classes}
  if confidence:
    values = prediction.confidence()
    sums = np.bincount(labels.ravel(), values.ravel(), minlength=len(counts))
    for each in classes:
      each["confidence"] = float(sums[each["class"]] / each["pixels"]) if each["pixels"] else None
    entry["confidence"] = _base64(np.round(255 * values).astype(np.uint8))
  return entry


def _polygon(found: Instance, names: AnnotationOptions) -> dict[str, Any]:
  entry = {"class": found.class_index, "name": names.name(found.class_index), "area": found.area, "box": found.box}
  return entry | {"polygon": found.polygon.round(2).tolist(), "confidence": round(found.confidence, 4)}


def _base64(pixels: np.ndarray) -> str:
  return base64.b64encode(encode_png(pixels)).decode()


def describe_set(name: str, prompts: PromptSet) -> dict[str, Any]:
  """Returns a set of prompts without its images."""
  return {
    "name": name,
    "classes": list(prompts.classes),
    "sizes": prompts.sizes,
    "bytes": prompts.num_bytes,
    "pinned": prompts.pinned,
  }
