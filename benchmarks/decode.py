"""Times decoding of colors to labels: jitted `palette.decode` against a loop of torch.cdist and argmin.

  python -m benchmarks.decode --keep

The input is four canvases of the released network's size in memory, float32 colors 0..255, each near the color of its
class. Both sides run on the same device with all cores, and take turns. Labels are compared with those from float64,
ties to the lower index. The exit status is 1 if any label of `palette.decode` differs.
"""

from __future__ import annotations

import os
import statistics
import sys

# Leaves memory on the device for PyTorch.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags

from benchmarks import report, tables, timing
from seggpt_jax import palette

_COLORS = flags.DEFINE_list("colors", ["2", "4", "16"], "Numbers of colors in a palette.")
_ROUNDS = flags.DEFINE_integer("rounds", 10, "Number of turns of each side.", 1)
_LEAST_SECONDS = flags.DEFINE_float("least_seconds", 0.2, "Minimum length of a turn.")
_KEEP = flags.DEFINE_bool("keep", False, "Also write the results to benchmarks/results/decode.json.")

_KEY = ("device", "colors")
BATCH, HEIGHT, WIDTH = 4, 896, 448


def noisy_colors(num_colors: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns noisy colors `[B, H, W, 3]` and their palettes `[B, N, 3]`, float32."""
  generator = np.random.default_rng(num_colors)
  palettes = np.stack([palette.sample_palette(generator, num_colors) for _ in range(BATCH)]).astype(np.float32)
  labels = generator.integers(0, num_colors, (BATCH, HEIGHT, WIDTH))
  colors = np.stack([colors[index] for colors, index in zip(palettes, labels, strict=True)])
  noise = generator.normal(0.0, 20.0, colors.shape)
  return np.clip(colors + noise, 0, 255).astype(np.float32), palettes


def exact(colors: np.ndarray, palettes: np.ndarray) -> np.ndarray:
  """Returns the labels computed in float64, one palette color after the other."""
  wide = palettes.astype(np.float64)
  distances = [((colors - wide[:, None, None, index]) ** 2).sum(-1) for index in range(wide.shape[1])]
  return np.argmin(distances, axis=0)


def with_cdist(colors: torch.Tensor, palettes: torch.Tensor) -> torch.Tensor:
  """Decodes in the usual way: all distances of a sample, then the smallest."""
  labels = []
  for pixels, known in zip(colors, palettes, strict=True):
    labels.append(torch.cdist(pixels.reshape(-1, 3), known).argmin(-1).reshape(pixels.shape[:2]))
  return torch.stack(labels)


def main(argv: list[str]) -> None:
  del argv
  on_gpu = torch.cuda.is_available()
  if on_gpu != (jax.default_backend() == "gpu"):
    sys.exit(f"devices: found {jax.default_backend()} for JAX, expected what PyTorch has, {'gpu' if on_gpu else 'cpu'}")
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  device, decode, rows = report.device(jax.devices()[0].device_kind), jax.jit(palette.decode), []
  print(f"{device}\n\n{tables.DECODE_HEAD}", flush=True)
  for num_colors in map(int, _COLORS.value):
    colors, palettes = noisy_colors(num_colors)
    ours = jnp.asarray(colors), jnp.asarray(palettes)
    theirs = [torch.from_numpy(array).to("cuda" if on_gpu else "cpu") for array in (colors, palettes)]

    def in_jax(arrays=ours) -> jax.Array:
      return decode(*arrays).block_until_ready()

    def in_torch(arrays=theirs) -> torch.Tensor:
      labels = with_cdist(*arrays)
      if on_gpu:
        torch.cuda.synchronize()
      return labels

    ways, truth = {"seggpt_jax": in_jax, "torch": in_torch}, exact(colors, palettes)
    found = {"seggpt_jax": np.asarray(in_jax()), "torch": in_torch().cpu().numpy()}  # compiled, and warm
    turns = timing.take_turns(ways, _ROUNDS.value, _LEAST_SECONDS.value)
    seconds = {name: [turn.seconds for turn in taken] for name, taken in turns.items()}
    row = {"device": device, "colors": num_colors, "seconds": seconds}
    row["others"] = max(turn.others for taken in turns.values() for turn in taken)
    row["ratio"] = statistics.median(a / b for a, b in zip(seconds["seggpt_jax"], seconds["torch"], strict=True))
    row["wrong"] = {name: int((labels != truth).sum()) for name, labels in found.items()}
    rows.append(row)
    print(tables.decode_line(row), flush=True)
  if _KEEP.value:
    report.keep_rows("decode", rows, _KEY, device, ["jax", "torch"])
  sys.exit(any(row["wrong"]["seggpt_jax"] for row in rows))


if __name__ == "__main__":
  app.run(main)
