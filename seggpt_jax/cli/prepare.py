r"""Converts a labeled dataset to TFDS records or to a plain folder, once, before training.

  seggpt prepare --kind=coco --path=COCO --split=train2017,val2017 --num-classes=81 \
    --outdir=OUT --format=records --dataset-name=coco
  seggpt prepare --kind=masks --path=SCANS --num-classes=2 --labels=binary \
    --outdir=OUT --format=folder --val-share=0.1 --groups=prefix:_

Rerun the same command to resume after an interruption.
"""

from __future__ import annotations

from absl import flags

from seggpt_jax.cli.data_flags import dataset_from_flags, define_dataset_flags, define_path, parse_splits
from seggpt_jax.formats.recognize import recognize
from seggpt_jax.prepare.conversion import FORMATS, Settings, prepare


def define_flags() -> dict[str, list[flags.FlagHolder]]:
  """Defines the flags of the command."""
  return {
    **define_dataset_flags(guess=False),
    "Output": [
      define_path("outdir", "Local folder to write to: a new one, or the one of a run to resume.", required=True),
      flags.DEFINE_enum(
        "format", "records", list(FORMATS), "TFDS records in OUTDIR/DATASET_NAME/1.0.0, or image files."
      ),
      flags.DEFINE_string("dataset_name", "mine", "With --format=records: name of the dataset."),
      flags.DEFINE_integer(
        "shorter_side",
        0,
        "Shrink images with a longer shorter side to this many pixels, and their labels; 0 is off.",
        0,
        2**16,
      ),
      flags.DEFINE_enum("bad_files", "error", ["error", "skip"], "Stop at a bad file, or leave it out and list it."),
    ],
    "Splits": [
      flags.DEFINE_list(
        "split", None, "Splits to convert. Default: train and val as the dataset names them, or train with --val-share."
      ),
      flags.DEFINE_float("val_share", 0.0, "Share of train that becomes val, by whole groups.", 0.0, 1.0),
      flags.DEFINE_string("groups", "", "How samples form groups: prefix:SEP, folder, field:KEY, csv:FILE or classes."),
    ],
  }


def main() -> None:
  """Converts the dataset that the flags name."""
  values = flags.FLAGS
  splits = values.split or list(recognize(values.path, values.kind).splits) or ["train", "val"]
  if not values.split:
    splits = splits[:1] if values.val_share else splits[:2]
  settings = Settings(
    dataset=dataset_from_flags(values.path),
    splits=tuple(parse_splits(splits)),
    output=values.format,
    val_share=values.val_share,
    groups=values.groups,
    name=values.dataset_name,
    shorter_side=values.shorter_side,
  )
  print(prepare(settings, values.outdir, values.bad_files == "skip"))
