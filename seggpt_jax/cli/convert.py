"""Converts SegGPT weights between PyTorch and JAX.

  seggpt convert seggpt_vit_large.pth weights/vit_large          # PyTorch to JAX
  seggpt convert --to baai runs/mine finetuned.pth               # back, with the names of the original
  seggpt convert --to hf runs/mine finetuned_hf                  # back, as a transformers directory
  seggpt convert --to hf runs/mine mine_hf --push me/scratches   # the same, uploaded to the Hugging Face hub

INPUT is a .pth, .pt or .bin pickle, a .safetensors file, a Hugging Face model directory, or a weights directory or
training run of this package, or hf://OWNER/NAME, a repository on the hub.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import flags

import seggpt_jax
from seggpt_jax.errors import InputError
from seggpt_jax.files import expand, writing
from seggpt_jax.inference.trained import read_config, run_config
from seggpt_jax.model import hub, torch_files, torch_weights, weights
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.training.config import flatten
from seggpt_jax.training.monitor import read_metrics

_CARD = """\
---
library_name: seggpt-jax
pipeline_tag: image-segmentation
tags: [seggpt, in-context-segmentation, jax]
---

# {title}

Weights of SegGPT, a network that segments an image in the way that an example shows. Written by seggpt-jax {version}.

## Use

```
pip install seggpt-jax
seggpt infer --model-path {name} --dataset-dir images --prompt-image prompt.jpg --prompt-label prompt.png --outdir out
```

```python
import seggpt_jax

predictor = seggpt_jax.Predictor.from_checkpoint("{name}")
labels = predictor.predict("image.jpg", [("prompt.jpg", "prompt.png")]).labels
```

## Network

| | |
|---|---|
| parameters | {size:,} |
| blocks, width, heads | {depth}, {width}, {heads} |
| canvas: prompt over query | {canvas} pixels |
"""

# Keys of a run's configuration that the card tells; paths are cut to their last part.
_KEYS = (
  "model.init_from",
  "adapter.kind",
  "num_steps",
  "batch_size",
  "optim.name",
  "optim.peak",
  "data.resize",
  "data.zoom",
)


def _model_card(name: str, source: str | os.PathLike, params: Mapping[str, Any], config: SegGPTConfig) -> str:
  """Returns a model card in Markdown for the Hugging Face hub; of a run with its data, configuration, best scores."""
  card = _CARD.format(
    title=name.rpartition("/")[2],
    name=name,
    version=seggpt_jax.__version__,
    size=sum(value.size for value in params.values()),
    depth=config.depth,
    width=config.width,
    heads=config.num_heads,
    canvas=" x ".join(map(str, config.canvas_size)),
  )
  of_a_run = Path(expand(source)).exists() and weights.has_weights(source)
  path = run_config(source) if of_a_run else None
  if path is None:
    return card
  rows = [f"| {key} | {value} |" for key, value in (*_training(read_config(path)), *_scores(path.parent))]
  return "\n".join([card, "## Training", "", "| | |", "|---|---|", *rows, ""])


def _training(stored: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
  """Yields what a run's configuration tells. Older runs lack some keys."""
  values = flatten(stored)
  yield "data set", Path(str(values.get("data.path"))).name
  yield "classes, with the background", values.get("data.num_classes")
  if names := values.get("data.class_names"):
    yield "names of classes 1, 2, ...", ", ".join(map(str, names))
  for key in _KEYS:
    if values.get(key) not in (None, ""):
      yield f"`{key}`", Path(str(values[key])).name


def _scores(run: Path) -> Iterator[tuple[str, str]]:
  """Yields the validation scores of the step with the best mIoU, which are those of the weights that are kept."""
  scores = read_metrics(run / "metrics.jsonl").get("val", {})
  if "miou" not in scores:
    return
  step, _ = max(scores["miou"], key=lambda each: each[1])
  for key, series in scores.items():
    if key == "miou" or key.startswith("iou_"):
      yield f"{key.replace('miou', 'mIoU')}, validation, step {step}", f"{dict(series).get(step, float('nan')):.3f}"


ARGUMENTS = ("INPUT", "OUTPUT")


def define_flags() -> dict[str, list[flags.FlagHolder]]:
  """Defines the flags of the command."""
  to = flags.DEFINE_enum(
    "to", None, ["baai", "hf"], "Write PyTorch weights instead of JAX weights, named as BAAI or Hugging Face name them."
  )
  push = flags.DEFINE_string(
    "push", "", "Repository OWNER/NAME on the Hugging Face hub that gets OUTPUT and a model card."
  )
  private = flags.DEFINE_bool("private", False, "Create the repository such that only its owner can read it.")
  return {"Output": [to], "Upload": [push, private]}


def main(source: str, destination: str) -> None:
  """Converts one file or directory to another."""
  values = flags.FLAGS
  (weights.check_new if values.to else weights.check_new_weights)(destination)
  if values.private and not values.push:
    raise InputError("--push: not found; --private needs it")
  with writing(destination):  # before minutes are spent on reading
    Path(destination).absolute().parent.mkdir(parents=True, exist_ok=True)
  if weights.has_weights(source):
    found, unexpected = weights.resolve(source), ()
    params, config = weights.load_params(found), found.config
  else:
    conversion = torch_files.read(source)
    params, config, unexpected = conversion.params, conversion.config, conversion.unexpected
  if values.push:  # before anything is written, and not for an input that cannot be read
    hub.create(values.push, private=values.private)
  print(torch_weights.summary(params, unexpected))
  if values.to:
    torch_files.write(destination, params, config, values.to)
  else:
    weights.save_weights(destination, params, config)
  height, width = config.canvas_size
  print(f"depth {config.depth}, width {config.width}, heads {config.num_heads}, canvas {height} x {width}")
  print(f"written: {destination}")
  if values.push:
    output = Path(expand(destination))
    name = f"hf://{values.push}/{output.name}" if output.is_file() else f"hf://{values.push}"
    print(f"uploaded: {hub.upload(values.push, output, _model_card(name, source, params, config))}")
