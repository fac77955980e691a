r"""Chooses how sensitive a trained network is to each class, on labeled images, for what an inspection line needs.

  seggpt calibrate --model-path RUN --dataset-dir DATASET/val --prompt-img-dir DATASET/train/images \
    --prompt-label-dir DATASET/train/labels --catch 0.95

Writes RUN/operating_point.json, which `seggpt infer` then uses, and RUN/operating_point.png, with precision against
recall and catch against yield for all other choices. Without --catch and --yield it takes the best F1. The images
should not be those of training, and other images will have slightly lower rates than those it was chosen on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from tqdm import tqdm

from seggpt_jax.cli import data_flags, inference_flags
from seggpt_jax.cli.data_flags import define_path
from seggpt_jax.cli.prompt_flags import define_prompt_flags, find_queries
from seggpt_jax.compilation import keep_programs
from seggpt_jax.errors import InputError
from seggpt_jax.evaluation.calibration import Aim, Rates, Seen, calibrate, draw_rates, rates
from seggpt_jax.inference import batch
from seggpt_jax.inference.queries import list_queries
from seggpt_jax.inference.scores import own_prompts_line
from seggpt_jax.inference.trained import FILE, write_operating_point
from seggpt_jax.written import check_outputs


def define_flags() -> dict[str, list[flags.FlagHolder]]:
  """Defines the flags of the command."""
  return {
    "Network and images": [
      define_path("model_path", "Training run, where the operating point is written to.", required=True),
      define_path("dataset_dir", "Folder with images/ and labels/.", required=True),
    ],
    "What to aim for (one of these, or neither for the best F1)": [
      flags.DEFINE_float("catch", None, "Least share of images with defects to catch (IoU of at least 0.3).", 0, 1),
      flags.DEFINE_float("yield", None, "Least share of images without defects to leave alone.", 0, 1),
    ],
    "Prompts": define_prompt_flags(),
    **inference_flags.define_option_flags(inference_flags.JUDGED),
    **data_flags.define_label_flags("as in training, else index"),
  }


def main() -> None:
  """Calibrates the run that the flags name."""
  keep_programs()
  values = flags.FLAGS
  aims = [(aim, values[aim].value) for aim in ("catch", "yield") if values[aim].value is not None]
  if len(aims) > 1:
    raise InputError("--yield cannot be combined with --catch: one is given up for the other")
  aim, least = aims[0] if aims else ("f1", 0)
  target = Path(values.model_path) / FILE
  check_outputs([target, target.with_suffix(".png")], flag="--model-path")
  network = inference_flags.network_from_flags()
  labels = inference_flags.trained_label_format(network.run)
  options = inference_flags.options_from_flags(network.run, labels, calibrated=False)
  if missing := next((query for query in list_queries(values.dataset_dir) if query.truth is None), None):
    raise InputError(f"{missing.image}: found no label for it, expected one for every image of {values.dataset_dir}")
  queries = find_queries(network.weights, values.dataset_dir, options, labels)
  results = batch.segment(network.load(), queries, options, labels=labels)
  seen, own, palette = [], [], None
  for item, prediction in tqdm(results, "calibrate", len(queries), unit="image"):
    if item.is_prompt:
      own.append(item.query.name)
      continue
    seen.append(Seen(prediction.colors, item.truth))
    palette = prediction.palette if palette is None or len(prediction.palette) > len(palette) else palette
  if own:
    print(own_prompts_line(own))
  if palette is None:
    raise InputError(f"{values.dataset_dir}: every image is one of its own prompts, expected others to calibrate on")
  choose(values.model_path, seen, palette, values.dataset_dir, aim, least)


def choose(
  run: str, seen: Sequence[Seen], palette: np.ndarray, images: str, aim: Aim = "f1", least: float | int = 0
) -> None:
  """Chooses the operating point of a training run, writes it there and prints its rates.

  Args:
    run: the training run.
    seen: labeled images after the network.
    palette: the color of each class.
    images: what people call these images.
    aim: what to aim for, as `calibration.calibrate` takes it.
    least: least rate, 0..1, to aim for.
  """
  chosen, tried = calibrate(seen, palette, aim, least)
  plain = rates(seen, palette, np.ones(len(palette) - 1), 0)
  about = {
    "aim": {"f1": "best F1", "balance": "best mean of F1, catch and yield"}.get(aim, f"--{aim} {least}"),
    "images": str(images),
    "precision": chosen.precision,
    "recall": chosen.recall,
    "foreground_iou": chosen.iou,
    "catch": chosen.catch,
    "yield": chosen.left_alone,
  }
  path = write_operating_point(run, chosen.point, about)
  draw_rates(tried, chosen, path.with_suffix(".png"))
  print(f"nearest colors: {_words(plain)}")
  print(f"chosen, {about['aim']}: {_words(chosen)}")
  reached = chosen.catch if aim == "catch" else chosen.left_alone
  if aim in ("catch", "yield") and reached is not None and reached < least:
    print(f"note: no choice reaches --{aim} {least}; {reached:.1%} is the most")
  print(f"written: {path}, {path.with_suffix('.png').name}")


def _words(found: Rates) -> str:
  values = {"foreground IoU": found.iou, "F1": found.f1, "catch": found.catch, "yield": found.left_alone}
  return ", ".join(f"{name} {value:.1%}" for name, value in values.items() if value is not None)
