"""Trains a tiny network twice, with our training loop and with a plain PyTorch loop, and draws both losses.

  python -m benchmarks.against_torch --keep

The peer is transformers' SegGPT with the same weights and torch.optim.AdamW. Its learning rate follows the original
formula. It gets the same batches, which the training pipeline makes of generated circuit boards; they are colored and
normalized here with NumPy. float32, no drop path, CPU. The exit status is 1 if the losses end more than 2 % apart.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from absl import app, flags
from flax import nnx
from ml_collections import ConfigDict
from tqdm import tqdm
from transformers import SegGptForImageSegmentation

from benchmarks import report
from benchmarks.torch_networks import peers_input
from seggpt_jax.data.pipeline import training_batches
from seggpt_jax.files import write_whole
from seggpt_jax.model import parameters, torch_files, weights
from seggpt_jax.model.config import VARIANTS
from seggpt_jax.model.seggpt import SegGPT
from seggpt_jax.synthetic.boards import LABELINGS, write_boards
from seggpt_jax.training.config import default_config
from seggpt_jax.training.inputs import open_inputs
from seggpt_jax.training.loop import train
from seggpt_jax.training.monitor import read_metrics
from seggpt_jax.training.optimizer import CYCLE_MULT, DECAY, MINIMUM

_NUM_STEPS = flags.DEFINE_integer("num_steps", 200, "Number of steps.", lower_bound=1)
_KEEP = flags.DEFINE_bool("keep", False, "Also write benchmarks/results/against_torch.json and the picture in docs.")

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "against_torch.png"
TOLERANCE = 0.02
LAST = 20  # steps that the final loss is averaged over, because a single one is as noisy as its batch


def recipe(folder: Path, num_steps: int) -> ConfigDict:
  """Returns a config that learns boards from random weights in a few hundred steps, with two cycles and warm-ups."""
  config = default_config()
  config.num_steps = num_steps
  config.batch_size = 8
  config.model.init_from = str(folder / "weights")
  config.model.drop_path_rate = 0.0
  config.model.remat = "none"
  config.data.path = str(folder / "boards")
  config.data.labels = "index"
  config.data.palette = "fixed"
  config.data.resize = 0
  config.optim.decay_all = True
  config.optim.peak = 1e-3
  config.optim.warmup = 20
  config.optim.first_cycle = max(21, round(0.6 * num_steps))
  config.optim.weight_decay = 0.05
  config.log_every = 1
  config.eval_every = config.checkpoint_every = num_steps
  return config


def learning_rates(optim: ConfigDict, num_steps: int) -> Iterator[float]:
  """Yields the learning rates of the original's cosine annealing with warm restarts, computed with plain counters."""
  in_cycle, length, top = 0, optim.first_cycle, optim.peak
  for _ in range(num_steps):
    if in_cycle < optim.warmup:
      yield (top - MINIMUM) * in_cycle / optim.warmup + MINIMUM
    else:
      phase = math.pi * (in_cycle - optim.warmup) / (length - optim.warmup)
      yield MINIMUM + (top - MINIMUM) * (1 + math.cos(phase)) / 2
    in_cycle += 1
    if in_cycle >= length:
      in_cycle, top = 0, top * DECAY
      length = int((length - optim.warmup) * CYCLE_MULT) + optim.warmup


def torch_losses(config: ConfigDict, weights_directory: Path) -> list[float]:
  """Trains the peer and returns the loss of each step."""
  network = SegGptForImageSegmentation.from_pretrained(weights_directory).train()
  optim = config.optim
  optimizer = torch.optim.AdamW(
    network.parameters(), lr=0.0, betas=(0.9, optim.b2), eps=1e-8, weight_decay=optim.weight_decay
  )
  model_config = weights.load_config(config.model.init_from)
  statistics = model_config.image_mean, model_config.image_std
  inputs = open_inputs(config, model_config, config.data.path)
  batches = training_batches(
    inputs.training, batch_size=config.batch_size, seed=config.seed, num_threads=1, num_workers=0
  )
  losses = []
  for rate in tqdm(learning_rates(optim, config.num_steps), total=config.num_steps, desc="PyTorch", unit="step"):
    for group in optimizer.param_groups:
      group["lr"] = rate
    loss = network(**peers_input(next(batches), *statistics), embedding_type="semantic").loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
  return losses


def draw(ours: np.ndarray, theirs: np.ndarray, path: Path) -> None:
  """Draws both losses, and their relative difference."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(11, 4), layout="constrained")
  losses, apart = figure.subplots(1, 2)
  steps = np.arange(1, len(ours) + 1)
  losses.plot(steps, theirs, linewidth=4, color="tab:orange", alpha=0.5, label="transformers, torch.optim.AdamW")
  losses.plot(steps, ours, linewidth=1, color="tab:blue", label="seggpt_jax")
  losses.set(title="loss on the same batches", xlabel="step")
  losses.legend()
  apart.semilogy(steps, np.maximum(np.abs(ours / theirs - 1), 1e-9), linewidth=1)
  apart.axhline(TOLERANCE, linestyle="--", color="gray", linewidth=1)
  apart.set(title="relative difference", xlabel="step")
  for axis in (losses, apart):
    axis.grid(alpha=0.3)
  write_whole(path, lambda file: figure.savefig(file, format="png", dpi=100), replace=True)


def main(argv: list[str]) -> None:
  del argv
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    config = recipe(folder, _NUM_STEPS.value)
    config.data.num_classes = len(LABELINGS["etched"])
    write_boards(folder / "boards", 200, 16, seed=0, size=64, scale=2.0, labels="etched")
    tiny = VARIANTS["tiny"]
    params = parameters.split(SegGPT(tiny, rngs=nnx.Rngs(0)))[1]
    weights.save_weights(folder / "weights", params, tiny)
    torch_files.write(folder / "hf", {name: np.asarray(value) for name, value in params.items()}, tiny, "hf")
    train(config, folder / "run")
    ours = np.array([loss for _, loss in read_metrics(folder / "run" / "metrics.jsonl")["train"]["loss"]])
    theirs = np.array(torch_losses(config, folder / "hf"))
  ends = [float(losses[-LAST:].mean()) for losses in (ours, theirs)]
  found = {
    "steps": len(ours),
    "first_loss": [float(ours[0]), float(theirs[0])],
    "loss_of_the_last_20_steps": ends,
    "relative_difference_at_the_end": abs(ends[0] / ends[1] - 1),
    "relative_difference_of_the_last_step": float(abs(ours[-1] / theirs[-1] - 1)),
    "largest_relative_difference": float(np.abs(ours / theirs - 1).max()),
  }
  for key, value in found.items():
    print(f"{key.replace('_', ' '):40s} {value}")
  if _KEEP.value:
    machine = report.machine(["jax", "torch", "transformers"])
    print(f"written: {report.write('against_torch', {'machine': machine, **found})}, {PICTURE}")
    draw(ours, theirs, PICTURE)
  sys.exit(max(found["relative_difference_at_the_end"], found["relative_difference_of_the_last_step"]) > TOLERANCE)


if __name__ == "__main__":
  app.run(main)
