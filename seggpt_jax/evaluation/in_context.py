"""How well a network does in pictures what a prompt shows, on families it was not trained on.

  python -m seggpt_jax.evaluation.in_context --model_path runs/mine --output OUT

In: weights and the names of families. Out: a table of foreground IoU, OUT/in_context.json with the same numbers, and
OUT/in_context.png to look at. One kind of thing is asked for at a time, the rest is background. The same prompt is
then given with the mask of another kind: a network that reads masks changes its answer, one that has only learned what
stands out does not. Beside them stand the scores of answers that take no network.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jaxtyping import UInt8
from PIL import Image, ImageDraw
from tqdm import tqdm

from seggpt_jax.compilation import keep_programs
from seggpt_jax.errors import InputError, run_main
from seggpt_jax.files import writing
from seggpt_jax.inference import outputs
from seggpt_jax.inference.predictor import Predictor, Prompt
from seggpt_jax.metrics import iou
from seggpt_jax.synthetic.families import FAMILIES, Family
from seggpt_jax.synthetic.held_out import HELD_OUT
from seggpt_jax.synthetic.tasks import Episode, draw_episode

_GROUPS: dict[str, dict[str, Family]] = {
  "held_out": HELD_OUT,
  "training": {name: family for name, (family, _, _) in FAMILIES.items()},
}
_LEAST_SHARE = 0.01  # of every picture, for a kind to be asked for
_REDRAWS = 500

# Keys of a score, with the titles of their columns; {k} is the number of prompts.
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
_ASKED, _OTHER = (np.array([(0, 0, 0), color], np.uint8) for color in ((255, 0, 200), (0, 220, 255)))


@dataclasses.dataclass(frozen=True)
class Question:
  """An episode and what is asked of it.

  Attributes:
    episode: K prompts and the query, which comes last.
    asked: the kind that is to be found.
    other: the kind whose mask takes its place to see whether the answer changes.
  """

  episode: Episode
  asked: int
  other: int

  @property
  def query(self) -> UInt8[np.ndarray, "size size 3"]:
    return self.episode.images[-1]

  def mask(self, kind: int, picture: int = -1) -> UInt8[np.ndarray, "size size"]:
    """1 where that kind is, 0 elsewhere; by default in the query."""
    return self.episode.labels([kind])[picture]

  def prompts(self, kind: int, num: int) -> list[Prompt]:
    """The first `num` prompts, with the masks of that kind."""
    return [(self.episode.images[index], self.mask(kind, index)) for index in range(num)]


@dataclasses.dataclass(frozen=True)
class Answers:
  """What a network says to a question: masks of 0 and 1, uint8 or uint16 [size, size].

  Attributes:
    one_prompt: to the first prompt.
    ensemble: to all prompts.
    swapped: to the first prompt with the mask of the other kind.
  """

  one_prompt: np.ndarray
  ensemble: np.ndarray
  swapped: np.ndarray


def draw_question(
  name: str, family: Family, index: int, size: int, num_prompts: int, difficulty: float = 0.5
) -> Question:
  """The index-th question of a family: always the same for the same arguments.

  Args:
    name: of the family, part of the seed.
    family: what draws it.
    index: 0, 1, ...
    size: side of the pictures in pixels.
    num_prompts: pictures beside the query.
    difficulty: 0..1, see `tasks.draw_episode`.

  Raises:
    InputError: the family does not draw so many pictures that have two kinds in common.
  """
  generator = np.random.default_rng([zlib.crc32(name.encode()), index])
  for _ in range(_REDRAWS):
    episode = draw_episode(family, generator, size, num_prompts + 1, difficulty)
    kinds = episode.present(_LEAST_SHARE)
    if len(kinds) >= 2:
      asked, other = generator.choice(kinds, 2, replace=False)
      return Question(episode, int(asked), int(other))
  raise InputError(
    f"{name}: found no two kinds in {num_prompts} prompts and a query of {size} pixels, expected fewer prompts or a "
    "larger network"
  )


def answer(predictor: Predictor, question: Question, num_prompts: int) -> Answers:
  """Asks a network three times: with one prompt, with all, and with the other kind's mask.

  Args:
    predictor: the network.
    question: what is asked.
    num_prompts: of the ensemble, as many as the question has at most.
  """

  def ask(kind: int, num: int) -> np.ndarray:
    return predictor.predict(question.query, question.prompts(kind, num)).labels

  one_prompt = ask(question.asked, 1)
  ensemble = one_prompt if num_prompts == 1 else ask(question.asked, num_prompts)
  return Answers(one_prompt, ensemble, ask(question.other, 1))


@jax.jit
def _foreground_iou(predicted, truth):
  return iou.iou_from_confusion(iou.confusion_counts(predicted, truth, 2))[1]


def score(question: Question, answers: Answers) -> dict[str, float]:
  """The numbers of one question, all 0..1.

  Returns:
    IoU of the foreground: `one_prompt`, `ensemble`; `copy`, of the prompt's mask taken for the query's; `constant`, of
    the whole query as foreground, which is never worse than none; `swapped`, of the answer to the other kind's mask
    with that kind, and `swapped_vs_old` with the kind asked for at first. `follows` is 1 where the former of these two
    is the larger.
  """
  truth = question.mask(question.asked)
  scores = {
    "one_prompt": float(_foreground_iou(answers.one_prompt, truth)),
    "ensemble": float(_foreground_iou(answers.ensemble, truth)),
    "copy": float(_foreground_iou(question.mask(question.asked, 0), truth)),
    "constant": float(_foreground_iou(np.ones_like(truth), truth)),
    "swapped": float(_foreground_iou(answers.swapped, question.mask(question.other))),
    "swapped_vs_old": float(_foreground_iou(answers.swapped, truth)),
  }
  return {**scores, "follows": float(scores["swapped"] > scores["swapped_vs_old"])}


def evaluate(
  predictor: Predictor,
  families: Mapping[str, Family],
  *,
  num_episodes: int = 40,
  num_prompts: int = 5,
  difficulty: float = 0.5,
) -> dict[str, Any]:
  """Scores a network on pictures of the size that it sees at once.

  Numbers compare between networks of one size at the same `num_prompts` and `difficulty`: these decide what is drawn.

  Args:
    predictor: the network.
    families: what is drawn, by name.
    num_episodes: questions to each family.
    num_prompts: of the ensemble; all are drawn, also for the answer to one.
    difficulty: 0..1, of the light and of what the families of pretraining draw.

  Returns:
    Plain values: `families`, for each name the means of what `score` returns and `standard_error`, that of the mean of
    `one_prompt` over the episodes (None for a single one); `mean`, the same over the families.

  Raises:
    InputError: a family cannot draw at this size.
  """
  size, results = predictor.tile_size[1], {}
  with tqdm(total=len(families) * num_episodes, desc="in context", unit="episode") as bar:
    for name, family in families.items():
      scores = []
      for index in range(num_episodes):
        question = draw_question(name, family, index, size, num_prompts, difficulty)
        scores.append(score(question, answer(predictor, question, num_prompts)))
        bar.update()
      results[name] = _summary(scores)
  return {"families": results, "mean": _mean_row(list(results.values()))}


def _summary(scores: Sequence[dict[str, float]]) -> dict[str, float | None]:
  """Means over episodes."""
  summary = {key: float(np.mean([entry[key] for entry in scores])) for key in scores[0]}
  spread = np.std([entry["one_prompt"] for entry in scores], ddof=1) if len(scores) > 1 else None
  return {**summary, "standard_error": None if spread is None else float(spread / np.sqrt(len(scores)))}


def _mean_row(rows: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
  """Means over families; the error of their mean follows from theirs."""
  mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0] if key != "standard_error"}
  errors = [row["standard_error"] for row in rows]
  return {**mean, "standard_error": None if None in errors else float(np.linalg.norm(errors) / len(errors))}


def report(results: Mapping[str, Any], num_prompts: int) -> str:
  """What `evaluate` returns, as a table: one row for each family, and their mean."""
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
  """The first questions to each family and their answers, one row each.

  Args:
    predictor: the network.
    families: see `evaluate`.
    num_prompts: likewise.
    difficulty: likewise.
    num_rows: questions to each family.

  Returns:
    Left to right: the family's name, prompt, its mask, query, truth, predictions with one prompt and with all, the mask
    of another kind in the same prompt, and the prediction for that. Masks lie over their pictures.
  """
  size, gap, margin = predictor.tile_size[1], 4, 64
  side = size * max(round(96 / size), 1)
  rows = [(name, row) for name in families for row in range(num_rows)]
  sheet = Image.new("RGB", (margin + len(_PANELS) * (side + gap), 16 + len(rows) * (side + gap)), "white")
  pen = ImageDraw.Draw(sheet)
  for column, title in enumerate(_PANELS):
    pen.text((margin + column * (side + gap), 2), title.format(k=num_prompts), fill="black")
  for line, (name, index) in enumerate(rows):
    top = 16 + line * (side + gap)
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
    outputs.overlay(prompt, question.mask(question.asked, 0), _ASKED),
    query,
    outputs.overlay(query, question.mask(question.asked), _ASKED),
    outputs.overlay(query, answers.one_prompt, _ASKED),
    outputs.overlay(query, answers.ensemble, _ASKED),
    outputs.overlay(prompt, question.mask(question.other, 0), _OTHER),
    outputs.overlay(query, answers.swapped, _OTHER),
  ]


def choose_families(names: Sequence[str]) -> dict[str, Family]:
  """Families by name; "held_out" and "training" stand for all of theirs.

  Raises:
    InputError: there is no such family, or no name at all.
  """
  known = _GROUPS | {name: {name: family} for group in _GROUPS.values() for name, family in group.items()}
  for name in names:
    if name not in known:
      raise InputError(f"--families: found {name!r}, expected some of {', '.join(known)}")
  if not names:
    raise InputError(f"--families: found none, expected some of {', '.join(known)}")
  return {name: family for group in names for name, family in known[group].items()}


def _command(argv: list[str]) -> None:
  keep_programs()
  if len(argv) > 1:
    raise InputError(f"found argument {argv[1]!r}, expected only flags (--help explains)")
  values = flags.FLAGS
  families = choose_families(values.families)
  settings = {"num_prompts": values.num_prompts, "difficulty": values.difficulty}
  predictor = Predictor.from_checkpoint(values.model_path)
  output = None if values.output is None else Path(values.output)
  if output is not None:
    # A folder that cannot be made is better known before the work than after.
    with writing(output):
      output.mkdir(parents=True, exist_ok=True)
  results = evaluate(predictor, families, num_episodes=values.num_episodes, **settings)
  print(report(results, values.num_prompts))
  if output is not None:
    arguments = {
      "model_path": values.model_path,
      "families": list(families),
      "num_episodes": values.num_episodes,
      **settings,
      "size": predictor.tile_size[1],
    }
    outputs.write_json(output / "in_context.json", {"arguments": arguments, **results})
    outputs.write_png(output / "in_context.png", picture(predictor, families, **settings))
    print(f"written: {output}")


if __name__ == "__main__":
  flags.DEFINE_string("model_path", None, "Weights of convert_torch_weights.py, or a run of train.py.", required=True)
  flags.DEFINE_list("families", "held_out", "held_out, training, or names of families.")
  flags.DEFINE_integer("num_episodes", 40, "Questions to each family.", 1)
  flags.DEFINE_integer("num_prompts", 5, "Prompts of the ensemble.", 1)
  flags.DEFINE_float("difficulty", 0.5, "0..1: of the light, and of what the families of pretraining draw.", 0.0, 1.0)
  flags.DEFINE_string("output", None, "Folder for in_context.json and in_context.png; without it only a table appears.")
  run_main(_command)
