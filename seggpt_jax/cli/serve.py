r"""Answers requests of other programs over HTTP: images and prompts in, label maps out.

On this machine, for its own programs:

  seggpt serve --model-path small --port 8000

For other machines, with a token that every request must bring, and prompts that are stored at the start:

  SEGGPT_TOKEN=... seggpt serve --model-path runs/mine --host 0.0.0.0 --prompts scratches=prompts/scratches

Prints the address once the network is compiled. GET /docs there lists the requests and their fields. Ctrl-C or SIGTERM
ends the service after the requests that run. Flags such as --split set what requests get that do not choose themselves.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from seggpt_jax.cli import data_flags, inference_flags
from seggpt_jax.cli.address_flags import define_address_flags, needs_app, read_token
from seggpt_jax.cli.path_flags import define_path
from seggpt_jax.cli.runner import flag_name
from seggpt_jax.compilation import compile_notice, keep_programs
from seggpt_jax.errors import InputError, naming
from seggpt_jax.files import expand
from seggpt_jax.formats.images import read_image
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.prompts import load_prompt, read_label_map
from seggpt_jax.inference.queries import PromptFiles, given_prompts
from seggpt_jax.model.adapter_files import load_adapter
from seggpt_jax.model.adapters import LearnedPrompt
from seggpt_jax.model.weights import load_config
from seggpt_jax.retrieval.labeled_images import list_prompts

if TYPE_CHECKING:
  from seggpt_jax.app.limits import Limits
  from seggpt_jax.app.prompt_sets import PromptStore

# The flag and its unit for each limit.
_LIMITS = {"pixels": ("max_megapixels", 10**6), "seconds": ("max_seconds", 1), "memory_bytes": ("max_memory_mb", 2**20)}

ENDS_WITH_TERMINAL = True


def define_flags() -> dict[str, list[flags.FlagHolder]]:
  """Defines the flags of the command."""
  return {
    "Network": [
      define_path("model_path", "Weights or a training run, packaged name (small) or hf://OWNER/NAME.", required=True),
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
    **inference_flags.define_option_flags(),
    **data_flags.define_label_flags("as in training, else index"),
    "Limits": [
      flags.DEFINE_integer("max_megapixels", 50, "Megapixels of all images of a request together.", 1, 10**6),
      flags.DEFINE_float("max_seconds", 60, "Time to read a request, and again to answer it.", 0.1, 10**5),
      flags.DEFINE_integer("max_memory_mb", 4096, "Memory of all requests together, estimated, in MiB.", 1, 10**8),
    ],
  }


def main() -> None:
  """Serves until it is stopped."""
  with needs_app():
    from seggpt_jax.app import server
    from seggpt_jax.app.engine import Engine
    from seggpt_jax.app.http import is_loopback
    from seggpt_jax.app.prompt_sets import PromptStore
    from seggpt_jax.app.service import Service
  keep_programs()
  values = flags.FLAGS
  loopback = is_loopback(values.host)
  token = read_token(loopback)
  if values.split == ["objects"]:
    raise InputError("--split: found objects, expected another value: requests bring the prompts")
  weights, adapter = values.adapter or values.model_path, load_adapter(values.adapter) if values.adapter else None
  learned = adapter is not None and isinstance(adapter.adapter, LearnedPrompt)
  if values.prompts and (learned or load_config(values.model_path).head_classes):
    raise InputError("--prompts cannot be combined with a learned prompt or a trained head, which serves every query")
  labels = inference_flags.trained_label_format(weights)
  options = inference_flags.options_from_flags(weights, labels)
  limits = _limits()
  store = PromptStore(limits.prompt_bytes)
  counts = _store_prompts(store, limits, labels)
  listening = server.listen(values.host, values.port)
  print(compile_notice("the network", load_config(values.model_path).depth, training=False), flush=True)
  engine = Engine(
    lambda: Predictor.from_checkpoint(values.model_path, adapter=adapter),
    options=options,
    warm_prompts=counts,
    queue=limits.queue,
  )
  model, address = os.path.basename(os.path.normpath(weights)), server.address_of(listening)
  service = Service(engine, store, limits, model, options, labels, token, loopback)
  ready = f"ready: {address} ({model}, {len(store.list())} stored sets of prompts; requests: {address}/docs)"
  ended_by = server.serve(service.application(), engine, listening, lambda: print(ready, flush=True), limits.seconds)
  if ended_by == signal.SIGINT:
    raise KeyboardInterrupt


def _limits() -> Limits:
  """Returns the limits that the flags describe."""
  from seggpt_jax.app.limits import Limits

  try:
    return Limits(**{name: flags.FLAGS[flag].value * unit for name, (flag, unit) in _LIMITS.items()})
  except InputError as error:
    name, _, rest = str(error).partition(":")
    raise InputError(f"{flag_name(_LIMITS[name][0])}:{rest}") from error


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
      store.put(name, PromptSet(prompts), pinned=True)
  return sorted({1, *map(len, found.values())})


def _find_prompts(text: str) -> list[tuple[str, Sequence[PromptFiles]]]:
  """Returns the sets that one value of `--prompts` names, each with its files.

  Raises:
    InputError: a file or folder is missing.
  """
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
