"""Measures how well a network segments what a prompt shows, on families of pictures that it was not trained on.

  python -m pretraining.in_context --model-path runs/mine --output OUT

In: weights and the names of families. Out: a table of foreground IoU, OUT/in_context.json with the same numbers, and
OUT/in_context.png with pictures. --data FOLDER,FOLDER measures on real datasets instead, with
{train,val}/{images,labels} of class indices: the training images prompt the validation images.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from pretraining import labeled_sets
from pretraining.labeled_sets import evaluate_set
from pretraining.questions import Answers, Question, answer, choose_families, draw_question, evaluate
from pretraining.scenes import Family
from seggpt_jax.cli.data_flags import define_path, define_paths
from seggpt_jax.cli.main import run
from seggpt_jax.cli.runner import is_given
from seggpt_jax.compilation import keep_programs
from seggpt_jax.errors import InputError
from seggpt_jax.files import writing
from seggpt_jax.inference import outputs, pictures
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.model import parameters, weights
from seggpt_jax.palette import display_palette
from seggpt_jax.retrieval.labeled_images import list_prompts
from seggpt_jax.retrieval.prompt_index import PromptIndex
from seggpt_jax.written import check_outputs

# Column titles by the keys of the scores; {k} is the number of prompts.
_COLUMNS = {
  "one_prompt": "1 prompt",
  "standard_error": "+-",
  "ensemble": "{k} prompts",
  "copy": "copied",
  "constant": "constant",
  "swapped": "swapped",
  "swapped_vs_old": "vs old",
  "follows": "follows",
}
_PANELS = ("prompt", "its mask", "query", "truth", "1 prompt", "{k} prompts", "other mask", "prediction")
_ASKED, _OTHER = display_palette(3)[[0, 1]], display_palette(3)[[0, 2]]


def define_flags() -> dict[str, list[flags.FlagHolder]]:
  """Defines the flags of the command."""
  return {
    "Evaluation": [
      define_path(
        "model_path", "Path of weights or of a training run, packaged name (small) or Hugging Face name.", required=True
      ),
      flags.DEFINE_list("families", "held_out", "held_out, training, or names of families."),
      define_paths("data", "Folders of real datasets, in place of families."),
      flags.DEFINE_integer("num_episodes", 40, "Number of questions per family, or per class of a dataset.", 1, 10**6),
      flags.DEFINE_integer("num_prompts", 5, "Number of prompts in the ensemble.", 1, 1000),
      flags.DEFINE_float("difficulty", 0.5, "0 to 1: lighting, and pictures of the training families.", 0.0, 1.0),
      define_path("output", "Folder for in_context.json and in_context.png; without it, only a table is printed."),
    ]
  }


def main() -> None:
  """Evaluates the network that the flags name."""
  keep_programs()
  values = flags.FLAGS
  if values.data and is_given("families"):
    raise InputError("--families cannot be combined with --data, whose datasets replace the families")
  evaluate_weights(
    values.model_path,
    values.families,
    data=values.data,
    num_episodes=values.num_episodes,
    num_prompts=values.num_prompts,
    difficulty=values.difficulty,
    output=values.output,
  )


def evaluate_weights(
  model_path: str | os.PathLike,
  families: Sequence[str] = ("held_out",),
  *,
  data: Sequence[str] = (),
  num_episodes: int = 40,
  num_prompts: int = 5,
  difficulty: float = 0.5,
  output: str | os.PathLike | None = None,
) -> None:
  """Scores a network, prints the table, and writes in_context.json and in_context.png.

  Args:
    model_path: weights directory, training run or packaged name.
    families: names for `choose_families`.
    data: folders of real datasets, which take the place of the families; see `labeled_sets`.
    num_episodes: see `evaluate`.
    num_prompts: see `evaluate`.
    difficulty: see `evaluate`.
    output: folder for the files; None to print the table only.

  Raises:
    InputError: a family is unknown, there are no weights, or the folder cannot be written to.
  """
  chosen, settings = choose_families(families), {"num_prompts": num_prompts, "difficulty": difficulty}
  model = weights.load_model(model_path, dtype=parameters.default_dtype())
  predictor = Predictor(model)
  folder = None if output is None else Path(output)
  if folder is not None:
    # Created first: an error after an hour of predictions would lose them.
    check_outputs([folder / "in_context.json", folder / "in_context.png"], flag="--output")
    with writing(folder):
      folder.mkdir(parents=True, exist_ok=True)
  about = {"model_path": str(model_path), "num_episodes": num_episodes, "size": predictor.tile_size[1]}
  if data:
    sets = {}
    for path in map(Path, data):
      index = PromptIndex.build(model, list_prompts(path / "train" / "images", path / "train" / "labels"))
      sets[path.name] = evaluate_set(predictor, index, path, num_queries=num_episodes, num_prompts=num_prompts)
      print(labeled_sets.table(path.name, sets[path.name], num_prompts))
    if folder is not None:
      outputs.write_json(folder / "in_context.json", {"arguments": about | {"num_prompts": num_prompts}, "sets": sets})
      print(f"written: {folder}")
    return
  results = evaluate(predictor, chosen, num_episodes=num_episodes, **settings)
  print(table(results, num_prompts))
  if folder is None:
    return
  arguments = about | {"families": list(chosen), **settings}
  outputs.write_json(folder / "in_context.json", {"arguments": arguments, **results})
  pictures.write_png(folder / "in_context.png", picture(predictor, chosen, **settings))
  print(f"written: {folder}")


def table(results: Mapping[str, Any], num_prompts: int) -> str:
  """Returns the results of `evaluate` as a plain-text table with a row for each family and one for their mean."""
  rows = {**results["families"], "mean": results["mean"]}
  width = max(map(len, rows))
  lines = [" " * width + "".join(f"{title.format(k=num_prompts):>11}" for title in _COLUMNS.values())]
  for name, row in rows.items():
    cells = ("-" if row[key] is None else f"{row[key]:.3f}" for key in _COLUMNS)
    lines.append(f"{name:<{width}}" + "".join(f"{cell:>11}" for cell in cells))
  return "\n".join(lines)


def picture(
  predictor: Predictor,
  families: Mapping[str, Family],
  *,
  num_prompts: int = 5,
  difficulty: float = 0.5,
  num_rows: int = 2,
) -> UInt8[np.ndarray, "height width 3"]:
  """Draws the first questions of each family and their answers, one row for each question.

  Args:
    predictor: the network.
    families: see `evaluate`.
    num_prompts: see `evaluate`.
    difficulty: see `evaluate`.
    num_rows: number of questions per family.

  Returns:
    Left to right: the family's name, the prompt, its mask, the query, the truth, the predictions with one prompt and
    with all, the mask of the other kind in the same prompt, and the prediction for that mask. Masks are drawn over
    their pictures.
  """
  size, gap, margin, header = predictor.tile_size[1], 4, 64, 16
  side = size * max(round(96 / size), 1)
  rows = [(name, row) for name in families for row in range(num_rows)]
  sheet = Image.new("RGB", (margin + len(_PANELS) * (side + gap), header + len(rows) * (side + gap)), "white")
  pen = ImageDraw.Draw(sheet)
  for column, title in enumerate(_PANELS):
    pen.text((margin + column * (side + gap), 2), title.format(k=num_prompts), fill="black")
  for line, (name, index) in enumerate(rows):
    top = header + line * (side + gap)
    if index == 0:
      pen.text((4, top), name, fill="black")
    question = draw_question(name, families[name], index, size, num_prompts, difficulty)
    for column, panel in enumerate(_panels(question, answer(predictor, question, num_prompts))):
      tile = Image.fromarray(panel).resize((side, side), Image.Resampling.NEAREST)
      sheet.paste(tile, (margin + column * (side + gap), top))
  return np.asarray(sheet)


def _panels(question: Question, answers: Answers) -> list[np.ndarray]:
  prompt, query = question.episode.images[0], question.query
  return [
    prompt,
    pictures.overlay(prompt, question.mask(question.asked, 0), _ASKED),
    query,
    pictures.overlay(query, question.mask(question.asked), _ASKED),
    pictures.overlay(query, answers.one_prompt, _ASKED),
    pictures.overlay(query, answers.ensemble, _ASKED),
    pictures.overlay(prompt, question.mask(question.other, 0), _OTHER),
    pictures.overlay(query, answers.swapped, _OTHER),
  ]


if __name__ == "__main__":
  run("pretraining.in_context", "python -m pretraining.in_context")
