"""The list of config keys in the help of `seggpt train`, made from the schema of configs."""

from __future__ import annotations

import itertools

from typing import Any

from seggpt_jax.cli.help_text import entry

try:
  from seggpt_jax.training.schema import KEYS
except ModuleNotFoundError:  # until the schema is there
  from types import SimpleNamespace

  from seggpt_jax.training.config import default_config

  def _keys(config: Any, prefix: str = "") -> Any:
    for name, value in config.items():
      if hasattr(value, "items"):
        yield from _keys(value, f"{prefix}{name}.")
      else:
        yield SimpleNamespace(
          name=prefix + name, default=value, meaning=name, minimum=None, maximum=None, choices=(), applies=""
        )

  KEYS = tuple(_keys(default_config()))


def config_help() -> str:
  """Returns every key with its default, range or choices, and meaning."""
  parts = ["Keys of the config, each set with --config.KEY=VALUE; a packaged config may set other defaults:"]
  for group, keys in itertools.groupby(KEYS, lambda key: key.name.rpartition(".")[0]):
    lines = [entry(f"{key.name}={_text(key.default)}", _description(key)) for key in keys]
    parts.append("\n".join([f"{group or 'run'}:", *lines]))
  return "\n\n".join(parts)


def _description(key: Any) -> str:
  extras = [_allowed(key), f"only {key.applies}" if key.applies else ""]
  extra = "; ".join(part for part in extras if part)
  return f"{key.meaning} ({extra})" if extra else key.meaning


def _allowed(key: Any) -> str:
  """Returns the values that a key may have, as text."""
  if key.choices:
    return f"one of {', '.join(key.choices)}"
  if key.minimum is not None and key.maximum is not None:
    return f"{key.minimum} to {key.maximum}"
  if key.minimum is not None:
    return f"at least {key.minimum}"
  return "" if key.maximum is None else f"at most {key.maximum}"


def _text(default: object) -> str:
  return str(default).replace(" ", "") if isinstance(default, tuple) else str(default)
