"""The flags of prompts from folders, and the choice of the prompts of every query that they describe."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from absl import flags

from seggpt_jax.cli.help_text import flag_name
from seggpt_jax.cli.path_flags import define_path
from seggpt_jax.cli.runner import is_given
from seggpt_jax.data.bad_files import BadFiles
from seggpt_jax.data.labels import LabelFormat
from seggpt_jax.errors import InputError
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.queries import Query, list_queries
from seggpt_jax.model.parameters import default_dtype
from seggpt_jax.model.weights import load_config, load_model
from seggpt_jax.retrieval.every_class import prompt_every_class
from seggpt_jax.retrieval.labeled_images import list_prompts, read_facts
from seggpt_jax.retrieval.mapping import ChoiceOptions, choose, default_cache
from seggpt_jax.retrieval.prompt_index import PromptIndex

_SIMILAR = 5  # prompts of the packaged network, on real pictures better than one (docs/small.md)
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
      "Prompts without a mapping: the first by name, the same for all that show every class (spread), or those most "
      "similar to the query. auto is spread for a network trained with data.zoom, similar for small, else first.",
    ),
    flags.DEFINE_integer(
      "top_k",
      None,
      "Largest number of prompts for each query, each of several cells with data.zoom. By default 5 where "
      "--prompts=auto chooses similar ones, else 1.",
      1,
      1000,
    ),
  ]


def drop_prompts() -> bool:
  """Says that prompts that were given are not used, and returns True."""
  given = [name for name in (*FOLDER_PROMPTS, *FILE_PROMPTS) if name in flags.FLAGS and is_given(name)]
  if given:
    print(f"the run has a trained head, which needs no prompts: {', '.join(map(flag_name, given))} not used")
  for name in given:
    flags.FLAGS[name].unparse()
  return True


def find_queries(
  images: str | os.PathLike | Sequence[str],
  options: InferenceOptions,
  labels: LabelFormat,
  bad: BadFiles | None = None,
  apart: Sequence[str | os.PathLike] = (),
) -> list[Query]:
  """Returns images with their prompts by the flags, and says how these were chosen.

  Args:
    images: a folder, or image files.
    options: how the network is shown an image.
    labels: format of the label files.
    bad: if given, queries whose prompts are missing are left out and added here.
    apart: folders that hold no queries, such as the folder of the results.

  Raises:
    InputError: a folder or file is missing or cannot be read.
  """
  values = flags.FLAGS
  if load_config(values.model_path).head_classes:
    drop_prompts()
    return list_queries(images, bad=bad, apart=apart)
  for name in ("prompt_img_dir", "prompt_label_dir"):
    if not values[name].value:
      raise InputError(f"{flag_name(name)}: missing (--help)")
  folders = values.prompt_img_dir, values.prompt_label_dir
  rule = values.prompts
  if rule == "auto":
    rule = "spread" if options.zoom else "similar" if load_config(values.model_path).backbone else "first"
  top_k = values.top_k or (_SIMILAR if rule == "similar" and values.prompts == "auto" and not values.mapping else 1)
  # At the scale of training a prompt consists of cells, each from another image.
  count = top_k * options.cells
  if values.mapping:
    return list_queries(images, *folders, values.mapping, count, bad, apart=apart)
  if rule == "first":
    found = list_queries(images, *folders, None, count, bad, apart=apart)
    print(f"no --mapping: every query is prompted by {', '.join(files.written for files in found[0].prompts)}")
    return found
  found, candidates, index = list_queries(images, apart=(*apart, *folders)), list_prompts(*folders), None
  if rule == "similar":
    model = load_model(values.model_path, dtype=default_dtype())
    index = PromptIndex.build(model, candidates, labels, cache=default_cache())
  facts = read_facts(candidates, labels) if index is None else index.facts
  which = "those most similar to it" if index else "the same for all"
  if index is None or options.zoom or values.prompts == "auto":
    print(f"no --mapping: every query gets {count} prompts that show every class in turn, {which} (--prompts)")
    return prompt_every_class(found, candidates, facts, count, index)
  print(f"no --mapping: every query gets {count} of the prompts, {which} (--prompts)")
  mapping, _ = choose(found, candidates, facts, ChoiceOptions(count), index=index)
  by_name = {files.written: files for files in candidates}
  return [
    dataclasses.replace(query, prompts=tuple(by_name[name] for name in mapping[query.written])) for query in found
  ]
