"""The flags that describe a dataset, for every command that reads one."""

from __future__ import annotations

from absl import flags

from seggpt_jax.data.datasets import KINDS, Dataset
from seggpt_jax.data.labels import IGNORE, LABEL_MODES, LabelFormat, parse_values
from seggpt_jax.errors import InputError


def define_dataset_flags() -> None:
  """Defines them; to be called where a module is a command, with `flags.adopt_module_key_flags` for its --help."""
  kinds = "; ".join(f"{kind}: {meaning}" for kind, meaning in KINDS.items())
  flags.DEFINE_enum("kind", "folder", list(KINDS), f"How the dataset is laid out. {kinds}.")
  flags.DEFINE_string("path", None, "Folder of the dataset, local or remote.", required=True)
  flags.DEFINE_integer("num_classes", None, "Number of classes, background included.", 2, IGNORE, required=True)
  flags.DEFINE_enum(
    "labels", "index", list(LABEL_MODES), "What label values mean: class indices, foreground or not, or see --table."
  )
  flags.DEFINE_integer("threshold", 0, "Above it binary labels are foreground; 127 for masks stored as JPEG.", 0, 255)
  flags.DEFINE_string(
    "table", "", "With --labels=table the values or colors of classes 0, 1, ...: 0,128 or (0,0,0),(255,0,0)."
  )
  flags.DEFINE_string("ignore", "", "Label values or colors of pixels without a known class.")
  flags.DEFINE_list("class_names", [], "Names of classes 1, 2, ... for masks and COCO categories.")
  flags.DEFINE_string("image_key", "image", "The image in a record of a TFDS dataset.")
  flags.DEFINE_string("label_key", "segmentation_mask", "The label in a record of a TFDS dataset.")


def dataset_from_flags() -> Dataset:
  """The dataset that the flags describe.

  Raises:
    InputError: they do not fit together.
  """
  values = flags.FLAGS
  return Dataset(
    kind=values.kind,
    path=values.path,
    num_classes=values.num_classes,
    label_format=LabelFormat(
      mode=values.labels,
      threshold=values.threshold,
      table=parse_values(values.table, "table"),
      ignore=parse_values(values.ignore, "ignore"),
    ),
    class_names=tuple(values.class_names),
    image_key=values.image_key,
    label_key=values.label_key,
  )


def parse_splits(names: list[str]) -> list[str]:
  """The parts that a list flag names.

  Raises:
    InputError: there are none, or one twice.
  """
  if not names or not all(names):
    raise InputError("split: found no name, expected names such as train,val")
  if len(set(names)) < len(names):
    raise InputError(f"split: found {','.join(names)}, expected each once")
  return names
