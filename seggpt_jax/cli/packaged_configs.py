"""The configs that come with the package, by name, and config files of any other place, by path."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import inspect
import os
import traceback
from pathlib import Path

from ml_collections import ConfigDict

import seggpt_jax
from seggpt_jax.errors import InputError, nearest
from seggpt_jax.files import expand


def names() -> list[str]:
  """Returns the names of the configs that come with the package."""
  return sorted(path.stem for path in _folder().glob("*.py") if path.stem != "__init__")


def _find(name: str) -> Path:
  """Returns the file of a packaged config, by its name, or of any other, by its path."""
  if name in names():
    return _folder() / f"{name}.py"
  path = Path(expand(name))
  if path.is_file():
    return path
  ordered = nearest(path.stem, names(), len(names()), cutoff=0)
  raise InputError(f"--config: file {name} not found, expected a config file or one of the names {', '.join(ordered)}")


def load(text: str) -> ConfigDict:
  """Loads a config.

  Args:
    text: name or path of a config as in `_find`; after a colon an argument for `get_config`, as in "mine.py:96".

  Raises:
    InputError: there is no such config, or its file does not work as one.
  """
  name, colon, argument = text.partition(":")
  path = _find(name)
  # The loader is named, since Python guesses none for files that do not end in .py.
  loader = importlib.machinery.SourceFileLoader("config_config", os.path.abspath(path))
  spec = importlib.util.spec_from_file_location("config_config", path, loader=loader)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    get_config = getattr(module, "get_config", None)
    if get_config is None:
      raise InputError(f"--config: found no function get_config in {path}, expected one as in the packaged configs")
    if colon and not inspect.signature(get_config).parameters:
      raise InputError(f"--config: found the argument {argument!r}, but get_config in {path} takes none")
    config = get_config(*([argument] if colon else []))
  except InputError:
    raise
  except SyntaxError as error:
    where = path if error.filename == os.path.abspath(path) else error.filename
    raise InputError(f"--config: {where} line {error.lineno} is not Python: {error.msg}") from error
  except Exception as error:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == os.path.abspath(path)]
    where = f"{path} line {lines[-1]}" if lines else path
    raise InputError(f"--config: {where} fails: {type(error).__name__}: {error}") from error
  if not isinstance(config, ConfigDict):
    raise InputError(f"--config: get_config in {path} returned {type(config).__name__}, expected a ConfigDict")
  return config


def _folder() -> Path:
  """Returns the folder of configs: inside an installed package, next to the package in a clone."""
  package = Path(seggpt_jax.__file__).parent
  return next(folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir())
