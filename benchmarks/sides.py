"""The sides of the comparison with PyTorch. Neither JAX nor PyTorch is imported before a side needs it."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path

import numpy as np

from benchmarks import noise
from benchmarks.side_process import Running


@dataclasses.dataclass(frozen=True)
class Side:
  """Settings of one side.

  Attributes:
    name: name in tables.
    way: "jax" for seggpt_jax, "eager" or "compile" for PyTorch.
    variant: architecture, a key of seggpt_jax.model.config.VARIANTS.
    dtype: compute dtype, float32 or bfloat16; parameters are float32.
    work: "forward", "train" or "predict".
    batch_size: number of canvases.
    least_seconds: minimum length of a turn.
    weights: Hugging Face directory from `write_weights`.
    remat: rematerialization of seggpt_jax: none, dots or full.
    attention: attention implementation of seggpt_jax; None for the default.
  """

  name: str
  way: str
  variant: str
  dtype: str
  work: str
  batch_size: int
  least_seconds: float
  weights: Path
  remat: str = "none"
  attention: str | None = None


def start(side: Side) -> Running:
  """Builds the network of a side."""
  return in_jax(side) if side.way == "jax" else in_torch(side)


def in_jax(side: Side) -> Running:
  import jax

  from benchmarks import networks
  from seggpt_jax.model import parameters
  from seggpt_jax.model.config import VARIANTS

  if side.dtype == "float32":
    # By default GPUs and TPUs multiply float32 in fewer bits in JAX, but not in PyTorch.
    jax.config.update("jax_default_matmul_precision", "highest")
  config = dataclasses.replace(VARIANTS[side.variant], drop_path_rate=0.0)
  chosen = {} if side.attention is None else {"attention": side.attention}
  graph, _ = parameters.abstract(config, dtype=side.dtype, remat=side.remat, **chosen)
  params = networks.random_params(config)
  if side.work == "train":
    call = networks.train_call(networks.start_training(graph, config, params, side.batch_size))
  else:
    make = {"forward": networks.forward_call, "predict": networks.predict_call}[side.work]
    call = make(graph, config, params, side.batch_size)

  def device_memory() -> int | None:
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

  return Running(call, lambda: None if side.work == "train" else np.asarray(call()), lambda: None, device_memory)


def in_torch(side: Side) -> Running:
  import torch
  from transformers import SegGptForImageSegmentation
  from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
  from transformers.utils.logging import disable_progress_bar

  from benchmarks import torch_networks

  disable_progress_bar()
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  on_gpu = torch.cuda.is_available()
  device = "cuda" if on_gpu else "cpu"
  network = SegGptForImageSegmentation.from_pretrained(side.weights).to(device)
  network.train(side.work == "train")
  size, patch = network.config.image_size, network.config.patch_size
  batch = torch_networks.peers_input(
    noise.training_batch(size, patch, side.batch_size), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
  )
  inputs = {name: value.to(device).contiguous() for name, value in batch.items()}
  run = functools.partial(torch.compile(network) if side.way == "compile" else network, embedding_type="semantic")
  autocast = functools.partial(torch.autocast, device, torch.bfloat16, enabled=side.dtype == "bfloat16")
  shown = {name: inputs[name] for name in ("pixel_values", "prompt_pixel_values", "prompt_masks")}
  optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.01)

  def train() -> None:
    with autocast():
      loss = run(**inputs).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

  @torch.no_grad()
  def forward() -> torch.Tensor:
    with autocast():
      return run(**shown).pred_masks

  @torch.no_grad()
  def predict() -> torch.Tensor:
    one_by_one = range(side.batch_size)
    half = size[0] // 2
    colors = [run(**{name: value[i : i + 1] for name, value in shown.items()}).pred_masks for i in one_by_one]
    return torch.cat(colors)[:, :, half:]

  work = {"train": train, "forward": forward, "predict": predict}[side.work]

  def call() -> torch.Tensor | None:
    result = work()
    if on_gpu:
      torch.cuda.synchronize()
    return result

  return Running(
    call,
    lambda: None if side.work == "train" else call().float().permute(0, 2, 3, 1).cpu().numpy(),
    torch.cuda.empty_cache if on_gpu else lambda: None,
    lambda: torch.cuda.max_memory_allocated() if on_gpu else None,
  )


def write_weights(variant: str, folder: Path) -> dict[str, int]:
  """Writes random weights as a Hugging Face directory, which all sides read.

  Call it in a process of its own, which leaves nothing on the device.

  Returns:
    Floating point operations per canvas for each kind of work.
  """
  from benchmarks import cost, networks
  from seggpt_jax.model import torch_files
  from seggpt_jax.model.config import VARIANTS

  config = dataclasses.replace(VARIANTS[variant], drop_path_rate=0.0)
  params = {name: np.array(value) for name, value in networks.random_params(config).items()}
  torch_files.write(folder, params, config, "hf")
  forward = cost.forward_flops(config)
  return {"forward": forward, "predict": forward, "train": cost.train_flops(config)}
