"""Measures how well a network segments what a prompt shows, on families of pictures that it was not trained on.

In: a network and families of generated pictures. Out: foreground IoU for each family. Each question asks for one kind
of thing; everything else is background. The same prompt is then given with the mask of another kind: a network that
reads masks changes its answer, a network that has only learned what stands out does not. The scores also contain
baselines that need no network.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from pretraining.families import FAMILIES
from pretraining.held_out import HELD_OUT
from pretraining.scenes import Family
from pretraining.tasks import Episode, draw_episode
from seggpt_jax.errors import InputError
from seggpt_jax.inference.predictor import Predictor, Prompt
from seggpt_jax.metrics import iou

_GROUPS: dict[str, dict[str, Family]] = {
  "held_out": HELD_OUT,
  "training": {name: family.draw for name, family in FAMILIES.items()},
}
_MIN_SHARE = 0.01  # of every picture's pixels, for a kind to be asked for
_MAX_DRAWS = 500


@dataclasses.dataclass(frozen=True)
class Question:
  """An episode and the kind that is asked for.

  Attributes:
    episode: K prompts, followed by the query.
    asked: the kind to find.
    other: another kind, whose mask replaces the first one to see whether the answer changes.
  """

  episode: Episode
  asked: int
  other: int

  @property
  def query(self) -> UInt8[np.ndarray, "size size 3"]:
    return self.episode.images[-1]

  def mask(self, kind: int, picture: int = -1) -> UInt8[np.ndarray, "size size"]:
    """Returns 1 where a picture shows the kind, else 0; by default for the query."""
    return self.episode.labels([kind])[picture]

  def prompts(self, kind: int, num: int) -> list[Prompt]:
    """Returns the first `num` prompts with the masks of the kind."""
    return [(self.episode.images[index], self.mask(kind, index)) for index in range(num)]


@dataclasses.dataclass(frozen=True)
class Answers:
  """Predicted masks for a question: 0 and 1, uint8 or uint16 [size, size].

  Attributes:
    one_prompt: prediction with the first prompt.
    ensemble: prediction with all prompts.
    swapped: prediction with the first prompt and the mask of the other kind.
  """

  one_prompt: np.ndarray
  ensemble: np.ndarray
  swapped: np.ndarray


def choose_families(names: Sequence[str]) -> dict[str, Family]:
  """Returns families by name.

  Args:
    names: names of families; "held_out" and "training" stand for all families of that group.

  Raises:
    InputError: a name is unknown, or no name is given.
  """
  known = _GROUPS | {name: {name: family} for group in _GROUPS.values() for name, family in group.items()}
  for name in names:
    if name not in known:
      raise InputError(f"--families: found {name!r}, expected some of {', '.join(known)}")
  if not names:
    raise InputError(f"--families: found none, expected some of {', '.join(known)}")
  return {name: family for group in names for name, family in known[group].items()}


def draw_question(
  name: str, family: Family, index: int, size: int, num_prompts: int, difficulty: float = 0.5
) -> Question:
  """Draws a question of a family, the same one for the same arguments.

  Args:
    name: name of the family, which is part of the seed.
    family: function that draws the pictures.
    index: number of the question, from 0.
    size: side of the pictures in pixels.
    num_prompts: number of pictures in addition to the query.
    difficulty: 0 to 1, see `tasks.draw_episode`.

  Raises:
    InputError: the family draws no episode in which all pictures have two kinds in common.
  """
  generator = np.random.default_rng([zlib.crc32(name.encode()), index])
  for _ in range(_MAX_DRAWS):
    episode = draw_episode(family, generator, size, num_prompts + 1, difficulty)
    kinds = episode.present(_MIN_SHARE)
    if len(kinds) >= 2:
      asked, other = generator.choice(kinds, 2, replace=False)
      return Question(episode, int(asked), int(other))
  raise InputError(
    f"{name}: found no two kinds in {num_prompts} prompts and a query of {size} pixels, expected fewer prompts or a "
    "larger network"
  )


def answer(predictor: Predictor, question: Question, num_prompts: int) -> Answers:
  """Predicts with one prompt, with all prompts, and with the mask of the other kind.

  Args:
    predictor: the network.
    question: the question.
    num_prompts: size of the ensemble, at most the number of prompts in the question.
  """

  def predict(kind: int, num: int) -> np.ndarray:
    return predictor.predict(question.query, question.prompts(kind, num)).labels

  one_prompt = predict(question.asked, 1)
  ensemble = one_prompt if num_prompts == 1 else predict(question.asked, num_prompts)
  return Answers(one_prompt, ensemble, predict(question.other, 1))


@jax.jit
def _foreground_iou(predicted, truth):
  return iou.iou_from_confusion(iou.confusion_counts(predicted, truth, 2))[1]


def score(question: Question, answers: Answers) -> dict[str, float]:
  """Returns the scores of one question, each 0 to 1.

  Returns:
    Foreground IoU of `one_prompt` and of `ensemble`; of two baselines, `copy` (the prompt's mask as the prediction) and
    `constant` (the whole query as foreground, never worse than an empty prediction); of the answer to the other kind's
    mask, `swapped` with the other kind as truth and `swapped_vs_old` with the kind asked for. `follows` is 1 if
    `swapped` is larger than `swapped_vs_old`, else 0.
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
  """Scores a network on pictures of its own tile size.

  Scores are comparable between networks of the same tile size, with the same `num_prompts` and `difficulty`, because
  these decide which pictures are drawn.

  Args:
    predictor: the network.
    families: families of pictures by name.
    num_episodes: number of questions per family.
    num_prompts: size of the ensemble. All prompts are drawn even where only the first is used.
    difficulty: 0 to 1; difficulty of the lighting, and of the pictures in the training families.

  Returns:
    Plain values. `families` maps each name to the means of the values that `score` returns, with `standard_error`, the
    standard error of the mean of `one_prompt` (None for a single episode). `mean` holds the means over the families.

  Raises:
    InputError: a family cannot draw pictures of this size.
  """
  size, results = predictor.tile_size[1], {}
  with tqdm(total=len(families) * num_episodes, desc="in context", unit="episode") as bar:
    for name, family in families.items():
      scores = []
      for index in range(num_episodes):
        question = draw_question(name, family, index, size, num_prompts, difficulty)
        scores.append(score(question, answer(predictor, question, num_prompts)))
        bar.update()
      results[name] = _mean_over_episodes(scores)
  return {"families": results, "mean": _mean_over_families(list(results.values()))}


def _mean_over_episodes(scores: Sequence[dict[str, float]]) -> dict[str, float | None]:
  mean = {key: float(np.mean([entry[key] for entry in scores])) for key in scores[0]}
  deviation = np.std([entry["one_prompt"] for entry in scores], ddof=1) if len(scores) > 1 else None
  return {**mean, "standard_error": None if deviation is None else float(deviation / np.sqrt(len(scores)))}


def _mean_over_families(rows: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
  mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0] if key != "standard_error"}
  errors = [row["standard_error"] for row in rows]
  return {**mean, "standard_error": None if None in errors else float(np.linalg.norm(errors) / len(errors))}
