"""Chooses prompts for every query and writes them as the mapping that infer.py reads.

  python -m seggpt_jax.inference.retrieval --model-path weights/vit_large --dataset-dir DATASET/val \\
    --prompt-img-dir DATASET/train/images --prompt-label-dir DATASET/train/labels --top-k 5 --output mapping.json

In: a folder of queries and one of labeled images. Out: JSON {query file: [prompt files, best first]}; and with
--negative-output a second one, of prompts that show what the query has not. A query that lies among the labeled images
itself, as the same file or a copy, is no prompt of its own.
"""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags
from tqdm import tqdm

from seggpt_jax.cli import inference_flags as command_flags
from seggpt_jax.compilation import keep_programs
from seggpt_jax.data.images import decode_image, read_bytes
from seggpt_jax.data.read_ahead import read_ahead
from seggpt_jax.errors import InputError, run_main
from seggpt_jax.files import writing
from seggpt_jax.inference import outputs
from seggpt_jax.inference.queries import PromptFiles, Query, list_queries
from seggpt_jax.model import parameters, weights
from seggpt_jax.retrieval import ranking as prompt_choice
from seggpt_jax.retrieval.conditions import Conditions, by_class, by_group, classes_of
from seggpt_jax.retrieval.prompt_index import (
  FOREGROUND_WEIGHT,
  TAP,
  Facts,
  PromptIndex,
  digest,
  list_prompts,
  read_facts,
)

_AHEAD = 16  # queries that are read before they are needed
DEFAULT_CACHE = "~/.cache/seggpt_jax"


@dataclasses.dataclass(frozen=True)
class ChoiceOptions:
  """How prompts are chosen among those that may be.

  Attributes:
    top_k: the most prompts of a query.
    diversity: see `prompt_choice.most_relevant`.
    negatives: "hardest", the negative prompts with the highest score; "random"; or None, which chooses none.
    seed: of what is random.
  """

  top_k: int = 1
  diversity: float | int = 0.0
  negatives: str | None = None
  seed: int = 0


