r"""Chooses prompts for every query and writes them as the mapping that `seggpt infer` reads.

  seggpt retrieve --model-path weights/vit_large --dataset-dir DATASET/val \
    --prompt-img-dir DATASET/train/images --prompt-label-dir DATASET/train/labels --top-k 5 --output mapping.json

In: a folder of queries and one of labeled images. Out: JSON {query file: [prompt files, best
first]}. A query that is among the labeled images itself, as the
same file or a copy, never prompts itself.
"""

from __future__ import annotations

import os

from absl import flags

from seggpt_jax.cli.data_flags import define_label_flags, define_path
from seggpt_jax.cli.inference_flags import trained_label_format
from seggpt_jax.compilation import keep_programs
from seggpt_jax.errors import InputError
from seggpt_jax.retrieval.mapping import DEFAULT_CACHE, write_mappings


def define_flags() -> dict[str, list[flags.FlagHolder]]:
  """Defines the flags of the command."""
  return {
    "Images and results": [
      define_path("model_path", "Weights or a training run, packaged name (small) or hf://OWNER/NAME.", required=True),
      define_path("dataset_dir", "Queries: a folder with images/ and perhaps labels/, or of images.", required=True),
      define_path("prompt_img_dir", "Labeled images that prompts are chosen from.", required=True),
      define_path("prompt_label_dir", "Label maps of these images.", required=True),
      define_path("output", "JSON file to write, for `seggpt infer --mapping`.", required=True),
      define_path("negative_output", "JSON file for a second mapping: with --groups, prompts of other groups."),
    ],
    "Choice": [
      flags.DEFINE_integer("top_k", 1, "Largest number of prompts for each query.", 1, 1000),
      define_path(
        "cache",
        f"Folder for features of labeled images, by default {DEFAULT_CACHE}; empty keeps none.",
        allow_empty=True,
      ),
      flags.DEFINE_string(
        "groups",
        None,
        "Prompts from the query's own group: prefix:SEP (the name up to the last SEP), csv:FILE (columns name,group), "
        "classes (the same set of classes in the label) or class (at least one class in common).",
      ),
    ],
    **define_label_flags("as in training, else index"),
  }


def main() -> None:
  """Chooses prompts for the queries that the flags name."""
  keep_programs()
  values = flags.FLAGS
  negative = values.negative_output
  if negative and os.path.abspath(negative) == os.path.abspath(values.output):
    raise InputError(f"--negative-output: found {negative}, expected another file than --output")
  if negative and not values.groups:
    raise InputError("--groups: not found; --negative-output needs it")
  write_mappings(
    values.model_path,
    values.dataset_dir,
    values.prompt_img_dir,
    values.prompt_label_dir,
    values.output,
    labels=trained_label_format(values.model_path),
    top_k=values.top_k,
    groups=values.groups,
    negative_output=negative,
    cache=DEFAULT_CACHE if values.cache is None else values.cache,
  )
