"""Advice on a dataset before training: findings in, sentences with config keys out."""

from __future__ import annotations

import shlex
from pathlib import Path

from seggpt_jax.audit import file_advice, label_advice
from seggpt_jax.audit.findings import Findings, describe_format
from seggpt_jax.audit.sentence import Advice


def advise(findings: Findings) -> list[Advice]:
  """Returns all advice that the findings call for, problems that stop training first."""
  found = [advice for rule in (*file_advice.RULES, *label_advice.RULES) for advice in rule(findings)]
  return sorted(found, key=lambda advice: not advice.fatal)


def train_line(findings: Findings, advice: list[Advice]) -> str:
  """Returns the training command with all keys set that the audit found."""
  keys = describe_format(findings)
  for each in advice:
    keys |= each.keys
  values = " ".join(f"--config.data.{key}={shlex.quote(str(value))}" for key, value in keys.items())
  # Converted released weights are better; the small ones come with the package.
  config = "base" if Path("weights/vit_large").is_dir() else "small"
  return f"seggpt train --config {config} --workdir runs/mine {values}"
