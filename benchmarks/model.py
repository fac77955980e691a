"""Forward passes, training steps and peak memory, ours beside transformers' SegGPT in PyTorch, in one run.

  python -m benchmarks.model --peer=transformers                             # the small network, float32
  python -m benchmarks.model --variants=vit_large --batch_sizes=1,4 --dtypes=bfloat16 --keep      # an accelerator
  python -m benchmarks.model --work=predict --dtypes=bfloat16 --batch_sizes=16 --keep

The same random weights and the same canvases of noise for all sides. Each side has a process of its own, compiles
first, and then they take turns, one call at a time finished. Nothing else may run meanwhile: turns do not make up for
it, since threads that wait for each other while spinning, as PyTorch's do, lose far more to another process than ours.
What others took of the processors is measured in each turn; on CPUs such rows are void, and not kept.

- forward: `SegGPT.__call__`, jitted; the peer under `torch.no_grad()`.
- train: train.py's step, from uint8 and with the score it logs; the peer's is forward with its loss, backward and
  torch.optim.AdamW. No drop path.
- predict: batched inference of ours, one prompt for each query, in --dtypes; the peer as the original is used, one
  query after the other in float32, eager.

Parameters are float32; the peer's bfloat16 is torch.autocast, as ours is. float32 is float32: no TF32. The agreement of
what the networks painted is printed beside the times. The sides' memory is taken at the same time, though each gives
back what it can between turns; what fails for lack of it may do with fewer sides. A share of peak is of the fastest of
some large matrix products in that dtype, of either library, in the same run; operations are those of the formula.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks import report, sides, tables

_PEER = flags.DEFINE_enum("peer", "transformers", ["transformers", "none"], "Whom to compare with.")
_VARIANTS = flags.DEFINE_list("variants", ["small"], "Architectures, keys of seggpt_jax.model.config.VARIANTS.")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["1"], "Canvases in a batch.")
_DTYPES = flags.DEFINE_list("dtypes", ["float32"], "What is computed in: float32, bfloat16.")
_WORK = flags.DEFINE_list("work", ["forward", "train"], "What is done: forward, train, predict.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each side.", 1)
_LEAST_SECONDS = flags.DEFINE_float("least_seconds", 0.3, "How long a turn lasts at least.")
_WAYS = flags.DEFINE_list("ways", ["eager", "compile"], "How the peer runs: eager, compile.")
_REMAT = flags.DEFINE_list("remat", ["none"], "What ours computes anew in training: none, dots, full.")
_ATTENTION = flags.DEFINE_list("attention", [], "Ways of ours to attend, see SegGPT; without it, its default.")
_KEEP = flags.DEFINE_bool("keep", False, "Also writes the figures to benchmarks/results/model.json.")

for _flag, _known in (
  (_DTYPES, {"float32", "bfloat16"}),
  (_WORK, {"forward", "train", "predict"}),
  (_WAYS, {"eager", "compile"}),
  (_REMAT, {"none", "dots", "full"}),
):
  flags.register_validator(
    _flag, lambda values, known=_known: known.issuperset(values), f"expected some of {', '.join(sorted(_known))}"
  )

_KEY = ("device", "variant", "dtype", "batch_size", "work", "side")
_SPAWN = multiprocessing.get_context("spawn")


class Player:
  """A side in its process, as its questioner sees it.

  Attributes:
    side: what it is.
    error: what it failed with, in a line; it is not to be asked any more then.
    output: what its network painted.
    turns: those that it took.
    memory: peak in bytes, once it is over.
  """

  def __init__(self, side: sides.Side):
    self.side = side
    self.error: str | None = None
    self.turns: list[sides.Turn] = []
    self.memory: int | None = None
    self._pipe, theirs = _SPAWN.Pipe()
    self._process = _SPAWN.Process(target=sides.serve, args=(theirs, side))
    self._process.start()
    theirs.close()
    self.output: np.ndarray | None = self._receive()

  def take_turn(self) -> None:
    self._pipe.send(True)
    if (turn := self._receive()) is not None:
      self.turns.append(turn)

  def finish(self) -> None:
    if self.error is None:
      self._pipe.send(False)
      self.memory = self._receive()
    self._pipe.close()
    self._process.join()

  def _receive(self) -> Any:
    try:
      answer = self._pipe.recv()
    except EOFError:
      self._process.join()
      answer = f"ended with status {self._process.exitcode}"
    if isinstance(answer, str):
      self.error = answer
      return None
    return answer


def sides_of(variant: str, dtype: str, batch_size: int, work: str, weights: Path) -> list[sides.Side]:
  """Ours in every way that is asked for, and the peer in its ways."""
  setting = {"variant": variant, "work": work, "batch_size": batch_size, "weights": weights}
  setting |= {"least_seconds": _LEAST_SECONDS.value}
  found = []
  # Without a backward pass there is nothing to compute anew.
  for remat, attention in itertools.product(_REMAT.value if work == "train" else ["none"], _ATTENTION.value or [None]):
    name = " ".join(
      ["seggpt_jax", *([f"remat={remat}"] if remat != "none" else []), *([attention] if attention else [])]
    )
    found.append(sides.Side(name, "jax", dtype=dtype, remat=remat, attention=attention, **setting))
  if _PEER.value == "none":
    return found
  if work == "predict":
    return [*found, sides.Side("transformers eager, float32, one by one", "eager", dtype="float32", **setting)]
  return found + [sides.Side(f"transformers {way}", way, dtype=dtype, **setting) for way in _WAYS.value]


def play(asked: list[sides.Side]) -> list[Player]:
  """Lets all sides measure in turn."""
  players: list[Player] = []
  try:
    for side in asked:
      players.append(Player(side))  # one after the other: compilers time what they choose from
    for turn in range(_ROUNDS.value):
      # Back and forth, so that none always follows the same one.
      for player in players if turn % 2 == 0 else reversed(players):
        if player.error is None:
          player.take_turn()
  finally:
    for player in players:
      player.finish()
  return players


def difference(output: np.ndarray | None, ours: np.ndarray | None) -> float | None:
  """The largest, relative to the largest value."""
  if output is None or ours is None:
    return None
  return float(np.abs(output - ours).max() / np.abs(ours).max())


def rows_of(players: list[Player], flops: int, peak: tuple[float, float], device: str) -> list[dict[str, Any]]:
  """What is kept of each side; a peer's row has each way of ours over the peer, by rounds."""
  ours = [player for player in players if player.side.way == "jax"]
  rows = []
  for player in players:
    side = player.side
    row = {"device": device, "variant": side.variant, "dtype": players[0].side.dtype, "batch_size": side.batch_size}
    row |= {"work": side.work, "side": side.name}
    if player.error is not None:
      rows.append({**row, "error": player.error})
      continue
    ratios = {
      one.side.name: statistics.median(a.seconds / b.seconds for a, b in zip(one.turns, player.turns, strict=True))
      for one in ours
      if player not in ours and one.error is None
    }
    row |= {
      "seconds": [turn.seconds for turn in player.turns],
      "others": max(peak[1], *(turn.others for turn in player.turns)),
    }
    row |= {"memory": player.memory, "flops": flops * side.batch_size, "peak": peak[0]}
    row |= {"ratios": ratios, "difference": None if player is ours[0] else difference(player.output, ours[0].output)}
    rows.append(row)
  return rows


