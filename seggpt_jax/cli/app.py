"""Opens a page in the browser: label one image, see the others answered, correct some, train on them, and repeat.

  seggpt app --open
  seggpt app parts --model-path runs/mine --port 7861

PROJECT is the folder that the work is saved to at every change, and opened from at the next start; by default one in
the user's data directory. Everybody who opens the page works on the same project. The page listens on this machine
only. Any other --host needs a token, which the address that the command prints holds.
"""

from __future__ import annotations

import contextlib
import math
import os
import urllib.parse
import webbrowser
from pathlib import Path

from absl import flags

from seggpt_jax.cli import packaged_configs
from seggpt_jax.cli.data_flags import define_path
from seggpt_jax.cli.serve import define_address_flags, needs_app, read_token
from seggpt_jax.compilation import keep_programs
from seggpt_jax.errors import InputError
from seggpt_jax.files import exclusive
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.inference import annotation_files
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.trained import trained_options
from seggpt_jax.model import parameters
from seggpt_jax.model.adapter_files import StoredAdapter, load_adapter
from seggpt_jax.model.weights import load_config
from seggpt_jax.training.config import adapter_of

_LARGE = 30_000_000  # parameters from which training learns a LoRA instead of all weights
_MOST_PAGES = 100  # that have a default project open at once
_PATIENCE = 5  # seconds that open requests get when the page ends

ARGUMENTS = ("[PROJECT]",)
ENDS_WITH_TERMINAL = True


def define_flags() -> dict[str, list[flags.FlagHolder]]:
  """Defines the flags of the command."""
  return {
    "Network": [
      define_path(
        "model_path", "Path of weights or of a training run, packaged name or hf://OWNER/NAME.", default="small"
      ),
      define_path("adapter", "Training run that learned a LoRA or a prompt for these weights."),
    ],
    "Address": [
      *define_address_flags(7860, "the address of the page must hold"),
      flags.DEFINE_bool("open", False, "Open the page in the browser of this machine."),
    ],
    "Training": [
      flags.DEFINE_string(
        "config", None, "Packaged config or config file of training. By default head, or lora for large weights."
      )
    ],
  }


def main(project: str = "") -> None:
  """Serves the page of a project until it is stopped."""
  with needs_app():
    from seggpt_jax.app import server
    from seggpt_jax.app.answering import Network
    from seggpt_jax.app.engine import Engine
    from seggpt_jax.app.http import is_loopback
    from seggpt_jax.app.page_routes import create_page
    from seggpt_jax.app.project import Project, Recipe
  # Training runs in another process in parallel with this one, and JAX would take most of a GPU's memory for each.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  keep_programs()
  values = flags.FLAGS
  path, loopback = values.model_path, is_loopback(values.host)
  adapter = load_adapter(values.adapter) if values.adapter else None
  token, options = read_token(loopback), trained_options(values.adapter or path)
  config, learned_classes = values.config or _training_config(path), _learned_classes(path, adapter)
  recipe = Recipe(path, config, adapts=adapter_of(packaged_configs.load(config)) is not None)
  with contextlib.ExitStack() as closing:
    listening = closing.enter_context(server.listen(values.host, values.port))
    folder = _claim_folder(project, closing)
    engine = Engine(lambda: Predictor.from_checkpoint(path, adapter=adapter), options=options, warm_prompts=(1,))

    def load_plain() -> Network:
      return Network(Engine(lambda: Predictor.from_checkpoint(path)), trained_options(path))

    plain = load_plain if adapter is not None else None
    opened = Project(Network(engine, options), recipe, folder, plain=plain, learned_classes=learned_classes)
    closing.callback(opened.close)
    page = create_page(opened, token=token, loopback=loopback)
    address = server.address_of(listening) + (f"/?token={urllib.parse.quote(token)}" if token else "/")
    server.serve(page, [engine], listening, lambda: _announce(address, folder), _PATIENCE)


def _claim_folder(project: str, closing: contextlib.ExitStack) -> Path:
  """Returns the folder of the project, locked; without a name, the first default one that no other page has open."""
  from seggpt_jax.app.project_files import create_project, default_folder

  for number in range(1, _MOST_PAGES + 1):
    folder = create_project(project or default_folder() + (f"_{number}" if number > 1 else ""))
    try:
      closing.enter_context(exclusive(folder))
      return folder
    except InputError:
      if project or number == _MOST_PAGES:
        raise
  raise AssertionError("the last folder ends in one way or the other")


def _training_config(path: str) -> str:
  """Returns the config of training: a head for a network with features, a LoRA for a large one."""
  _, shapes = parameters.abstract(load_config(path))
  large = sum(math.prod(shape.shape) for shape in shapes.values()) > _LARGE
  return "lora" if large else "head" if load_config(path).backbone else "small"


def _learned_classes(path: str, adapter: StoredAdapter | None) -> tuple[str, ...]:
  """Returns the names of the classes of a learned prompt or a trained head, as far as its run has names; else none."""
  from seggpt_jax.app.pictures import MOST_CLASSES

  learned = adapter is not None and adapter.is_prompt
  run, count = (flags.FLAGS.adapter, adapter.num_classes - 1) if learned else (path, load_config(path).head_classes - 1)
  if count < 1:
    return ()
  if count > MOST_CLASSES:
    raise InputError(f"{run}: found {count} classes, expected at most {MOST_CLASSES}")
  names = annotation_files.class_names((), run, (), LabelFormat())
  return (*names[:count], *(f"class {number}" for number in range(len(names) + 1, count + 1)))


def _announce(address: str, folder: Path) -> None:
  """Prints the address of the page and its folder, and opens the page if the user wants that."""
  print(f"ready: {address} (project: {folder}; Ctrl-C ends it, and the same command continues)", flush=True)
  if flags.FLAGS.open:
    webbrowser.open(address)
