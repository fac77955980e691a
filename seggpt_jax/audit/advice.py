"""What a person should do about a dataset before training on it: an inspection in, sentences with keys to set out."""

from __future__ import annotations

import shlex
from pathlib import Path

from seggpt_jax.audit import file_advice, label_advice
from seggpt_jax.audit.findings import Inspection, describe_format
from seggpt_jax.audit.sentence import Advice


def advise(inspection: Inspection) -> list[Advice]:
  """All advice that the facts call for, what hinders training first."""
  found = [advice for rule in (*file_advice.RULES, *label_advice.RULES) for advice in rule(inspection)]
  return sorted(found, key=lambda advice: not advice.fatal)


def train_line(inspection: Inspection, advice: list[Advice]) -> str:
  """The command that trains with everything set that was found."""
  keys = describe_format(inspection)
  for each in advice:
    keys |= each.keys
  values = " ".join(f"--config.data.{key}={shlex.quote(str(value))}" for key, value in keys.items())
  # The released weights have to be converted once; the small ones come with the package.
  config = "base" if Path("weights/vit_large").is_dir() else "small"
  return f"seggpt train --config {config} --workdir runs/mine {values}"
