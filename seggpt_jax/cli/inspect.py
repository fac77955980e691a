"""Checks a segmentation dataset before training, and prints a report with advice and the command that trains on it.

  seggpt inspect DATASET
  seggpt inspect DATASET --groups=prefix:_ --labels=index --num-classes=3 --outdir=OUT

Writes the report to OUT/inspect.json and samples with their labels to OUT/inspect.png. Layout, splits, label format
and number of classes are found out unless flags give them. Unreadable files do not stop the command: all of them are
listed.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from absl import flags

from seggpt_jax.audit.advice import advise, train_line
from seggpt_jax.audit.contact_sheet import draw_samples
from seggpt_jax.audit.file_advice import segment_line
from seggpt_jax.audit.findings import audit_dataset
from seggpt_jax.audit.report import as_facts, as_text
from seggpt_jax.cli.data_flags import dataset_from_flags, define_dataset_flags, define_path, parse_splits
from seggpt_jax.cli.runner import is_given
from seggpt_jax.errors import InputError
from seggpt_jax.files import MOMENT, remove_leftovers, write_whole, writing
from seggpt_jax.formats.images import is_image
from seggpt_jax.formats.recognize import Form, recognize
from seggpt_jax.written import check_outputs, is_own

ARGUMENTS = ("[FOLDER]",)  # or --path
_GUESSED = ("kind", "num_classes", "class_names", "labels", "ignore")


def define_flags() -> dict[str, list[flags.FlagHolder]]:
  """Defines the flags of the command."""
  return {
    **define_dataset_flags(guess=True),
    "Inspection": [
      flags.DEFINE_list("split", None, "Splits to inspect, the one to train on first. Found out by default."),
      flags.DEFINE_string("groups", "", "How samples form groups: prefix:SEP, folder, field:KEY, csv:FILE or classes."),
      flags.DEFINE_integer(
        "max_images", 0, "Read only this many images of each split, evenly spread; 0 reads all.", 0, 10**9
      ),
      define_path("outdir", "Folder for inspect.json and inspect.png.", default="inspect"),
    ],
  }


def main(folder: str | None = None) -> None:
  """Inspects the dataset that the argument or the flags name."""
  values = flags.FLAGS
  if (folder is None) == (values.path is None):
    raise InputError(f"--path: {'missing' if folder is None else f'found {folder} too'}, expected one folder (--help)")
  given = frozenset(name for name in _GUESSED if is_given(name))
  outdir = Path(values.outdir)
  pictures = [path for path in outdir.glob("*") if is_image(path.name) and not is_own(path)]
  check_outputs([outdir / "inspect.json", outdir / "inspect.png"], pictures, is_image=is_image)
  if "ignore" in given and "labels" not in given:
    raise InputError("--labels: not found; --ignore needs it")
  dataset = dataset_from_flags(folder or values.path)
  form = Form(values.kind) if "kind" in given and values.split else recognize(dataset.path, values.kind)
  dataset = dataclasses.replace(dataset, kind=form.kind)
  splits = parse_splits(values.split) if values.split else list(form.splits[:2]) or ["train", "val"]
  others = tuple(split for split in form.splits if split not in splits)
  findings = audit_dataset(dataset, splits, given, values.groups, values.max_images, others)
  advice = advise(findings)
  facts = as_facts(findings)
  facts["advice"] = [each.text for each in advice]
  facts["ready"] = not any(each.fatal for each in advice)
  facts |= {"segment": segment_line(findings), "train": train_line(findings, advice)}
  with writing(outdir):
    outdir.mkdir(parents=True, exist_ok=True)
  remove_leftovers(outdir, least_age=MOMENT)
  text = json.dumps(facts, indent=2, ensure_ascii=False).encode(errors="backslashreplace")
  write_whole(outdir / "inspect.json", lambda file: file.write(text))
  sheet = draw_samples(findings)
  write_whole(outdir / "inspect.png", lambda file: sheet.save(file, "PNG"))
  print(as_text(facts))
  print(f"\nwritten: {outdir / 'inspect.json'}, {outdir / 'inspect.png'}")
