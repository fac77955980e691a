"""The `seggpt` command: a table of subcommands, each in its own module.

Only the module of the subcommand that runs is imported, so that `seggpt --help` answers at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

# Each subcommand is the module in seggpt_jax/cli of this name.
COMMANDS = {
  "inspect": "Check a dataset: what it holds, what is wrong with it, and how to train on it.",
  "prepare": "Convert a dataset to image folders or to ArrayRecord, and divide it into train and val.",
  "train": "Fine-tune or train a network on labeled images.",
  "infer": "Segment images or a video by example.",
  "app": "Open a page to label one image, see the others answered, correct, and train.",
  "serve": "Segment images for other programs, over HTTP.",
  "calibrate": "Choose how sensitive a trained network is, for a catch rate or a yield rate.",
  "retrieve": "Choose the best prompts for every image, for `seggpt infer --mapping`.",
  "evaluate": "Run a public benchmark, such as FSS-1000, COCO-20i, ISIC 2018 or DAVIS 2017.",
  "evaluate-inspection": "Judge a network as an inspection line would: catch rate and yield rate.",
  "convert": "Convert weights from PyTorch or Hugging Face to JAX, and back.",
  "merge": "Merge a LoRA into the weights it was trained for.",
  "export": "Export a network as one file for other programs: ONNX or StableHLO.",
  "boards": "Draw a dataset of synthetic circuit boards with defects.",
  "demo": "Segment circuit boards by example, fine-tune, segment again, and draw a picture.",
}


def main(arguments: Sequence[str] | None = None) -> None:
  """Runs one subcommand and exits.

  Args:
    arguments: the subcommand and its arguments; by default those of the command line.

  Raises:
    SystemExit: always, with status 0 if it worked, 2 if the input is wrong and 1 or 130 otherwise.
  """
  name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
  if name == "help" and rest:
    name, rest = rest[0], ["--help"]
  if name in ("help", "-h", "-help", "--help"):
    print(_overview())
  elif name in ("-V", "-version", "--version", "version"):
    import seggpt_jax

    print(f"seggpt-jax {seggpt_jax.__version__}")
  elif name in COMMANDS:
    run(f"seggpt_jax.cli.{name.replace('-', '_')}", f"seggpt {name}", rest)
  else:
    from seggpt_jax.errors import either, nearest

    expected = either(nearest(name, COMMANDS, 2) or list(COMMANDS))
    print(f"error: {name}: unknown command, expected {expected} (seggpt --help)", file=sys.stderr)
    sys.exit(2)
  sys.exit(0)


def run(module: str, program: str, arguments: Sequence[str] | None = None) -> None:
  """Runs the command that a module defines, and exits.

  Args:
    module: full name of the module; `runner` says what it has to define.
    program: the command as people type it, for its help: `seggpt train`.
    arguments: its arguments; by default those of the command line.
  """
  from seggpt_jax.cli import runner

  runner.run(importlib.import_module(module), program, sys.argv[1:] if arguments is None else arguments)


def _overview() -> str:
  width = max(map(len, COMMANDS))
  commands = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items())
  return (
    "usage: seggpt COMMAND [flags]\n\n"
    "Segmentation by example (SegGPT) in JAX: fine-tune on your own images, segment, measure.\n\n"
    f"{commands}\n\n"
    "`seggpt COMMAND --help` lists the flags of a command; `seggpt --version` prints the version."
  )
