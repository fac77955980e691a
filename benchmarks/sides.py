"""One side of a comparison in a process of its own, so that its peak memory is its own.

A side builds a network, runs it once, which compiles it, and then measures whenever it is asked. Neither JAX nor
PyTorch is imported before a side needs it.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import noise


@dataclasses.dataclass(frozen=True)
class Side:
  """What is built.

  Attributes:
    name: in tables.
    way: "jax", "eager" or "compile".
    variant: architecture, a key of seggpt_jax.model.config.VARIANTS.
    dtype: what is computed in, float32 or bfloat16; parameters are float32.
    work: "forward", "train" or "predict".
    batch_size: canvases.
    least_seconds: how long a turn lasts at least.
    weights: Hugging Face directory of `write_weights`.
    remat: of ours.
    attention: of ours; None for what is its default.
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


class Running(NamedTuple):
  """A side that is built.

  Attributes:
    call: does its work once and returns when the result is there.
    output: what the network painted, `[B, H, W, 3]`, or None in training.
    rest: gives back what memory it can until its next turn.
    device_memory: the peak in bytes, None where the device does not tell.
  """

  call: Callable[[], Any]
  output: Callable[[], np.ndarray | None]
  rest: Callable[[], None]
  device_memory: Callable[[], int | None]


def timed(call: Callable[[], Any], least_seconds: float) -> float:
  """Seconds of a call, repeated for so long."""
  count, began = 0, time.perf_counter()
  while count == 0 or time.perf_counter() - began < least_seconds:
    call()
    count += 1
  return (time.perf_counter() - began) / count


class Turn(NamedTuple):
  """Seconds of a call, and the share 0..1 of all processors that other processes took meanwhile."""

  seconds: float
  others: float


def take_turn(call: Callable[[], Any], least_seconds: float) -> Turn:
  """Measures, and watches whether the machine was busy with something else."""
  before = _processor_seconds()
  seconds = timed(call, least_seconds)
  busy, own, whole = (after - start for after, start in zip(_processor_seconds(), before, strict=True))
  return Turn(seconds, max(busy - own, 0.0) / max(whole, 1e-9))


def _processor_seconds() -> tuple[float, float, float]:
  """Of all processors: busy, busy with this process, and in all; since they were started."""
  first = Path("/proc/stat").read_text().splitlines()[0]
  user, nice, system, idle, waiting, *interrupts = (int(n) / os.sysconf("SC_CLK_TCK") for n in first.split()[1:8])
  busy = user + nice + system + sum(interrupts)
  return busy, time.process_time(), busy + idle + waiting


def serve(pipe: Connection, side: Side) -> None:
  """Sends the output, then a `Turn` for every True that comes, and the peak memory in bytes for a False.

  What fails is sent as text, and ends it.
  """
  try:
    running = in_jax(side) if side.way == "jax" else in_torch(side)
    running.call()
    pipe.send(running.output())
    running.rest()
    # From here on the high-water mark of memory is of the work alone, not of compiling it.
    Path("/proc/self/clear_refs").write_text("5")
    while pipe.recv():
      if running.device_memory() is not None:
        running.call()  # takes its memory back from the device
      pipe.send(take_turn(running.call, side.least_seconds))
      running.rest()
    pipe.send(running.device_memory() or _high_water_mark())
  except EOFError:
    pass  # nobody asks any more
  except Exception as error:  # Out of memory, or no compiler: each library has its own errors, and the others go on.
    lines = [line for line in str(error).splitlines() if line.strip()]
    pipe.send(": ".join([type(error).__name__, *lines[:1]]))


def _high_water_mark() -> int:
  status = Path("/proc/self/status").read_text().splitlines()
  return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def in_jax(side: Side) -> Running:
  import jax

  from benchmarks import networks
  from seggpt_jax.model import parameters
  from seggpt_jax.model.config import VARIANTS

  if side.dtype == "float32":
    # Else GPUs and TPUs multiply in fewer bits, which PyTorch does not.
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
    painted = [run(**{name: value[i : i + 1] for name, value in shown.items()}).pred_masks for i in one_by_one]
    return torch.cat(painted)[:, :, half:]

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


# ----------------------------------------------------------------------------- done once, in a process of its own


def write_weights(variant: str, folder: Path) -> dict[str, int]:
  """Writes the weights that all sides have; returns the operations of each kind of work on a canvas."""
  from benchmarks import networks
  from seggpt_jax.model import torch_files
  from seggpt_jax.model.config import VARIANTS
  from seggpt_jax.training import cost

  config = dataclasses.replace(VARIANTS[variant], drop_path_rate=0.0)
  params = {name: np.array(value) for name, value in networks.random_params(config).items()}
  torch_files.write(folder, params, config, "hf")
  forward = cost.forward_flops(config)
  return {"forward": forward, "predict": forward, "train": cost.train_flops(config)}


def jax_product(dtype: str) -> tuple[str, float, float]:
  """The device, the operations per second of a large matrix product on it, and what others took of the processors."""
  import jax
  import jax.numpy as jnp

  device = jax.devices()[0]
  size = 4096 if device.platform == "cpu" else 8192
  factor = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
  precision = "highest" if dtype == "float32" else None
  product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision))
  return device.device_kind, *_best(lambda: product(factor, factor).block_until_ready(), size)


def torch_product(dtype: str) -> tuple[str, float, float]:
  """As of `jax_product`."""
  import torch

  on_gpu = torch.cuda.is_available()
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  size = 8192 if on_gpu else 4096
  factor = torch.randn(size, size, device="cuda" if on_gpu else "cpu", dtype=getattr(torch, dtype))

  def call() -> None:
    factor @ factor
    if on_gpu:
      torch.cuda.synchronize()

  return torch.cuda.get_device_name() if on_gpu else "cpu", *_best(call, size)


def _best(call: Callable[[], Any], size: int) -> tuple[float, float]:
  timed(call, 0.0)  # compiled, and warm
  fastest = min(take_turn(call, 0.1) for _ in range(5))
  return 2 * size**3 / fastest.seconds, fastest.others