def choose(
  queries: Sequence[Query],
  prompts: Sequence[PromptFiles],
  facts: Facts,
  options: ChoiceOptions,
  *,
  index: PromptIndex | None = None,
  conditions: Conditions | None = None,
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
  """Chooses the prompts of every query. Scores are held for one batch of queries at a time.

  Args:
    queries: the queries.
    prompts: the labeled images.
    facts: what they hold; those without any class are never chosen.
    options: how.
    index: of the labeled images, by whose scores they are chosen; without it they are drawn at random.
    conditions: which prompts are positive and negative; without them all are positive.

  Returns:
    Two mappings {query file: [prompt files, best first]}, of positive and of negative prompts; the latter is empty
    unless it is asked for.

  Raises:
    InputError: a query cannot be read, or has no prompt that may be chosen.
  """
  shows, digests = facts.holds.any(axis=1), np.array(facts.digests)
  paths = np.array([os.path.realpath(prompt.image) for prompt in prompts])

  def pick(query: Query, candidates: np.ndarray, scores: np.ndarray | None, wanted: str) -> list[str]:
    if not candidates.any():
      raise InputError(f"{query.image}: found no labeled image that can be {wanted}, expected at least one")
    if scores is None:
      chosen = prompt_choice.at_random(candidates, options.top_k, options.seed, query.name)
    else:
      chosen = prompt_choice.most_relevant(scores, candidates, options.top_k, options.diversity, index.likeness_to)
    return [prompts[place].image.name for place in chosen]

  positive: dict[str, list[str]] = {}
  negative: dict[str, list[str]] = {}
  bar = tqdm(_scored(queries, index), "choose", len(queries), unit="query")
  for number, (query, (name, scores)) in enumerate(zip(queries, bar, strict=True)):
    key, others = query.image.name, shows & (digests != name) & (paths != os.path.realpath(query.image))
    if conditions is None:
      positive[key] = pick(query, others, scores, "its prompt")
      continue
    common = conditions.prompts[:, conditions.queries[number]].any(axis=1)
    strange, asked = conditions.prompts.any(axis=1) & ~common, conditions.names[number]
    positive[key] = pick(query, others & common, scores, f"its prompt: one of its {asked}")
    if options.negatives:
      scores = None if options.negatives == "random" else scores
      negative[key] = pick(query, others & strange, scores, f"its negative prompt: one not of its {asked}")
  return positive, negative


def _scored(queries: Sequence[Query], index: PromptIndex | None) -> Iterator[tuple[str, np.ndarray | None]]:
  """The digest of each query's file, and the scores of all prompts for it if there is an index."""
  digests: collections.deque[str] = collections.deque()

  def read(query: Query) -> tuple[str, np.ndarray | None]:
    data = read_bytes(query.image)
    return digest(data), None if index is None else decode_image(data, str(query.image))

  coming = (future.result() for _, future in read_ahead(read, queries, ahead=_AHEAD))
  if index is None:
    yield from coming
    return

  def images() -> Iterator[np.ndarray]:
    for name, image in coming:
      digests.append(name)
      yield image

  for scores in index.score_many(images()):
    yield digests.popleft(), scores


# ------------------------------------------------------------------------------------------------------- the command


def _command(argv: list[str]) -> None:
  keep_programs()
  if len(argv) > 1:
    raise InputError(f"found argument {argv[1]!r}, expected only flags (--help explains)")
  values = flags.FLAGS
  _check_flags()
  path = values["model-path"].value
  labels = command_flags.label_format_from_flags(path)
  queries = list_queries(values["dataset-dir"].value)
  prompts = list_prompts(values["prompt-img-dir"].value, values["prompt-label-dir"].value)
  # What can be wrong with the queries is better known before the labeled images are encoded than after.
  conditions = by_group(queries, prompts, values.groups, labels) if values.groups else None
  holds = classes_of(queries, labels) if values["by-class"].value else None
  written = [Path(name) for name in (values.output, values["negative-output"].value) if name]
  for output in written:
    with writing(output.parent):
      output.parent.mkdir(parents=True, exist_ok=True)
  if values.strategy == "random":
    index, facts = None, read_facts(prompts, labels)
  else:
    index = PromptIndex.build(
      weights.load_model(path, dtype=parameters.default_dtype()),
      prompts,
      labels,
      cache=Path(values.cache).expanduser() if values.cache else None,
      tap=values.tap,
      foreground_weight=values["foreground-weight"].value,
    )
    facts = index.facts
  empty = int((~facts.holds.any(axis=1)).sum())
  if empty:
    print(f"{empty} of {len(prompts)} labeled images hold no class: they are no prompts")
  if holds is not None:
    conditions = by_class(holds, facts)
  options = ChoiceOptions(
    top_k=values["top-k"].value,
    diversity=values.diversity,
    negatives=values.negatives if len(written) > 1 else None,
    seed=values.seed,
  )
  mappings = choose(queries, prompts, facts, options, index=index, conditions=conditions)
  for output, mapping in zip(written, mappings, strict=False):
    outputs.write_json(output, mapping)
  print(f"written: {', '.join(map(str, written))}")


def _check_flags() -> None:
  """Refuses flags that would silently do nothing."""
  values = flags.FLAGS
  for name in ("model-path", "prompt-img-dir", "prompt-label-dir", "dataset-dir", "output"):
    if values[name].value == "":
      raise InputError(f"--{name}: found an empty value, expected a path")
  if values.groups and values["by-class"].value:
    raise InputError("--groups, --by-class: found both, expected one of them")
  negative, conditional = values["negative-output"].value, values.groups or values["by-class"].value
  if negative and not conditional:
    raise InputError("--negative-output: found without --groups or --by-class, expected one that says what is negative")
  if negative and os.path.abspath(negative) == os.path.abspath(values.output):
    raise InputError(f"--negative-output: found {negative}, expected another file than --output")
  if values["negatives"].present and not negative:
    raise InputError("--negatives: found without --negative-output, expected both or none")
  is_random = values.strategy == "random"
  useless = ("cache", "tap", "foreground-weight", "diversity", "negatives") if is_random else ()
  if not is_random and values.negatives != "random":
    useless = ("seed",)
  for name in useless:
    if values[name].present:
      raise InputError(f"--{name}: found with --strategy={values.strategy}, expected only where it makes a difference")


if __name__ == "__main__":
  flags.DEFINE_string("model-path", None, "Weights of convert_torch_weights.py, or a run of train.py.", required=True)
  flags.DEFINE_string(
    "dataset-dir", None, "The queries: a folder with images/ and perhaps labels/, or a folder of images.", required=True
  )
  flags.DEFINE_string("prompt-img-dir", None, "Labeled images that prompts are chosen from.", required=True)
  flags.DEFINE_string("prompt-label-dir", None, "Their label maps.", required=True)
  flags.DEFINE_string("output", None, "The mapping, a JSON file for infer.py's --mapping.", required=True)
  flags.DEFINE_integer("top-k", 1, "The most prompts of a query.", lower_bound=1)
  flags.DEFINE_enum("strategy", "retrieval", ["retrieval", "random"], "By likeness, or drawn, to compare with.")
  flags.DEFINE_float("diversity", 0.0, "0..1: how much prompts of one query have to differ from each other.", 0.0, 1.0)
  flags.DEFINE_float(
    "foreground-weight",
    FOREGROUND_WEIGHT,
    "0..1: how much it counts whether a prompt's foreground is found in the query, beside the likeness of the images.",
    0.0,
    1.0,
  )
  flags.DEFINE_integer("tap", TAP, "Which of the network's feature taps is compared, 1 for the first.", lower_bound=1)
  flags.DEFINE_string("cache", DEFAULT_CACHE, "Folder that keeps features of labeled images; empty keeps none.")
  flags.DEFINE_string(
    "groups",
    None,
    "Prompts of the query's own group: prefix:SEP (the name up to the last SEP), csv:FILE (columns name,group) or "
    "classes (the same set of classes).",
  )
  flags.DEFINE_bool("by-class", False, "Prompts that share a class with the query's label.")
  flags.DEFINE_string("negative-output", None, "Second mapping: prompts of other groups, or of none of its classes.")
  flags.DEFINE_enum("negatives", "hardest", ["hardest", "random"], "Which of them: those most like the query, or any.")
  flags.DEFINE_integer("seed", 0, "Of what is random.", lower_bound=0)
  command_flags.define_label_flags()
  command_flags.define_aliases()
  flags.adopt_module_key_flags(command_flags)  # for --help
  run_main(_command)
