"""Measures how well a network segments what a prompt shows, on families of pictures that it was not trained on.

  python -m seggpt_jax.evaluation.in_context --model_path runs/mine --output OUT

In: weights and the names of families. Out: a table of foreground IoU, OUT/in_context.json with the same numbers, and
OUT/in_context.png with pictures.
"""

from __future__ import annotations

from absl import flags

from seggpt_jax.compilation import keep_programs
from seggpt_jax.errors import InputError, run_main
from seggpt_jax.evaluation import in_context_report


def _command(argv: list[str]) -> None:
  keep_programs()
  if len(argv) > 1:
    raise InputError(f"found argument {argv[1]!r}, expected only flags (--help explains)")
  values = flags.FLAGS
  in_context_report.run(
    values.model_path,
    values.families,
    num_episodes=values.num_episodes,
    num_prompts=values.num_prompts,
    difficulty=values.difficulty,
    output=values.output,
  )


if __name__ == "__main__":
  flags.DEFINE_string("model_path", None, "Weights directory, training run, or packaged name.", required=True)
  flags.DEFINE_list("families", "held_out", "held_out, training, or names of families.")
  flags.DEFINE_integer("num_episodes", 40, "Number of questions per family.", 1)
  flags.DEFINE_integer("num_prompts", 5, "Number of prompts in the ensemble.", 1)
  flags.DEFINE_float("difficulty", 0.5, "0 to 1: lighting, and pictures of the training families.", 0.0, 1.0)
  flags.DEFINE_string("output", None, "Folder for in_context.json and in_context.png; only the table without it.")
  run_main(_command)
