"""Weights that come with the package, each a float16 safetensors file with the architecture in its header.

`load_model("small")`, `--model-path small` and `--config.model.init_from=small` find them by name. New
ones come from `pretraining/pack.py`.
"""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from seggpt_jax.files import parse_json
from seggpt_jax.model.config import SegGPTConfig

_SUFFIX = ".safetensors"


def _folder() -> Path:
  return Path(str(resources.files("seggpt_jax") / "packaged"))


def names() -> list[str]:
  """Returns the names of all packaged weights."""
  return sorted(path.stem for path in _folder().glob(f"*{_SUFFIX}"))


def path_of(name: str) -> Path:
  """Returns the file for packaged weights of a name, whether or not it exists."""
  return _folder() / f"{name}{_SUFFIX}"


def find(name: str | os.PathLike) -> Path | None:
  """Returns the packaged file of a name, or None if it does not exist or if a file or folder has that name."""
  return path_of(os.fspath(name)) if os.fspath(name) in names() and not Path(name).exists() else None


def read_config(path: Path) -> SegGPTConfig:
  """Reads the architecture from a packaged file."""
  with safetensors.safe_open(path, framework="numpy") as file:
    return SegGPTConfig.from_dict(parse_json(file.metadata()["config"]))


def read_params(path: Path) -> dict[str, np.ndarray]:
  """Reads the float16 parameters from a packaged file."""
  return safetensors.numpy.load_file(path)
