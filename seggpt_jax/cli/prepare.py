r"""Converts a labeled dataset of any kind to TFDS records or to a plain folder, once, before training.

  python -m seggpt_jax.data.prepare --kind=coco --path=COCO --split=train2017,val2017 --num_classes=81 \
    --outdir=OUT --format=records --dataset_name=coco
  python -m seggpt_jax.data.prepare --kind=masks --path=SCANS --num_classes=2 --labels=binary \
    --outdir=OUT --format=folder --val_share=0.1 --groups=prefix:_

A run that is stopped, in whatever way, goes on where it was when it is started again with the same flags.
"""

from __future__ import annotations

from absl import flags

from seggpt_jax.cli import dataset_flags
from seggpt_jax.cli.dataset_flags import dataset_from_flags, define_dataset_flags, parse_splits
from seggpt_jax.errors import InputError, run_main
from seggpt_jax.prepare.conversion import FORMATS, Settings, prepare


def _command(argv: list[str]) -> None:
  if len(argv) > 1:
    raise InputError(f"found {argv[1]!r}, expected flags alone (--help explains)")
  values = flags.FLAGS
  splits = values.split or (["train"] if values.val_share else ["train", "val"])
  settings = Settings(
    dataset=dataset_from_flags(),
    splits=tuple(parse_splits(splits)),
    output=values.format,
    val_share=values.val_share,
    groups=values.groups,
    seed=values.seed,
    name=values.dataset_name,
    shorter_side=values.shorter_side,
  )
  print(prepare(settings, values.outdir, values.bad_files == "skip", values.num_workers))


if __name__ == "__main__":
  define_dataset_flags()
  flags.adopt_module_key_flags(dataset_flags)
  flags.DEFINE_list("split", None, "Parts to convert; by default train,val, or train where --val_share is given.")
  flags.DEFINE_string("outdir", None, "Local folder to write to, new or of a run to go on with.", required=True)
  flags.DEFINE_enum("format", "records", list(FORMATS), "TFDS records in OUTDIR/DATASET_NAME/1.0.0, or image files.")
  flags.DEFINE_string("dataset_name", "mine", "Name of a dataset of records.")
  flags.DEFINE_float("val_share", 0.0, "Share of train that becomes val, by whole groups.", 0.0, 1.0)
  flags.DEFINE_string("groups", "", "What a group is: prefix:SEP, folder, field:KEY, csv:FILE or classes.")
  flags.DEFINE_integer("seed", 0, "Of the choice of groups for val.", 0)
  flags.DEFINE_integer(
    "shorter_side", 0, "Shrinks images whose shorter side has more pixels to so many, with their labels; 0 does not.", 0
  )
  flags.DEFINE_enum("bad_files", "error", ["error", "skip"], "Stop at a bad file, or leave it out and list it.")
  flags.DEFINE_integer("num_workers", 2, "Threads that decode and compress.", 1)
  run_main(_command)
