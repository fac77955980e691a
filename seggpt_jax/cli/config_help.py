"""The list of config keys in the help of `seggpt train`, made from the schema of configs."""

from __future__ import annotations

from seggpt_jax.cli.help_text import entry
from seggpt_jax.training.schema import KEYS, Key

# The keys that people change most.
COMMON = (
  *("num_steps", "batch_size", "model.init_from", "data.source", "data.path", "data.num_classes", "data.labels"),
  *("data.palette", "optim.peak", "eval_every"),
)


def config_help(full: bool) -> str:
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
