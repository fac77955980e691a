"""Trains or fine-tunes a network.

  seggpt train --config small --workdir runs/mine --config.data.path=DATASET --config.data.num_classes=3
  seggpt train --config base --workdir runs/mine --config.data.path=DATASET

Rerun the same command to resume. Every value of the config can be set with --config.KEY=VALUE. On several hosts, start
the same command on each of them with --distributed=auto or --distributed=HOST:PORT,N,I.
"""

from __future__ import annotations

import re
import sys

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from seggpt_jax.cli import calibrate, packaged_configs
from seggpt_jax.cli.data_flags import define_path
from seggpt_jax.cli.runner import entry
from seggpt_jax.compilation import keep_programs
from seggpt_jax.data.sources import shared_images
from seggpt_jax.errors import InputError, either
from seggpt_jax.evaluation.calibration import Seen
from seggpt_jax.formats.labels import classes_in
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.model.adapters import HEADS
from seggpt_jax.palette import fixed_palette
from seggpt_jax.training import distributed
from seggpt_jax.training.config import expand_paths, flatten, nearest_keys
from seggpt_jax.training.head import validation_indices
from seggpt_jax.training.inputs import open_splits
from seggpt_jax.training.loop import train
from seggpt_jax.training.schema import KEYS, Key

# The keys that people change most.
COMMON = (
  *("num_steps", "batch_size", "model.init_from", "data.source", "data.path", "data.num_classes", "data.labels"),
  *("data.palette", "optim.peak", "eval_every"),
)


def more_help(full: bool) -> str:
  """Returns the common keys, or all, each with its default, range or choices, and meaning."""
  more = "" if full else f" --helpfull lists all {len(KEYS)}."
  parts = [f"Keys of the config, each set with --config.KEY=VALUE; a packaged config may set other defaults.{more}"]
  groups: dict[str, list[str]] = {}
  for key in KEYS:
    if not full and key.name not in COMMON:
      continue
    lines = groups.setdefault(key.name.rpartition(".")[0], [])
    lines.append(entry(f"{key.name}={_text(key.default)}", _description(key)))
  parts += ["\n".join([f"{group or 'run'}:", *lines]) for group, lines in groups.items()]
  return "\n\n".join(parts)


def _description(key: Key) -> str:
  extras = [key.allowed, f"only {key.applies}" if key.applies else ""]
  extra = "; ".join(part for part in extras if part)
  return f"{key.meaning} ({extra})" if extra else key.meaning


def _text(default: object) -> str:
  return str(default).replace(" ", "") if isinstance(default, tuple) else str(default)


_LEAST_SHOWN = 8  # validation images with foreground: what is chosen on fewer would be chance


class _ConfigParser(flags.ArgumentParser):
  """Loads a config by name or path, and checks the keys that the command line sets in it."""

  def parse(self, argument: str) -> ConfigDict:
    config = packaged_configs.load(argument)
    _check_keys(config, sys.argv)
    return config.lock()

  def flag_type(self) -> str:
    return "config object"


def _check_keys(config: ConfigDict, argv: list[str]) -> None:
  """Raises InputError if the command line sets a key that the config does not have, or sets one before --config."""
  known = list(flatten(config))
  config_seen = False
  for argument in argv:
    config_seen |= re.match(r"--?config(=|$)", argument) is not None
    match = re.match(r"--?(no)?config\.([^=]*)", argument)
    if match is None:
      continue
    if not config_seen:
      raise InputError(f"--config: found --config.{match[2]} before it, expected --config first")
    if match[2] not in known:
      near = either([f"--config.{key}" for key in nearest_keys(match[2], known)])
      raise InputError(f"--config.{match[2]}: unknown key, expected {near} (--helpfull lists all)")


def define_flags() -> dict[str, list[flags.FlagHolder]]:
  """Defines the flags of the command."""
  names = ", ".join(packaged_configs.names())
  config = config_flags.DEFINE_config_file("config", None, f"Packaged config ({names}) or a config file.")
  flags.FLAGS["config"].parser = _ConfigParser()
  return {
    "Run": [
      config,
      define_path("workdir", "Run directory: checkpoints, metrics and pictures. Rerun with the same one to resume."),
    ],
    "Several processes": [
      flags.DEFINE_string(
        "distributed",
        "off",
        "off, auto (ask the cluster) or HOST:PORT,N,I: where process 0 listens, the number of processes, this one's.",
      )
    ],
  }


def main() -> None:
  """Trains."""
  keep_programs()
  values = flags.FLAGS
  for name in ("config", "workdir"):
    if values[name].value is None:
      raise InputError(f"--{name}: missing, for example --config small --workdir runs/mine")
  distributed.start(values.distributed)
  with distributed.failing_alone():
    result = train(values.config, values.workdir)
  if jax.process_index() == 0:
    print(f"done: {values.workdir}, validation mIoU {result.get('miou', float('nan')):.3f}")
    if values.config.adapter.kind in HEADS:
      _calibrate(values.config, values.workdir)
    if values.config.adapter.kind == "head":
      changed = f"--config features --config.model.init_from={values.workdir}"
      print(f"to find more in a few more minutes, run this again with {changed} and another --workdir")


def _calibrate(config: ConfigDict, workdir: str) -> None:
  """Chooses the operating point of a trained head on the validation images of its run."""
  splits, _ = open_splits(expand_paths(config).data)
  val = splits["val"]
  if shared_images(val, splits["train"]):
    print("not calibrated: validation images are training images, so any choice would look too good")
    return
  indices, predictor = validation_indices(config, val), Predictor.from_checkpoint(workdir)
  found = predictor.predict_many((val[index]["image"], ()) for index in indices)
  seen = [
    Seen(prediction.colors, val.label(index))
    for index, prediction in tqdm(zip(indices, found, strict=True), "calibrate", len(indices), unit="image")
  ]
  shown = sum(bool(classes_in(each.truth)) for each in seen)
  if shown < _LEAST_SHOWN:
    print(f"not calibrated: {shown} validation images show a class, and it takes {_LEAST_SHOWN}")
    return
  images = f"{config.data.path}: {config.data.val_split}"
  calibrate.choose(workdir, seen, fixed_palette(config.data.num_classes), images, "balance")
