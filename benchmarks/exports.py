"""Compares exported networks with the model: errors, labels and time, in one run on the CPU.

  python -m benchmarks.exports
  python -m benchmarks.exports --networks=vit_large --turns=2   # more than 20 GB of memory; keeps other networks' rows

`small` has the weights that come with the package and sees circuit boards; other networks have random parameters and
see noise. Model and exports take turns. The reference is the model in float32, as `Predictor` runs it.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
from absl import app, flags
from flax import nnx

from benchmarks import report
from benchmarks.timing import median_seconds, take_turns
from seggpt_jax import canvas, palette
from seggpt_jax.export import build_onnx, build_stablehlo
from seggpt_jax.inference import tiling
from seggpt_jax.model import packaged, parameters
from seggpt_jax.model.config import VARIANTS
from seggpt_jax.model.ensemble import predict_queries
from seggpt_jax.model.seggpt import SegGPT
from seggpt_jax.synthetic.boards import BoardSource

_NETWORKS = flags.DEFINE_list("networks", ["small"], "Packaged names, or variants with random parameters.")
_DTYPES = flags.DEFINE_list("dtypes", ["float32", "float16"], "Types of the exports.")
_PROMPTS = flags.DEFINE_integer("prompts", 2, "Number of prompts.", 1)
_BATCH = flags.DEFINE_integer("batch", 1, "Number of queries.", 1)
_TURNS = flags.DEFINE_integer("turns", 5, "Number of turns.", 1)

_CLASSES = 3
_PACKAGES = ("jax", "onnx", "onnxruntime")
_Program = Callable[..., np.ndarray]  # the three inputs of an export to colors


def load(network: str) -> tuple[SegGPT, bool]:
  """Returns a network in float32, and whether it has trained weights."""
  if network in packaged.names():
    path = packaged.path_of(network)
    return parameters.build_model(packaged.read_config(path), packaged.read_params(path), training=False), True
  return SegGPT(VARIANTS[network], training=False, rngs=nnx.Rngs(0)), False


def inputs(model: SegGPT, trained: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns queries, prompts and colored masks."""
  size, count = (model.config.canvas_size[0] // 2, model.config.canvas_size[1]), _BATCH.value * (_PROMPTS.value + 1)
  if trained:
    source = BoardSource(count, 0, size=192, scale=3.0, labels="etched")
    samples = [source[index] for index in range(count)]
    images = np.stack([tiling.resize_image(sample["image"], size) for sample in samples])
    labels = np.stack([tiling.resize_labels(sample["label"].astype(np.int32), size) for sample in samples])
  else:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, *size, 3), np.uint8)
    labels = generator.integers(0, _CLASSES, (count, *size))
  images, colors = (x.reshape(_BATCH.value, -1, *size, 3) for x in (images, palette.fixed_palette(_CLASSES)[labels]))
  return images[:, 0], images[:, 1:], colors[:, 1:]


def as_model(model: SegGPT) -> _Program:
  """Returns the network as `Predictor` runs it, without rounding the colors."""
  config, (graph, params) = model.config, parameters.split(model)

  @jax.jit
  def run(params, query, images, targets):
    query, images, targets = (
      canvas.normalize(x, config.image_mean, config.image_std) for x in (query, images, targets)
    )
    rows, cols = config.grid
    hidden = jnp.ones((len(query), rows // 2, cols), bool)
    colors = predict_queries(parameters.merge(graph, params), query, images, targets, jnp.zeros_like(query), hidden)
    return canvas.unnormalize(colors, config.image_mean, config.image_std)

  return lambda *pixels: np.asarray(run(params, *pixels))


def export(model: SegGPT, kind: str, dtype: str, path: Path) -> _Program:
  """Writes an export, and returns the program that runs it."""
  graph, _ = parameters.abstract(model.config, dtype=jnp.dtype(dtype), attention="folded", training=False)
  model = parameters.merge(graph, parameters.split(model)[1])
  if kind == "onnx":
    path.write_bytes(build_onnx(model, _PROMPTS.value).SerializeToString())
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda *pixels: session.run(None, dict(zip(names, pixels, strict=True)))[0]
  path.write_bytes(build_stablehlo(model, _PROMPTS.value))
  exported = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
  return lambda *pixels: np.asarray(exported(*pixels))


def measure(network: str, folder: Path) -> list[dict[str, Any]]:
  """Returns a row for the model, and one for each kind and type of export."""
  model, trained = load(network)
  pixels = inputs(model, trained)
  programs, sizes = {("model", "float32"): as_model(model)}, {}
  for dtype in _DTYPES.value:
    for kind in ("onnx", "stablehlo"):
      path = folder / f"{network}_{dtype}.{kind}"
      programs[kind, dtype] = export(model, kind, dtype, path)
      sizes[kind, dtype] = path.stat().st_size
  colors = {key: program(*pixels) for key, program in programs.items()}  # compiles
  taken = take_turns({key: functools.partial(program, *pixels) for key, program in programs.items()}, _TURNS.value, 0.0)
  expected, rows = colors["model", "float32"], []
  palettes = np.repeat(palette.fixed_palette(_CLASSES)[None], _BATCH.value, 0)
  labels = palette.decode(jnp.asarray(expected), palettes)
  for key, found in colors.items():
    same = float(np.mean(palette.decode(jnp.asarray(found), palettes) == labels))
    error = float(np.abs(found - expected).max() / 255)
    shares = np.bincount(np.ravel(labels), minlength=_CLASSES) / labels.size
    rows.append(
      {
        "device": report.device("cpu"),
        "network": network,
        "kind": key[0],
        "dtype": key[1],
        "prompts": _PROMPTS.value,
        "batch": _BATCH.value,
      }
      | {"error": error, "same_labels": same, "shares": shares.tolist(), "bytes": sizes.get(key)}
      | {"seconds": [turn.seconds for turn in taken[key]], "others": max(turn.others for turn in taken[key])}
    )
    print(f"{network} {' '.join(key)}: error {error:.1e}, labels {same:.4%}, {median_seconds(taken[key]):.3f} s")
  return rows


def main(_: list[str]) -> None:
  rows = []
  for network in _NETWORKS.value:
    with tempfile.TemporaryDirectory() as folder:
      rows += measure(network, Path(folder))
  # Errors do not depend on how busy the machine is. Rows of a busy one are kept, and the table says that their times
  # are void.
  path = report.RESULTS / "exports.json"
  before = json.loads(path.read_text())["rows"] if path.exists() else []
  rows = report.merge_rows(before, rows, ("network", "kind", "dtype"))
  print(f"written: {report.write('exports', {'machine': report.machine(_PACKAGES), 'rows': rows})}")


if __name__ == "__main__":
  app.run(main)
