"""The flags of prompts from folders, and the choice of the prompts of every query that they describe."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from absl import flags

from seggpt_jax.cli.data_flags import define_path
from seggpt_jax.cli.runner import flag_name, is_given
from seggpt_jax.data.bad_files import BadFiles
from seggpt_jax.errors import InputError
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.queries import Query, list_queries
from seggpt_jax.model.parameters import default_dtype
from seggpt_jax.model.weights import Weights, load_model
from seggpt_jax.retrieval.labeled_images import list_prompts, read_facts
from seggpt_jax.retrieval.mapping import default_cache, prompt_every_class, warn_of_left_out
from seggpt_jax.retrieval.prompt_index import PromptIndex

# Prompts by default: five are better than one (docs/small.md), and than one for each of twenty classes.
_SEVERAL, _MOST = 5, 8
FILE_PROMPTS = ("prompt_image", "prompt_label")
FOLDER_PROMPTS = ("prompt_img_dir", "prompt_label_dir", "mapping", "prompts", "top_k")


def define_prompt_flags() -> list[flags.FlagHolder]:
  """Defines the flags of prompts from folders."""
  return [
    define_path("prompt_img_dir", "Images of the prompts."),
    define_path("prompt_label_dir", "Label maps of the prompts."),
    define_path("mapping", "JSON file {query file: [prompt files, best first]}; see seggpt retrieve."),
    flags.DEFINE_enum(
      "prompts",
      "auto",
      ("auto", "first", "spread", "similar"),
      "Prompts without a mapping: the first by name, or some that together show every class, the same for all "
      "(spread) or those most similar to the query. auto is similar for small, else and with data.zoom spread.",
    ),
    flags.DEFINE_integer(
      "top_k",
      None,
      "Largest number of prompts for each query, each of several cells with data.zoom. By default 1 with those, a "
      f"mapping or --prompts=first, else {_SEVERAL}, or as many as there are classes, up to {_MOST}.",
      1,
      1000,
    ),
  ]


def drop_prompts() -> None:
  """Says that prompts that were given are not used."""
  given = [name for name in (*FOLDER_PROMPTS, *FILE_PROMPTS) if name in flags.FLAGS and is_given(name)]
  if given:
    print(f"the run has a trained head, which needs no prompts: {', '.join(map(flag_name, given))} not used")
  for name in given:
    flags.FLAGS[name].unparse()


def find_queries(
  weights: Weights,
  images: str | os.PathLike | Sequence[str],
  options: InferenceOptions,
  labels: LabelFormat,
  bad: BadFiles | None = None,
  apart: Sequence[str | os.PathLike] = (),
) -> list[Query]:
  """Returns images with their prompts by the flags, and says how these were chosen.

  Args:
    weights: the network.
    images: a folder, or image files.
    options: how the network is shown an image.
    labels: format of the label files.
    bad: if given, queries whose prompts are missing are left out and added here.
    apart: folders that hold no queries, such as the folder of the results.

  Raises:
    InputError: a folder or file is missing or cannot be read.
  """
  values = flags.FLAGS
  if weights.config.head_classes:
    drop_prompts()
    return list_queries(images, bad=bad, apart=apart)
  for name in ("prompt_img_dir", "prompt_label_dir"):
    if not values[name].value:
      raise InputError(f"{flag_name(name)}: missing (--help)")
  folders = values.prompt_img_dir, values.prompt_label_dir
  rule = values.prompts
  if rule == "auto":
    rule = "similar" if weights.config.backbone and not options.zoom else "spread"
  if values.mapping:
    return list_queries(images, *folders, values.mapping, (values.top_k or 1) * options.scale.cells, bad, apart=apart)
  if rule == "first":
    found = list_queries(images, *folders, None, (values.top_k or 1) * options.scale.cells, bad, apart=apart)
    print(f"no --mapping: every query is prompted by {', '.join(files.written for files in found[0].prompts)}")
    return found
  found, candidates, index = list_queries(images, apart=(*apart, *folders)), list_prompts(*folders), None
  if rule == "similar":
    model = load_model(weights, dtype=default_dtype())
    index = PromptIndex.build(model, candidates, labels, cache=default_cache())
  facts = read_facts(candidates, labels) if index is None else index.facts
  # At the scale of training a prompt consists of cells, each from another image.
  classes = int(facts.holds.any(axis=0).sum())
  several = 1 if options.zoom else classes if _SEVERAL < classes <= _MOST else _SEVERAL
  count = (values.top_k or several) * options.scale.cells
  which = "the most similar to it" if index else "the same for all"
  print(f"no --mapping: every query gets up to {count} prompts that show every class in turn, {which} (--prompts)")
  found = prompt_every_class(found, candidates, facts, count, index)
  if not options.zoom:
    found = [dataclasses.replace(query, prompts=tuple(dict.fromkeys(query.prompts))) for query in found]
  warn_of_left_out(found, candidates, facts)
  return found
