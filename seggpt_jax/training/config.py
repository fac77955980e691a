"""Makes and checks the configuration of a training run, from the keys in `training.schema`.

The files in configs/ start from `default_config` and change what differs; `--config.KEY=VALUE` changes single values.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from seggpt_jax.errors import InputError, either, naming, nearest
from seggpt_jax.files import expand
from seggpt_jax.model.adapters import HEADS, Adapter, LearnedPrompt, LoRA
from seggpt_jax.training.schema import KEYS

_PATHS = ("data.path", "model.init_from")
# A head has a loss of its own and sees whole images without prompts. An average of parameters would never move.
_UNUSED_BY_A_HEAD = (
  *("accumulate", "model.square", "data.negative", "data.prompts", "data.lower_half_share", "data.zoom"),
  *("data.foreground_crop", "loss.smooth_l1", "loss.cross_entropy", "loss.dice", "loss.foreground", "optim.ema"),
  "profile_steps",
)
_LARGEST_SIDE = 16384  # pixels of a resized sample


def default_config() -> ConfigDict:
  """Returns a configuration with the default of every key, which is the original's value where it has one."""
  values: dict[str, Any] = {}
  for key in KEYS:
    group, _, name = key.name.rpartition(".")
    (values.setdefault(group, {}) if group else values)[name] = key.default
  return ConfigDict(values)


def expand_paths(config: ConfigDict) -> ConfigDict:
  """Returns a copy of the configuration with `~` expanded in every path."""
  expanded = config.copy_and_resolve_references()
  values = flatten(config)
  for key in _PATHS:
    if isinstance(values.get(key), str):  # anything else is refused by `check_config`
      with naming(f"config.{key}"):
        expanded.update_from_flattened_dict({key: expand(values[key])})
  return expanded


def flatten(values: ConfigDict | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns nested values as one flat dictionary with dotted keys."""
  flat: dict[str, Any] = {}
  for name, value in values.items():
    flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, ConfigDict | Mapping) else {prefix + name: value}
  return flat


def check_config(config: ConfigDict) -> None:
  """Refuses a configuration with unknown or missing keys, wrong values, or values that have no effect.

  Raises:
    InputError: names the key, the value found and the value expected.
  """
  values = flatten(config)
  _check_names(values)
  for key in KEYS:
    found = values[key.name]
    if expected := key.problem(found):
      raise InputError(f"config.{key.name}: found {shown(found)}, expected {expected}")
  for key in KEYS:
    found = values[key.name]
    if plain(found) != plain(key.default) and not key.has_effect(values):
      raise InputError(
        f"config.{key.name}: found {found!r}, expected the default {key.default!r}: "
        f"this key only has an effect {key.applies}"
      )
  if config.keep_every % config.checkpoint_every:
    raise InputError(
      f"config.keep_every: found {config.keep_every}, expected 0 or a multiple of "
      f"config.checkpoint_every={config.checkpoint_every}"
    )
  if not (config.loss.smooth_l1 or config.loss.cross_entropy or config.loss.dice):
    raise InputError("config.loss: found 0 for smooth_l1, cross_entropy and dice, expected at least one above 0")
  if -1 < config.data.zoom < 0.001 and config.data.zoom:
    raise InputError(f"config.data.zoom: found {config.data.zoom}, expected a factor above 0, 0, or -1; at least 0.001")
  if config.eval_pairs == 0:
    raise InputError("config.eval_pairs: found 0, expected at least 1, or -1 for all")
  low, high = config.data.scale if len(config.data.scale) == 2 else (0, 0)
  if not 0 < low <= high:
    raise InputError(f"config.data.scale: found {shown(config.data.scale)}, expected two factors, the smaller first")
  if config.data.resize * high > _LARGEST_SIDE:
    raise InputError(
      f"config.data.scale: found {high} with data.resize={config.data.resize}, expected samples of at most "
      f"{_LARGEST_SIDE} pixels"
    )
  if len(config.data.color) != 3:
    raise InputError(f"config.data.color: found {shown(config.data.color)}, expected brightness, contrast, saturation")


def shown(value: Any) -> str:
  """Returns a value of any kind as text that is short enough for one line."""
  text = repr(value)
  return text if len(text) <= 200 else f"{text[:200]}..."


def _check_names(values: Mapping[str, Any]) -> None:
  """Refuses unknown keys, with the nearest names, and missing keys."""
  known = {key.name: key for key in KEYS}
  for name in values:
    if name not in known:
      raise InputError(f"config.{name}: unknown key, expected {either(nearest_keys(name, known))}")
  for name, key in known.items():
    if name not in values:
      raise InputError(f"config.{name}: missing, expected a {type(key.default).__name__}")


def nearest_keys(name: str, known: Collection[str]) -> list[str]:
  """Returns the keys that a misspelled one may have been meant for: similar ones, or those of the same last part."""
  same = [key for key in known if key.rpartition(".")[2] == name.rpartition(".")[2]]
  return nearest(name, known, cutoff=0.6) or same or nearest(name, known, cutoff=0)


def plain(value: Any) -> Any:
  """Returns a value with lists as tuples, so that both compare as equal."""
  return tuple(map(plain, value)) if isinstance(value, list | tuple) else value


def adapter_of(config: ConfigDict) -> Adapter | None:
  """Returns the adapter that config.adapter describes, or None.

  Raises:
    InputError: another value of the configuration does not fit the adapter; names its key.
  """
  kind = config.adapter.kind
  if kind in HEADS:
    values = flatten(config)
    for key in KEYS:
      unused = key.name in _UNUSED_BY_A_HEAD or (key.name == "optim.layer_decay" and kind == "head")
      if unused and plain(values[key.name]) != plain(key.default):
        found = shown(values[key.name])
        raise InputError(
          f"config.{key.name}: found {found}, expected the default {key.default!r} with adapter.kind={kind}"
        )
  if kind in ("none", *HEADS):  # a trained head is a part of the network
    return None
  if not config.model.init_from:
    raise InputError("config.model.init_from: found '', expected the weights that the adapter is trained for")
  if config.optim.name != "adamw":
    raise InputError(
      f"config.optim.name: found {config.optim.name}, expected adamw with an adapter: muon is for matrices of features"
    )
  if kind == "lora":
    # On a command line the names come as one text with commas.
    targets = tuple(name.strip() for text in config.adapter.targets for name in text.split(","))
    with naming("config.adapter"):
      return LoRA(config.adapter.rank, float(config.adapter.alpha), targets)
  # A learned prompt has one palette, and its queries are hidden as at inference.
  for key, expected in (("palette", "fixed"), ("lower_half_share", 1.0), ("prompts", 1), ("negative", 0.0)):
    if config.data[key] != expected:
      raise InputError(f"config.data.{key}: found {config.data[key]}, expected {expected} with adapter.kind=prompt")
  return LearnedPrompt()
