"""The flags that describe a dataset, for every command that reads one."""

from __future__ import annotations

from absl import flags

from seggpt_jax.cli.label_flags import define_label_flags, label_format
from seggpt_jax.cli.path_flags import define_path
from seggpt_jax.data.datasets import Dataset
from seggpt_jax.errors import InputError
from seggpt_jax.formats.labels import IGNORE
from seggpt_jax.formats.recognize import KINDS


def define_dataset_flags(*, guess: bool) -> dict[str, list[flags.FlagHolder]]:
  """Defines the flags and returns them in groups.

  Args:
    guess: whether the command finds out kind, number of classes and label format where no flag gives them.
  """
  kinds = "; ".join(f"{kind}: {meaning}" for kind, meaning in KINDS.items())
  found = " Found out by default." if guess else ""
  return {
    "Dataset": [
      define_path("path", "Folder of the dataset, local or remote.", required=not guess),
      flags.DEFINE_enum(
        "kind", None if guess else "folder", list(KINDS), f"How the files are laid out. {kinds}.{found}"
      ),
      flags.DEFINE_integer(
        "num_classes", None, f"Number of classes, background included.{found}", 2, IGNORE, required=not guess
      ),
      flags.DEFINE_list("class_names", [], "Names of classes 1, 2, ...: which masks or categories to take."),
    ],
    **define_label_flags("found out" if guess else "index"),
  }


def dataset_from_flags() -> Dataset:
  """Returns the dataset that the flags describe.

  Raises:
    InputError: the flags do not go together.
  """
  values = flags.FLAGS
  return Dataset(
    kind=values.kind or "folder",
    path=values.path,
    num_classes=values.num_classes or IGNORE,
    label_format=label_format(),
    class_names=tuple(values.class_names),
  )


def parse_splits(names: list[str]) -> list[str]:
  """Returns the split names of a list flag.

  Raises:
    InputError: no split is given, a name is empty, or a name is given twice.
  """
  if not names or not all(names):
    raise InputError("--split: found no name, expected names such as train,val")
  if len(set(names)) < len(names):
    raise InputError(f"--split: found {','.join(names)}, expected each name once")
  return names
