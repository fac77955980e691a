r"""Tells everything about a segmentation dataset that decides whether training will work.

  python -m seggpt_jax.data.inspect --path DATASET
  python -m seggpt_jax.data.inspect --path DATASET --groups=prefix:_ --labels=index --num_classes=3 --outdir=OUT

Prints a report with advice, and writes it to OUT/inspect.json and samples with their labels to OUT/inspect.png. How the
dataset is laid out and its labels are meant is found out where no flag says it; so is the number of classes. Wrong
files stop nothing: all of them are listed.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from absl import flags

from seggpt_jax.audit.advice import advise, train_line
from seggpt_jax.audit.contact_sheet import draw_samples
from seggpt_jax.audit.findings import audit_dataset
from seggpt_jax.audit.report import as_facts, as_text
from seggpt_jax.audit.sample_files import guess_kind
from seggpt_jax.cli import dataset_flags
from seggpt_jax.cli.dataset_flags import dataset_from_flags, define_dataset_flags, parse_splits
from seggpt_jax.data.labels import IGNORE
from seggpt_jax.errors import InputError, run_main
from seggpt_jax.files import write_whole


def _command(argv: list[str]) -> None:
  if len(argv) > 1:
    raise InputError(f"found argument {argv[1]!r}, expected only flags (--help explains)")
  values = flags.FLAGS
  dataset = dataset_from_flags()
  names = ("kind", "num_classes", "labels", "threshold", "table", "ignore")
  given = frozenset(name for name in names if flags.FLAGS[name].present)
  if "labels" not in given and given & {"threshold", "table", "ignore"}:
    raise InputError(f"--{min(given & {'threshold', 'table', 'ignore'})}: found it alone, expected --labels with it")
  if "kind" not in given:
    dataset = dataclasses.replace(dataset, kind=guess_kind(dataset.path))
  splits = parse_splits(values.split)
  findings = audit_dataset(dataset, splits, given, values.groups, values.max_images)
  advice = advise(findings)
  facts = as_facts(findings)
  facts["advice"] = [each.text for each in advice]
  facts["ready"] = not any(each.fatal for each in advice)
  facts["train"] = train_line(findings, advice)
  outdir = Path(values.outdir)
  text = json.dumps(facts, indent=2, ensure_ascii=False).encode()
  write_whole(outdir / "inspect.json", lambda file: file.write(text))
  sheet = draw_samples(findings)
  write_whole(outdir / "inspect.png", lambda file: sheet.save(file, "PNG"))
  print(as_text(facts))
  print(f"\nwritten: {outdir / 'inspect.json'}, {outdir / 'inspect.png'}")


if __name__ == "__main__":
  define_dataset_flags()
  flags.adopt_module_key_flags(dataset_flags)
  # The number of classes is found out where it is not given.
  flags.FLAGS.set_default("num_classes", IGNORE)
  flags.DEFINE_list("split", ["train", "val"], "Parts to inspect, the one to train on first.")
  flags.DEFINE_string("groups", "", "What a group is: prefix:SEP, folder, field:KEY, csv:FILE or classes.")
  flags.DEFINE_string("outdir", "inspect", "Folder of inspect.json and inspect.png.")
  flags.DEFINE_integer("max_images", 0, "Read only so many of each split, evenly spread; 0 reads all.", 0)
  run_main(_command)
