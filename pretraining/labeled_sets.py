"""Measures how well a network segments real pictures by example, without training.

In: a network and a dataset, {train,val}/{images,labels} with labels of class indices. Out: for each class the
foreground IoU of validation images that show it, with one training image as the prompt, with several, and with the most
similar one; for comparison two answers that need no network, the prompt's own mask and the whole picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image
from tqdm import tqdm

from seggpt_jax.errors import InputError
from seggpt_jax.formats.images import read_image
from seggpt_jax.formats.labels import LabelFormat, read_labels
from seggpt_jax.inference.predictor import Predictor, Prompt
from seggpt_jax.inference.queries import PromptFiles
from seggpt_jax.inference.trained import Objects, measure_objects
from seggpt_jax.retrieval.labeled_images import list_prompts
from seggpt_jax.retrieval.prompt_index import PromptIndex

COLUMNS = ("one_prompt", "ensemble", "similar", "tiles", "copy", "constant")


def evaluate_set(
  predictor: Predictor, index: PromptIndex, dataset: Path, *, num_queries: int = 24, num_prompts: int = 5, seed: int = 0
) -> dict[int, dict[str, float]]:
  """Scores a network on the validation images of a dataset, one class at a time.

  Args:
    predictor: the network.
    index: index of the dataset's training images, which finds the most similar one.
    dataset: folder with `val/images` and `val/labels`.
    num_queries: largest number of validation images for each class, drawn at random.
    num_prompts: size of the ensemble.
    seed: seed of the queries and prompts.

  Returns:
    For each class the means over its queries: foreground IoU, 0..1, of `one_prompt`, of the `ensemble` and of the most
    `similar` training image that shows the class; of that one on `tiles` at the scale of the class's objects, or
    on whole images where these show them large enough; of the first prompt's mask as the answer (`copy`); of
    the whole picture as the answer (`constant`); and the number of `queries`.

  Raises:
    InputError: a file is missing or cannot be read, or no class is in both parts.
  """
  files = list_prompts(dataset / "val" / "images", dataset / "val" / "labels")
  labels = LabelFormat()
  queries = [(read_image(file.image), read_labels(file.labels, labels)) for file in files]
  holds, results = index.facts.holds, {}
  classes = [c for c in np.flatnonzero(holds.any(axis=0)).tolist() if any((label == c).any() for _, label in queries)]
  if not classes:
    raise InputError(f"{dataset}: found no class that both train and val show, expected some")
  generator = np.random.default_rng(seed)
  for value in classes:
    shown = generator.permutation([place for place, (_, label) in enumerate(queries) if (label == value).any()])
    candidates, scores = np.flatnonzero(holds[:, value]), []
    objects = measure_objects([index.files[place].labels for place in candidates], labels)
    scale = Objects({value: objects.sides[value]}, objects.shape).scale(predictor.config)
    for place in tqdm(shown[:num_queries].tolist(), f"{dataset.name}, class {value}", unit="query"):
      image, label = queries[place]
      drawn = generator.permutation(candidates)[:num_prompts]
      (similarity,) = index.score_many([image])
      prompts = [_prompt(index.files[chosen], value) for chosen in drawn]
      nearest = _prompt(index.files[candidates[np.argmax(similarity[candidates])]], value)
      answers = [predictor.predict(image, asked).labels > 0 for asked in (prompts[:1], prompts, [nearest])]
      answers.append(predictor.predict(image, [nearest], **scale).labels > 0 if scale else answers[2])
      height, width = label.shape
      copied = Image.fromarray(prompts[0][1]).resize((width, height), Image.Resampling.NEAREST)
      answers += [np.asarray(copied) > 0, np.ones(label.shape, bool)]
      scores.append([_iou(answer, label == value) for answer in answers])
    means = np.mean(scores, axis=0).tolist()
    results[value] = {**dict(zip(COLUMNS, means, strict=True)), "queries": len(scores)}
  return results


def mean_over_classes(results: dict[int, dict[str, float]]) -> dict[str, float]:
  """Returns the mean of each column over the classes; every class counts the same."""
  return {key: float(np.mean([row[key] for row in results.values()])) for key in COLUMNS}


def table(name: str, results: dict[int, dict[str, float]], num_prompts: int) -> str:
  """Returns the results of one dataset as a plain-text table, with a row for each class and one for their mean."""
  titles = ("1 prompt", f"{num_prompts} prompts", "similar", "tiles", "copied", "constant")
  rows: Sequence[tuple[str, dict[str, float]]] = [
    *((f"{name}, class {value}", row) for value, row in results.items()),
    (f"{name}, mean", mean_over_classes(results)),
  ]
  width = max(len(title) for title, _ in rows)
  lines = [" " * width + "".join(f"{title:>11}" for title in titles)]
  return "\n".join(
    lines + [f"{title:<{width}}" + "".join(f"{row[key]:>11.3f}" for key in COLUMNS) for title, row in rows]
  )


def _prompt(files: PromptFiles, value: int) -> Prompt:
  """Reads a training image with the mask of one class, 0 and 1."""
  return read_image(files.image), (read_labels(files.labels, LabelFormat()) == value).astype(np.uint8)


def _iou(found: Bool[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"]) -> float | Float[np.ndarray, ""]:
  """Returns the intersection over union of two masks; the truth is not empty."""
  return (found & truth).sum() / (found | truth).sum()
