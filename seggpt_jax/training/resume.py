"""Decides which keys of the configuration may change between two starts of a run.

Input: the configuration of the new start and RUN/config.json of the last one. Output: the keys that changed, or an
error for a key that must not change.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from seggpt_jax.data.ledger import write_note
from seggpt_jax.errors import InputError
from seggpt_jax.files import parse_json
from seggpt_jax.training.config import flatten, shown
from seggpt_jax.training.optimizer import cycle_steps
from seggpt_jax.training.schema import KEYS
from seggpt_jax.written import is_own, note

# Keys that define the task or the form of the optimizer's state. Scores from before and after could not be compared, or
# the checkpoint could not be read.
_FIXED = (
  *("data.source", "data.num_classes", "data.class_names", "data.labels", "data.threshold", "data.table"),
  *("data.ignore", "optim.name", "optim.freeze", "optim.ema", "adapter.kind"),
)
# Keys that decide which pairs a run draws. A run keeps the values of its first start where the new start has defaults,
# or -1, so that nothing is measured again.
# Names of classes are the names that the dataset had at the first start.
_KEPT = (
  *("data.class_names", "data.same_class", "data.unanswerable", "data.prompt_foreground", "data.zoom"),
  "data.prompt_grid",
)

# What a run writes, and what one of its steps holds.
_OF_A_RUN = ("config.json", "metrics.jsonl", "curves.png", "tracker_id", "checkpoints", "best", "panels", "damaged")
_OF_A_STEP = ("_CHECKPOINT_METADATA", "digests.json", "params", "state", "config")


def check_workdir(workdir: Path) -> None:
  """Checks that a folder is new, holds nothing that a run would replace, or holds a run.

  Raises:
    InputError: it holds something else under a name that a run uses.
  """
  if is_own(workdir / "config.json") or _has_steps(workdir):
    return
  for name in _OF_A_RUN:
    path = workdir / name
    if os.path.lexists(path) and not (path.is_dir() and not os.listdir(path)):
      raise InputError(f"{path}: already exists and is not part of a training run; choose another --workdir")


def _has_steps(workdir: Path) -> bool:
  """Returns whether a run has left a checkpoint or best weights in this folder."""
  steps = [path for folder in ("checkpoints", "best") for path in (workdir / folder).glob("*")]
  return any((step / name).exists() for step in steps if step.name.partition(".")[0].isdigit() for name in _OF_A_STEP)


def keep_pairs(workdir: Path, config: ConfigDict) -> ConfigDict:
  """Returns the configuration with the pairs of the run in this folder, where the new start does not set them.

  Raises:
    InputError: the stored configuration cannot be read.
  """
  before, now, config = _stored(workdir), flatten(config), copy.deepcopy(config)
  for key in KEYS:
    if key.name in _KEPT and key.name in before and now[key.name] in (key.default, -1):
      if expected := key.problem(before[key.name]):
        where = f"{workdir / 'config.json'}: {key.name}"
        raise InputError(f"{where}: found {shown(before[key.name])}, expected {expected}")
      config.update_from_flattened_dict({key.name: before[key.name]})
  return config


def changed_keys(workdir: Path, config: ConfigDict) -> list[str]:
  """Returns the keys that differ from those of the last start of the run in this folder, if there was one.

  Raises:
    InputError: a key differs that must not change, or the stored configuration cannot be read.
  """
  now = flatten(json.loads(config.to_json()))
  before = now | _stored(workdir)
  changed = [
    key.name
    for key in KEYS
    if _effective(before, key.name) != _effective(now, key.name) and (key.has_effect(now) or key.has_effect(before))
  ]
  for name in _FIXED:
    if name in changed:
      raise InputError(
        f"config.{name}: found {now[name]}, expected {before[name]} as the run in {workdir} has; "
        "choose another --workdir for another task or another optimizer"
      )
  return changed


def store_config(workdir: str | os.PathLike, config: ConfigDict) -> None:
  """Writes RUN/config.json for the next start of the run."""
  if jax.process_index() == 0:
    path = Path(workdir) / "config.json"
    if path.is_file() and not is_own(path):
      note(path, path)  # `check_workdir` has found that the folder is a run's, which may have been copied or edited
    write_note(path, config.to_dict())


def _stored(workdir: Path) -> dict[str, Any]:
  """Returns the configuration of the last start of the run in this folder as flat values; {} if there was none."""
  path = workdir / "config.json"
  if not (path.is_file() and any((workdir / "checkpoints").glob("*"))):
    return {}
  try:
    stored = parse_json(path.read_bytes())
  except (OSError, ValueError) as error:
    raise InputError(
      f"{path}: found no JSON ({error}), expected the run's configuration; move it away to resume without comparing"
    ) from error
  if not isinstance(stored, dict):
    raise InputError(f"{path}: found {type(stored).__name__}, expected the run's configuration")
  values = {}
  for key in KEYS:  # nothing else of the file is looked at
    group, _, name = key.name.rpartition(".")
    section = stored.get(group, {}) if group else stored
    if not isinstance(section, dict):
      raise InputError(f"{path}: {group}: found {shown(section)}, expected an object of the run's configuration")
    if name in section:
      values[key.name] = section[name]
      if expected := key.wrong_type(section[name]):
        raise InputError(f"{path}: {key.name}: found {shown(section[name])}, expected {expected}")
  return values


def _effective(values: dict[str, Any], name: str) -> Any:
  """Returns the value of a key, with the lengths of a cycle in steps where the configuration leaves them open."""
  if name in ("optim.first_cycle", "optim.warmup") and values.get("optim.schedule") == "cycles":
    first_cycle, warmup = cycle_steps(values["optim.first_cycle"], values["optim.warmup"], values["num_steps"])
    return first_cycle if name == "optim.first_cycle" else warmup
  if name == "data.threshold":
    return max(values[name], 0)  # -1 reads labels as 0 does, or refuses them
  return values[name]
