"""Compares inference options on an inspection line: catch rate, yield rate and PES on stained circuit boards.

  python -m benchmarks.inspection --model_path=small

Each board has one kind of stain: flux residue, a burn, a scratch or a sticker, on 1 % to 20 % of the picture. Positive
prompts of a query have the same kind of stain, negative prompts another. Rows differ in the split, in the prompts
(chosen by similarity or at random), and in their number.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from absl import app, flags
from PIL import Image

from benchmarks import report
from seggpt_jax.evaluation.inspection_report import Results, inspect, write
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.queries import list_queries
from seggpt_jax.model import parameters, weights
from seggpt_jax.retrieval.labeled_images import list_prompts, read_facts
from seggpt_jax.retrieval.mapping import by_group, choose
from seggpt_jax.retrieval.prompt_index import PromptIndex
from seggpt_jax.synthetic.boards import generate_board

_MODEL_PATH = flags.DEFINE_string("model_path", "small", "Weights directory, training run, or packaged name.")
_NUM_QUERIES = flags.DEFINE_integer("num_queries", 48, "Number of boards to inspect.", 4)
_NUM_PROMPTS = flags.DEFINE_integer("num_prompts", 160, "Number of boards to choose prompts from.", 20)
_SIZE = flags.DEFINE_integer("size", 192, "Side of a board in pixels.", 32)
_BOARDS = flags.DEFINE_string("boards", None, "Folder for the boards; by default a temporary one.")
_REPORT = flags.DEFINE_string("report", None, "Folder for the report of the last row.")

# Inference options, how prompts are chosen, and their number.
ROWS = (
  (InferenceOptions(1), "similarity", 1),
  (InferenceOptions(1), "similarity", 5),
  (InferenceOptions(1), "random", 1),
  (InferenceOptions(1), "random", 5),
  (InferenceOptions(2), "similarity", 1),
  (InferenceOptions(2), "similarity", 5),
  (InferenceOptions(2, foreground_tiles=True), "similarity", 1),
  (InferenceOptions(2, foreground_tiles=True), "similarity", 5),
  (InferenceOptions((1, 2), foreground_tiles=True), "similarity", 5),
  (InferenceOptions(4, foreground_tiles=True), "similarity", 1),
  (InferenceOptions((1, 2, 4), foreground_tiles=True), "similarity", 1),
  (InferenceOptions((1, 2)), "similarity", 1),
)
KINDS = ("flux", "burn", "scratch", "sticker")


def stain(kind: str, generator: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, float]:
  """Draws a stain; returns its mask, its color 0..255 and its opacity."""
  area = size**2 * 10 ** generator.uniform(-2, np.log10(0.2))
  mask, center = np.zeros((size, size), np.uint8), generator.uniform(0.2, 0.8, 2) * size
  if kind == "scratch":
    angle, length = generator.uniform(0, np.pi), generator.uniform(0.4, 0.8) * size
    half = length / 2 * np.array([np.cos(angle), np.sin(angle)])
    ends = (np.round(center + sign * half).astype(int).tolist() for sign in (-1, 1))
    cv2.line(mask, *ends, 1, thickness=max(round(area / length), 3))
  elif kind == "sticker":
    sides = np.sqrt(area) * np.array([1.3, 1 / 1.3])
    corners = cv2.boxPoints((center.tolist(), sides.tolist(), float(generator.uniform(0, 180))))
    cv2.fillPoly(mask, [np.round(corners).astype(np.int32)], 1)
  else:
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    waves = sum(generator.uniform(0, 0.2) * np.sin(n * angles + generator.uniform(0, 7)) for n in (2, 3, 5))
    radius = np.sqrt(area / np.pi) * (1 + waves)
    outline = center + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 1)
  color, opacity = {
    "flux": ((235, 232, 215), 0.75),
    "burn": ((38, 24, 14), 0.85),
    "scratch": ((200, 205, 210), 0.95),
    "sticker": ((245, 205, 30), 1.0),
  }[kind]
  return mask, np.array(color) + generator.normal(0, 6, 3), opacity


def stained_board(kind: str, generator: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Draws a board with a stain; returns the image and its label, which is 1 on the stain."""
  image = generate_board(generator, size, count=(0, 0), scale=2.0).image.astype(float)
  mask, color, opacity = stain(kind, generator, size)
  share = opacity * cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.7)[..., None]
  noise = generator.normal(0, 4, image.shape)
  return np.clip(image * (1 - share) + (color + noise) * share, 0, 255).astype(np.uint8), mask


