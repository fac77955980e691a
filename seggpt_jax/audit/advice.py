"""Advice on a dataset before training: findings in, sentences with config keys out."""

from __future__ import annotations

import shlex

from seggpt_jax.audit import file_advice, label_advice
from seggpt_jax.audit.findings import Findings, describe_format
from seggpt_jax.audit.networks import needs_tiles, network
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
  named = network()
  config = named.defects_config if needs_tiles(findings, named) else named.config
  return f"seggpt train --config {config} --workdir runs/mine {values}"
