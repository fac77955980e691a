"""Measures how well a network segments what a prompt shows, on families of pictures that it was not trained on.

  seggpt evaluate-in-context --model-path runs/mine --output OUT

In: weights and the names of families. Out: a table of foreground IoU, OUT/in_context.json with the same numbers, and
OUT/in_context.png with pictures. --data FOLDER,FOLDER measures on real datasets instead, with
{train,val}/{images,labels} of class indices: the training images prompt the validation images.
"""

from __future__ import annotations

from absl import flags

from seggpt_jax.cli.path_flags import define_path, define_paths
from seggpt_jax.cli.runner import is_given
from seggpt_jax.compilation import keep_programs
from seggpt_jax.errors import InputError
from seggpt_jax.evaluation import in_context_report


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
    raise InputError("--families: found beside --data, expected one of the two: datasets take the place of families")
  in_context_report.run(
    values.model_path,
    values.families,
    data=values.data,
    num_episodes=values.num_episodes,
    num_prompts=values.num_prompts,
    difficulty=values.difficulty,
    output=values.output,
  )
