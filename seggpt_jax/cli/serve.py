r"""Answers requests of other programs over HTTP: images and prompts in, label maps out.

  seggpt serve --model-path small --port 8000
  seggpt serve --model-path small --model-path parts=runs/mine
  SEGGPT_TOKEN=... seggpt serve --model-path runs/mine --host 0.0.0.0 --prompts scratches=prompts/scratches

The first serves programs of this machine. The second has two networks, which requests name with model=NAME; without it
the first one answers. The third serves other machines, which must bring the token, and stores prompts at the start.

Prints the address once the networks are compiled. GET /docs there lists the requests and their fields. Requests that
set no options get those that fit the network: the scale of its training, and its operating point. Ctrl-C or SIGTERM
ends the service after the requests that run.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from seggpt_jax.cli import data_flags, inference_flags
from seggpt_jax.cli.data_flags import define_path
from seggpt_jax.compilation import compile_notice, keep_programs
from seggpt_jax.errors import InputError, naming
from seggpt_jax.files import expand
from seggpt_jax.formats.images import read_image
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.inference import annotation_files
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.prompts import load_prompt, read_label_map
from seggpt_jax.inference.queries import PromptFiles, given_prompts
from seggpt_jax.inference.trained import trained_options
from seggpt_jax.model.adapter_files import load_adapter
from seggpt_jax.model.weights import load_config
from seggpt_jax.retrieval.labeled_images import list_prompts

if TYPE_CHECKING:
  from seggpt_jax.app.limits import Limits
  from seggpt_jax.app.prompt_sets import PromptStore


_TOKEN = "SEGGPT_TOKEN"


def define_address_flags(port: int, token: str) -> list[flags.FlagHolder]:
  """Defines the flags.

  Args:
    port: the default port.
    token: how the token is brought, for the help.
  """
  return [
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; 0.0.0.0 for other machines, with a token."),
    flags.DEFINE_integer("port", port, "Port to listen at; 0 takes a free one.", 0, 65535),
    flags.DEFINE_string("token", None, f"Token that {token}. By default ${_TOKEN}."),
  ]


def read_token(loopback: bool) -> str:
  """Returns the token of the flag or of the environment, or "".

  Args:
    loopback: whether only this machine reaches the address.

  Raises:
    InputError: other machines reach it and there is no token, or it has characters that no header may have.
  """
  token = flags.FLAGS.token if flags.FLAGS.token is not None else os.environ.get(_TOKEN)
  if token is None and not loopback:
    raise InputError(f"--token: missing with --host={flags.FLAGS.host}, expected one (or ${_TOKEN}) for other machines")
  if token is None:
    return ""
  if not token or not token.isascii() or not token.isprintable() or " " in token:
    raise InputError(
      f"--token: found {'an empty one' if not token else 'other characters'}, expected ASCII without spaces"
    )
  return token


@contextlib.contextmanager
def needs_app() -> Iterator[None]:
  """Turns the lack of a package that only these commands need into one line that says how to get it."""
  try:
    yield
  except ModuleNotFoundError as error:
    if (error.name or "").startswith("seggpt_jax"):
      raise
    raise InputError(f"{error.name} is not installed; pip install 'seggpt-jax[app]'") from error


_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)=(.+)")  # NAME=PATH

ENDS_WITH_TERMINAL = True


def define_flags() -> dict[str, list[flags.FlagHolder]]:
  """Defines the flags of the command."""
  return {
    "Network": [
      flags.DEFINE_multi_string(
        "model_path",
        None,
        "Weights or a training run, packaged name (small) or hf://OWNER/NAME. May be repeated as NAME=PATH, for "
        "requests with model=NAME.",
        required=True,
      ),
      define_path("adapter", "Training run that learned a LoRA or a prompt for these weights."),
    ],
    "Address": define_address_flags(8000, "requests must bring as Authorization: Bearer TOKEN"),
    "Prompts": [
      flags.DEFINE_multi_string(
        "prompts",
        [],
        "NAME=IMAGE,LABEL or NAME=FOLDER with images/ and labels/, stored for requests with prompts=NAME; or a folder "
        "of such folders. May be repeated.",
      )
    ],
    **data_flags.define_label_flags("as in training, else index"),
    "Limits": [
      flags.DEFINE_integer("max_megapixels", 50, "Megapixels of all images of a request together.", 1, 10**6),
      flags.DEFINE_float("max_seconds", 60, "Time to read a request, and again to answer it.", 0.1, 10**5),
    ],
  }


def main() -> None:
  """Serves until it is stopped."""
  with needs_app():
    from seggpt_jax.app import server
    from seggpt_jax.app.engine import Engine
    from seggpt_jax.app.http import is_loopback
    from seggpt_jax.app.limits import Limits
    from seggpt_jax.app.prompt_sets import PromptStore
    from seggpt_jax.app.service import Served, Service
  keep_programs()
  values = flags.FLAGS
  loopback = is_loopback(values.host)
  token, paths = read_token(loopback), _paths(values.model_path)
  weights = {name: values.adapter or path for name, path in paths.items()}
  adapter = load_adapter(values.adapter) if values.adapter else None
  learned = adapter is not None and adapter.is_prompt
  if values.prompts and (learned or all(load_config(path).head_classes for path in paths.values())):
    raise InputError("--prompts cannot be combined with a learned prompt or a trained head, which serves every query")
  trained = {name: (trained_options(run), inference_flags.trained_label_format(run)) for name, run in weights.items()}
  limits = Limits(pixels=values.max_megapixels * 10**6, seconds=values.max_seconds)
  store = PromptStore(limits.prompt_bytes)
  counts = _store_prompts(store, limits, next(iter(trained.values()))[1])
  listening = server.listen(values.host, values.port)
  depth, models = sum(load_config(path).depth for path in paths.values()), {}
  print(compile_notice("the network", depth, training=False), flush=True)
  for name, (options, labels) in trained.items():
    load = functools.partial(Predictor.from_checkpoint, paths[name], adapter=adapter)
    engine = Engine(load, options=options, warm_prompts=counts, queue=limits.queue)
    models[name] = Served(engine, options, labels, annotation_files.class_names((), weights[name], (), labels))
  service, address = Service(models, store, limits, token, loopback), server.address_of(listening)
  names, engines = ", ".join(models), [each.engine for each in models.values()]
  ready = f"ready: {address} ({names}, {len(store.list())} stored sets of prompts; requests: {address}/docs)"
  server.serve(service.application(), engines, listening, lambda: print(ready, flush=True), limits.seconds)


def _paths(given: Sequence[str]) -> dict[str, str]:
  """Returns the paths of the networks by their names."""
  paths: dict[str, str] = {}
  for text in given:
    named = _NAME.fullmatch(text)
    path = expand(named[2] if named else text)
    name = named[1] if named else os.path.basename(os.path.normpath(flags.FLAGS.adapter or path))
    if not path or name in paths:
      raise InputError(f"--model-path: found {name + ' twice' if path else 'an empty value'}, expected NAME=PATH")
    paths[name] = path
  if len(paths) > 1 and flags.FLAGS.adapter:
    raise InputError("--adapter cannot be combined with several --model-path")
  return paths


def _store_prompts(store: PromptStore, limits: Limits, labels: LabelFormat) -> list[int]:
  """Stores the prompts of the flags; returns the numbers of prompts of the sets, and 1."""
  from seggpt_jax.app.prompt_sets import PromptSet

  found: dict[str, list[PromptFiles]] = {}
  for text in flags.FLAGS.prompts:
    for name, files in _find_prompts(text):
      found.setdefault(name, []).extend(files)
  for name, files in found.items():
    with naming(f"--prompts: {name}"):
      limits.check_count("prompts", len(files), limits.prompts)
      prompts = []
      for each in files:
        image = read_image(each.image)
        prompts.append(load_prompt((image, read_label_map(each.labels, image, labels)), str(each.labels)))
      store.put(name, PromptSet(prompts, pinned=True))
  return sorted({1, *map(len, found.values())})


def _find_prompts(text: str) -> list[tuple[str, Sequence[PromptFiles]]]:
  """Returns the sets that one value of `--prompts` names, each with its files."""
  name, equals, paths = text.partition("=")
  if not equals:
    folder = Path(expand(text))
    folders = sorted(each for each in folder.iterdir() if (each / "images").is_dir()) if folder.is_dir() else []
    if not folders:
      raise InputError(
        f"--prompts: found {text!r}, expected NAME=IMAGE,LABEL, NAME=FOLDER with images/ and labels/, or a folder of "
        "such folders"
      )
    return [(each.name, list_prompts(each / "images", each / "labels")) for each in folders]
  folder = Path(expand(paths))
  if folder.is_dir():
    return [(name, list_prompts(folder / "images", folder / "labels"))]
  image, comma, label = paths.rpartition(",")
  if not comma:
    raise InputError(f"--prompts: {name}: found {paths!r}, expected IMAGE,LABEL or a folder with images/ and labels/")
  with naming("--prompts"):
    return [(name, given_prompts([image], [label]))]
