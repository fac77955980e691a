"""Draws a dataset of synthetic circuit boards with labeled defects.

  seggpt boards DIRECTORY --num-train 512 --num-val 64 --size 128 --scale 2

Writes PNG files DIRECTORY/{train,val}/{images,labels}/NAME.png.
"""

from __future__ import annotations

from absl import flags

from seggpt_jax.errors import InputError, MachineError
from seggpt_jax.files import writing
from seggpt_jax.synthetic.boards import LABELINGS, write_boards

ARGUMENTS = ("DIRECTORY",)


def define_flags() -> dict[str, list[flags.FlagHolder]]:
  """Defines the flags of the command."""
  names = "; ".join(f"{labels}: {', '.join(classes)}" for labels, classes in LABELINGS.items())
  return {
    "Boards": [
      flags.DEFINE_integer("num_train", 512, "Number of boards for training.", 1, 10**7),
      flags.DEFINE_integer("num_val", 64, "Number of boards for validation.", 1, 10**7),
      flags.DEFINE_integer("size", 256, "Side of a board in pixels.", 32, 4096),
      flags.DEFINE_float("scale", 1.0, "Magnification, at least 1: larger shows a smaller part of the board.", 1, 128),
      flags.DEFINE_integer("most", 3, "Largest number of defects on a board; the smallest is 1.", 1, 1000),
      flags.DEFINE_bool("one_kind", False, "One kind of defect on each board, named in the file: --groups=prefix:_."),
      flags.DEFINE_enum("labels", "defect", list(LABELINGS), f"Classes, from 0 on. {names}."),
      flags.DEFINE_integer("seed", 0, "Seed of all boards.", 0, 2**32 - 1),
    ]
  }


def main(directory: str) -> None:
  """Draws the boards and writes them."""
  values = flags.FLAGS
  options = {name: values[name].value for name in ("size", "scale", "labels", "one_kind")}
  try:
    with writing(directory):
      write_boards(directory, values.num_train, values.num_val, values.seed, count=(1, values.most), **options)
  except (InputError, MachineError):
    raise
  except (ValueError, RuntimeError) as error:
    raise InputError(str(error)) from error
  print(f"written: {directory}")
