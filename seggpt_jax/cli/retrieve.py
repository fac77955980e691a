"""Chooses prompts for every query and writes them as the mapping that `seggpt infer` reads.

  python -m seggpt_jax.inference.retrieval --model-path weights/vit_large --dataset-dir DATASET/val \\
    --prompt-img-dir DATASET/train/images --prompt-label-dir DATASET/train/labels --top-k 5 --output mapping.json

In: a folder of queries and one of labeled images. Out: JSON {query file: [prompt files, best first]}, and with
--negative-output a second file of prompts that show nothing that the query shows. A query that is among the labeled
images itself, as the same file or a copy, never prompts itself.
"""

from __future__ import annotations

import os

from absl import flags

from seggpt_jax.cli import inference_flags as command_flags
from seggpt_jax.compilation import keep_programs
from seggpt_jax.errors import InputError, run_main
from seggpt_jax.retrieval.mapping import DEFAULT_CACHE, ChoiceOptions, write_mappings
from seggpt_jax.retrieval.prompt_index import FOREGROUND_WEIGHT, TAP


def _command(argv: list[str]) -> None:
  keep_programs()
  if len(argv) > 1:
    raise InputError(f"found argument {argv[1]!r}, expected only flags (--help explains)")
  values = flags.FLAGS
  _check_flags()
  negative_output = values["negative-output"].value
  write_mappings(
    values["model-path"].value,
    values["dataset-dir"].value,
    values["prompt-img-dir"].value,
    values["prompt-label-dir"].value,
    values.output,
    labels=command_flags.label_format_from_flags(values["model-path"].value),
    options=ChoiceOptions(
      top_k=values["top-k"].value,
      diversity=values.diversity,
      negatives=values.negatives if negative_output else None,
      seed=values.seed,
    ),
    groups=values.groups,
    share_class=values["by-class"].value,
    negative_output=negative_output,
    by_likeness=values.strategy == "retrieval",
    cache=values.cache,
    tap=values.tap,
    foreground_weight=values["foreground-weight"].value,
  )


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