def matmul_peaks(pool: ProcessPoolExecutor) -> tuple[str, dict[str, tuple[float, float]]]:
  """The device, and for each dtype the operations per second of the best matrix product and what others took then."""
  products = [sides.jax_product] + ([sides.torch_product] if _PEER.value != "none" else [])
  peaks = {}
  for dtype in _DTYPES.value:
    found = [pool.submit(product, dtype).result() for product in products]
    kinds = [kind for kind, *_ in found]
    if len({kind == "cpu" for kind in kinds}) > 1:
      sys.exit(f"devices: found {kinds[0]} for JAX and {kinds[1]} for PyTorch, expected both on the same")
    peaks[dtype] = max((rate, others) for _, rate, others in found)
  return report.device(kinds[0]), peaks


def main(argv: list[str]) -> None:
  del argv
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the peer is on the same device
  batch_sizes, rows = list(map(int, _BATCH_SIZES.value)), []
  # A process for each task, which leaves nothing on the device.
  with (
    tempfile.TemporaryDirectory() as folder,
    ProcessPoolExecutor(1, mp_context=_SPAWN, max_tasks_per_child=1) as pool,
  ):
    device, peaks = matmul_peaks(pool)
    print(f"{device}: {', '.join(f'{dtype} {rate / 1e12:.3g} TFLOP/s' for dtype, (rate, _) in peaks.items())}\n")
    print(tables.MODEL_HEAD, flush=True)
    for variant in _VARIANTS.value:
      weights = Path(folder) / variant
      flops = pool.submit(sides.write_weights, variant, weights).result()
      for dtype, batch_size, work in itertools.product(_DTYPES.value, batch_sizes, _WORK.value):
        players = play(sides_of(variant, dtype, batch_size, work, weights))
        found = rows_of(players, flops[work], peaks[dtype], device)
        print("\n".join(map(tables.model_line, found)), flush=True)
        rows += found
        if _KEEP.value:
          report.keep_rows("model", found, _KEY, device, ["jax", "torch", "transformers"])


if __name__ == "__main__":
  app.run(main)