def write_boards(folder: Path) -> None:
  """Writes boards to choose prompts from to train/ and boards to inspect to val/."""
  for split, count in (("train", _NUM_PROMPTS.value), ("val", _NUM_QUERIES.value)):
    for part in ("images", "labels"):
      (folder / split / part).mkdir(parents=True, exist_ok=True)
    for index in range(count):
      kind = KINDS[index % len(KINDS)]
      generator = np.random.default_rng([split == "val", index])
      for part, pixels in zip(("images", "labels"), stained_board(kind, generator, _SIZE.value), strict=True):
        Image.fromarray(pixels).save(folder / split / part / f"{kind}_{index:04}.png")


def mappings(folder: Path, strategies: dict[str, PromptIndex | None]) -> dict[str, list[Path]]:
  """Writes positive and negative mapping files with five prompts per query; returns them for each strategy."""
  labels, queries = LabelFormat(), list_queries(folder / "val")
  prompts = list_prompts(folder / "train" / "images", folder / "train" / "labels")
  facts, conditions = read_facts(prompts, labels), by_group(queries, prompts, "prefix:_", labels)
  paths = {}
  for name, index in strategies.items():
    # Negative prompts are random for both strategies, so that only the positive prompts differ.
    (positive, _), (_, negative) = (
      choose(queries, prompts, facts, 5, index=each, conditions=conditions, negatives=True) for each in (index, None)
    )
    paths[name] = [folder / f"{name}_{sign}.json" for sign in ("positive", "negative")]
    for path, mapping in zip(paths[name], (positive, negative), strict=True):
      path.write_text(json.dumps(mapping))
  return paths


def main(_: list[str]) -> None:
  arguments = {flag.name: flag.value for flag in (_MODEL_PATH, _NUM_QUERIES, _NUM_PROMPTS, _SIZE)}
  with tempfile.TemporaryDirectory() as temporary:
    folder = Path(_BOARDS.value or temporary)
    write_boards(folder)
    prompts = list_prompts(folder / "train" / "images", folder / "train" / "labels")
    model = weights.load_model(_MODEL_PATH.value, dtype=parameters.default_dtype())
    paths = mappings(folder, {"similarity": PromptIndex.build(model, prompts), "random": None})
    predictor, rows = Predictor(model), _done(arguments)
    for options, name, top_k in ROWS:
      tiles = " with foreground" if options.foreground_tiles else ""
      row = {"split": ",".join(str(scale.split) for scale in options.scales) + tiles, "prompts": f"{top_k} {name}"}
      if any(row.items() <= done.items() for done in rows):
        continue
      folders = (folder / "train" / "images", folder / "train" / "labels")
      positive, negative = (list_queries(folder / "val", *folders, path, top_k) for path in paths[name])
      results = inspect(predictor, positive, negative, options=options)
      row |= scores(results, folder)
      rows.append(row)
      cells = (f"{value:.3f}" if isinstance(value, float) else f"{value:>22}" for value in row.values())
      print(" | ".join(cells), flush=True)
      report.write("inspection", {"machine": report.machine(["jax"]), "arguments": arguments, "rows": rows})
      if _REPORT.value:
        write(results, _REPORT.value, {"model_path": _MODEL_PATH.value, **row}, f"Stained boards, split {row['split']}")


def scores(results: Results, folder: Path) -> dict[str, float]:
  """Returns the rates, and the mean IoU of all stains, of small ones (below 4 % of the picture) and of large ones."""
  found = results.inspection
  is_small = {name: _stained_share(folder, name) < 0.04 for name in results.ious}
  small, large = (
    float(np.mean([iou for name, iou in results.ious.items() if is_small[name] == wanted])) for wanted in (True, False)
  )
  rates = {"catch_rate": found.catch_rate, "yield_rate": found.yield_rate, "pes": found.pes}
  return {"mean_iou": found.mean_iou, "small_iou": small, "large_iou": large, **rates}


def _done(arguments: dict[str, Any]) -> list[dict[str, Any]]:
  """Returns the rows of an earlier run with the same arguments, because some take many minutes."""
  path = report.RESULTS / "inspection.json"
  stored = json.loads(path.read_text()) if path.exists() else {}
  return stored["rows"] if stored.get("arguments") == arguments else []


def _stained_share(folder: Path, name: str) -> float:
  return float(np.mean(np.asarray(Image.open(folder / "val" / "labels" / f"{name}.png")) > 0))


if __name__ == "__main__":
  app.run(main)
