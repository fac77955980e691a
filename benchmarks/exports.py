"""Compares exported networks with the model: errors, labels, time and memory, in one run on the CPU.

  python -m benchmarks.exports
  python -m benchmarks.exports --networks=vit_large --prompts=1 --turns=2      # keeps the rows of other networks

`small` has the weights that come with the package and sees circuit boards; other networks have random parameters and
see noise. First, `seggpt export` writes each file, in a process of its own. The reference is the model in float32, as
`Predictor` runs it. It takes turns with one export after the other, each in its own process, so memory never holds
more than two programs.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import statistics
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks import children, report
from benchmarks.side_process import SPAWN, Running, SideProcess, take_turns
from seggpt_jax import palette
from seggpt_jax.inference import tiling
from seggpt_jax.model import packaged, weights
from seggpt_jax.model.config import VARIANTS, SegGPTConfig
from seggpt_jax.synthetic.boards import BoardSource

_NETWORKS = flags.DEFINE_list("networks", ["drawn"], "Packaged names, or variants with random parameters.")
_KINDS = flags.DEFINE_list("kinds", ["onnx", "stablehlo"], "Formats of the exports.")
_DTYPES = flags.DEFINE_list("dtypes", ["float32", "float16"], "Types of the exports.")
_PROMPTS = flags.DEFINE_integer("prompts", 2, "Number of prompts.", 1)
_BATCH = flags.DEFINE_integer("batch", 1, "Number of queries.", 1)
_TURNS = flags.DEFINE_integer("turns", 5, "Number of turns.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the boards or of the noise.")
_KEEP = flags.DEFINE_bool("keep", True, "Also write the results to benchmarks/results/exports.json.")

_CLASSES = 3
_PACKAGES = ("jax", "onnx", "onnxruntime")


@dataclasses.dataclass(frozen=True)
class Side:
  """Settings of the model or of an export.

  Attributes:
    kind: "model", "onnx" or "stablehlo".
    path: the weights, or the exported file.
    pixels: the three inputs of an export.
    least_seconds: minimum length of a turn.
  """

  kind: str
  path: str
  pixels: tuple[np.ndarray, ...]
  least_seconds: float = 0.5


def start(side: Side) -> Running:
  """Loads the program of a side."""
  program = {"model": load_model, "onnx": load_onnx, "stablehlo": load_stablehlo}[side.kind](side.path)
  call = functools.partial(program, *side.pixels)
  return Running(call, call, lambda: None, lambda: None)


def load_model(path: str):
  """Returns the network as `Predictor` runs it, without rounding the colors."""
  import jax
  import jax.numpy as jnp

  from seggpt_jax import canvas
  from seggpt_jax.model import parameters
  from seggpt_jax.model.ensemble import predict_queries

  model = weights.load_model(path, training=False)
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


def load_onnx(path: str):
  import onnxruntime

  session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
  names = [each.name for each in session.get_inputs()]
  return lambda *pixels: session.run(None, dict(zip(names, pixels, strict=True)))[0]


def load_stablehlo(path: str):
  import jax

  exported = jax.jit(jax.export.deserialize(bytearray(Path(path).read_bytes())).call)
  return lambda *pixels: np.asarray(exported(*pixels))


def write_random_weights(variant: str, folder: Path) -> None:
  """Writes a weights directory. Call it in a process of its own, whose memory is free again afterwards."""
  from benchmarks import networks

  weights.save_weights(folder, networks.random_params(VARIANTS[variant]), VARIANTS[variant])


def inputs(config: SegGPTConfig, *, trained: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns queries, prompts and colored masks."""
  size, count = (config.canvas_size[0] // 2, config.canvas_size[1]), _BATCH.value * (_PROMPTS.value + 1)
  if trained:
    source = BoardSource(count, _SEED.value, size=192, scale=3.0, labels="etched")
    samples = [source[index] for index in range(count)]
    images = np.stack([tiling.resize_image(sample["image"], size) for sample in samples])
    labels = np.stack([tiling.resize_labels(sample["label"].astype(np.int32), size) for sample in samples])
  else:
    generator = np.random.default_rng(_SEED.value)
    images = generator.integers(0, 256, (count, *size, 3), np.uint8)
    labels = generator.integers(0, _CLASSES, (count, *size))
  images, colors = (x.reshape(_BATCH.value, -1, *size, 3) for x in (images, palette.fixed_palette(_CLASSES)[labels]))
  return images[:, 0], images[:, 1:], colors[:, 1:]


def decode(colors: np.ndarray) -> np.ndarray:
  return np.asarray(palette.decode(colors, np.repeat(palette.fixed_palette(_CLASSES)[None], len(colors), 0)))


def run_beside(model: Side, exported: Side) -> list[SideProcess]:
  """Lets an export and the model take turns, and returns their processes, which have ended.

  The export starts first. Compiling it takes more memory than anything else, so the model must not be there yet.

  Raises:
    RuntimeError: a process failed.
  """
  processes = take_turns((exported, model), start, _TURNS.value, count_start=True)
  for process in processes:
    if process.error is not None:
      raise RuntimeError(f"{process.side.kind} {process.side.path}: {process.error}")
  return processes


def export(name: str, kind: str, dtype: str, path: Path) -> int:
  """Writes an export, and returns the peak memory of `seggpt export` in bytes."""
  options = (f"--to={kind}", f"--dtype={dtype}", f"--prompts={_PROMPTS.value}")
  return children.run_module("exported", name, str(path), *options)["memory"]


def compare(network: str, name: str, folder: Path) -> Iterator[dict[str, Any]]:
  """Yields a row for each kind and type of export, and then one for the model.

  Args:
    network: name in the rows.
    name: name or path of the weights.
    folder: where exports are written.
  """
  pixels = inputs(weights.load_config(name), trained=name == network)
  same = {"device": report.device("cpu"), "network": network, "prompts": _PROMPTS.value, "batch": _BATCH.value}
  paths = {
    (kind, dtype): folder / f"{network}_{dtype}.{kind}"
    for dtype, kind in itertools.product(_DTYPES.value, _KINDS.value)
  }
  export_memory = {key: export(name, *key, path) for key, path in paths.items()}
  models = []
  for (kind, dtype), path in paths.items():
    program, model = run_beside(Side("model", name, pixels), Side(kind, str(path), pixels))
    models.append(model)
    pairs = list(zip(program.turns, model.turns, strict=True))
    yield same | {
      **{"kind": kind, "dtype": dtype, "bytes": path.stat().st_size},
      "error": float(np.abs(program.output - model.output).max() / 255),
      "same_labels": float(np.mean(decode(program.output) == decode(model.output))),
      "seconds": [turn.seconds for turn in program.turns],
      "ratio": statistics.median(mine.seconds / beside.seconds for mine, beside in pairs),
      "others": max(turn.others for pair in pairs for turn in pair),
      **{"memory": program.memory, "export_memory": export_memory[kind, dtype]},
    }
  labels, turns = decode(models[0].output), [turn for model in models for turn in model.turns]
  yield same | {
    **{"kind": "model", "dtype": "float32", "bytes": None, "error": 0.0, "same_labels": 1.0, "ratio": 1.0},
    "shares": (np.bincount(labels.ravel(), minlength=_CLASSES) / labels.size).tolist(),
    "seconds": [turn.seconds for turn in turns],
    "others": max(turn.others for turn in turns),
    **{"memory": max(model.memory for model in models), "export_memory": None},
  }


def measure(network: str, folder: Path) -> list[dict[str, Any]]:
  """Returns the model's row and those of its exports."""
  name = network
  if network not in packaged.names():
    name = str(folder / "weights")
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
      pool.submit(write_random_weights, network, Path(name)).result()
  rows = []
  for row in compare(network, name, folder):
    memory = f"{row['memory'] / 1e9:.2f} GB, export {(row['export_memory'] or 0) / 1e9:.2f} GB"
    print(
      f"{network} {row['kind']} {row['dtype']}: error {row['error']:.1e}, labels {row['same_labels']:.4%}, "
      f"{statistics.median(row['seconds']):.3f} s, {row['ratio']:.2f} of the model's, {memory}",
      flush=True,
    )
    rows.append(row)
  return [rows[-1], *rows[:-1]]


def main(_: list[str]) -> None:
  for network in _NETWORKS.value:
    with tempfile.TemporaryDirectory() as folder:
      rows = measure(network, Path(folder))
    if _KEEP.value:
      # Errors do not depend on how busy the machine is. Rows of a busy one are kept, and the table says that their
      # times are void.
      path = report.RESULTS / "exports.json"
      before = json.loads(path.read_text())["rows"] if path.exists() else []
      rows = report.merge_rows(before, rows, ("network", "prompts", "kind", "dtype"))
      print(f"written: {report.write('exports', {'machine': report.machine(_PACKAGES), 'rows': rows})}")


if __name__ == "__main__":
  app.run(main)
