"""Trains a head on frozen features (config.adapter.kind=head): a configuration and a run directory in, weights out.

The features of augmented training images are computed once and kept in memory, so that a step costs only the head,
which sees many more pixels in a minute than fine-tuning. From time to time an image gets new features with another
augmentation. Which ones a step sees follows from its number alone, so a resumed run equals one that was never stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict
from tqdm import tqdm

from seggpt_jax import canvas, palette
from seggpt_jax.compilation import compile_notice, jit
from seggpt_jax.data.augment import Augmentation, augment, to_square
from seggpt_jax.data.sources import Source
from seggpt_jax.errors import InputError
from seggpt_jax.metrics.iou import confusion_counts, iou_from_confusion, mean_iou
from seggpt_jax.model import parameters, weights
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.model.parameters import Params
from seggpt_jax.palette import IGNORE
from seggpt_jax.training.checkpoints import Checkpoints
from seggpt_jax.training.inputs import head_side, open_splits
from seggpt_jax.training.loss import head_loss
from seggpt_jax.training.monitor import Monitor
from seggpt_jax.training.optimizer import Optimizer
from seggpt_jax.training.setup import architecture, check_start, make_folders, make_plan, open_monitor, open_state
from seggpt_jax.training.shutdown import managed_shutdown
from seggpt_jax.training.step import TrainState
from seggpt_jax.training.validation import BestScore

CELL = 16  # pixels of the coarsest features
_CROP = 16  # cells along a side of a training crop
_MOST_BYTES = 2 * 2**30  # of the features in memory
_RENEW = 4  # steps between two renewals of an image's features
_ON_CLASS = 0.5  # share of the crops that are placed on a pixel of a random class
_PANEL_ROWS, _PANEL_SIDE = 4, 256

Describe = Callable[[UInt8[np.ndarray, "h w 3"]], dict[int, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class _HeadRun:
  """Everything that the steps of a run with config.adapter.kind=head need; see `Run` for what has the same name."""

  config: ConfigDict
  model_config: SegGPTConfig
  mesh: Mesh
  graph: nnx.GraphDef
  optimizer: Optimizer
  state: TrainState
  splits: Mapping[str, Source]
  best: BestScore
  checkpoints: Checkpoints
  monitor: Monitor


def _prepare(config: ConfigDict, workdir: str | os.PathLike, held: contextlib.ExitStack) -> _HeadRun:
  """Checks everything that can be wrong before the first step and builds the run, or restores it, as `prepare` does."""
  workdir, config, changed = check_start(config, workdir)
  if jax.process_count() > 1:
    raise InputError(f"config.adapter.kind: found head with {jax.process_count()} processes, expected one")
  splits, notes = open_splits(config.data)
  # A run keeps the side of its first start.
  started = any((workdir / "checkpoints").glob("*"))
  side = config.data.resize or (weights.load_config(workdir).head_side if started else 0)
  side = side or head_side(splits["train"], config.data)
  config.data.class_names = config.data.class_names or getattr(splits["train"], "categories", ())
  model_config = architecture(config)
  if not model_config.backbone:
    raise InputError(
      f"config.model.init_from: found {config.model.init_from!r}, a network without ImageNet features, expected small "
      "with adapter.kind=head"
    )
  if side % CELL:
    raise InputError(f"config.data.resize: found {side}, expected a multiple of {CELL} with adapter.kind=head, or 0")
  model_config = dataclasses.replace(model_config, head_classes=config.data.num_classes, head_side=side)
  mesh = Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1), ("data", "fsdp"))
  plan = make_plan(config, model_config, mesh)
  make_folders(workdir, held)
  checkpoints, state, progress = open_state(config, model_config, plan, workdir)
  described = f"a head of {config.data.num_classes} classes on frozen features, images of {side} x {side} pixels"
  lines = (*checkpoints.warnings, *notes)
  monitor = open_monitor(config, workdir, int(state.step), described, changed, lines)
  best = BestScore.resumed(config, progress)
  return _HeadRun(config, model_config, mesh, plan.graph, plan.optimizer, state, splits, best, checkpoints, monitor)


class _Described(NamedTuple):
  """An image to learn from: its features by stride, float16 [h, w, channels], and its labels, uint8 [side, side]."""

  maps: dict[int, np.ndarray]
  labels: np.ndarray


def train_head(config: ConfigDict, workdir: str | os.PathLike) -> dict[str, float]:
  """Trains a head, or resumes the run in this directory; see `loop.train`."""
  with contextlib.ExitStack() as held:
    return _train(_prepare(config, workdir, held))


def _train(run: _HeadRun) -> dict[str, float]:
  config, state, best, monitor = run.config, run.state, run.best, run.monitor
  start, result = int(state.step), {}
  describe = _make_describe(run.graph, state.params, run.model_config.head_side)
  validate = functools.partial(_validate, run, describe)
  pool = Pool(run.splits["train"], describe, config, run.model_config.head_side)
  take_step = _make_step(run.graph, run.optimizer.transform)
  frozen, trained = (
    {name: value for name, value in state.params.items() if (name in run.optimizer.frozen) == which}
    for which in (True, False)
  )
  finished = start >= config.num_steps or best.should_stop()
  with managed_shutdown(monitor, run.checkpoints, run.mesh) as interruption:
    if not finished:
      pool.fill(start)
      monitor.say(compile_notice("the training step", 2, training=True))
    opt_state, since, losses, confusion = state.opt_state, time.monotonic(), [], 0
    for step in range(start + 1, config.num_steps + 1):
      if best.should_stop():
        break
      trained, opt_state, loss, counts = take_step(trained, opt_state, frozen, *pool.batch(step))
      losses.append(loss)
      confusion = confusion + counts
      monitor.advance()
      last = step == config.num_steps or interruption.stop_requested()
      if step % config.log_every == 0 or last:
        mean = float(np.mean(jax.device_get(losses)))
        if not np.isfinite(mean):
          raise InputError(f"step {step}: loss {mean}, expected a finite one; lower config.optim.peak")
        seconds = max(time.monotonic() - since, 1e-9)
        numbers = {
          "loss": mean,
          "miou": float(mean_iou(np.asarray(confusion))),
          "lr": float(run.optimizer.schedule(step - 1)),
        }
        monitor.log(step, "train", {**numbers, "pairs_per_second": config.batch_size * len(losses) / seconds})
        since, losses, confusion = time.monotonic(), [], 0
      # The next step takes these buffers for its own results, which must not happen while they are written.
      milestone = last or any(step % every == 0 for every in (config.eval_every, config.checkpoint_every))
      if milestone:
        state = jax.tree.map(jnp.copy, TrainState(jnp.int32(step), {**frozen, **trained}, opt_state))
      if step % config.eval_every == 0 or step == config.num_steps:
        result, panel = validate(state.params)
        monitor.log(step, "val", result)
        monitor.picture(step, "val", panel)
        monitor.curves()
        if best.update(result["miou"]):
          run.checkpoints.save_best(state)
        since = time.monotonic()
      if step % config.checkpoint_every == 0 or last or best.should_stop():
        run.checkpoints.save(state, best.to_progress())
      if last and step < config.num_steps:
        monitor.say(interruption.describe(step))
        break
    best.explain_stop(monitor.say)
    if finished:
      result, _ = validate(state.params)
      interruption.stop_requested()
  interruption.exit_if_stopped()
  return result


def _make_describe(graph: nnx.GraphDef, params: Params, side: int) -> Describe:
  """Returns a function from an image of any size, seen as a square, to its features by stride, as float16."""

  @jit
  def run(params, image):
    maps = parameters.merge(graph, params).pixel_features(canvas.normalize(image[None]))
    return {stride: jnp.float16(each[0]) for stride, each in maps.items()}

  return lambda image: {stride: np.asarray(each) for stride, each in run(params, to_square(image, side)).items()}


class Pool:
  """Augmented training images with their features, and the batches that steps take from them."""

  def __init__(self, source: Source, describe: Describe, config: ConfigDict, side: int):
    self._source, self._describe, self._config, self._side = source, describe, config, side
    data = config.data
    self._augmentation = Augmentation(
      0, tuple(map(float, data.scale)), 0.0, data.flips, tuple(map(float, data.color)), float(data.blur)
    )
    each = 4 * sum(side * side // stride**2 * channels for stride, channels in ((2, 28), (4, 24), (8, 40), (16, 112)))
    self._size = max(min(len(source), _MOST_BYTES // each), 1)
    self._order = np.random.default_rng(config.seed).permutation(len(source))
    self._entries: list[_Described] = []
    self._pixels: list[dict[int, np.ndarray]] = []  # of each entry: some places of each class

  def fill(self, step: int) -> None:
    """Computes the features that the step after `step` finds."""
    versions = step // _RENEW
    for slot in tqdm(range(self._size), "features", unit="image", dynamic_ncols=True):
      # The last renewal of a slot is the latest one whose number it has.
      renewed = (versions - 1 - slot) // self._size + 1 if versions > slot else 0
      self._put(slot, slot + renewed * self._size)

  def _put(self, slot: int, number: int) -> None:
    """Puts the `number`-th augmented image into a slot."""
    generator = np.random.default_rng((self._config.seed, 1, number))
    sample = self._source[int(self._order[number % len(self._source)])]
    sample = augment(sample, self._side, generator, self._augmentation)
    labels = sample["label"]
    entry = _Described(self._describe(sample["image"]), labels)
    places = {}
    for index in np.unique(labels).tolist():
      if index not in (0, IGNORE):
        found = np.flatnonzero(labels == index)
        places[index] = found if len(found) < 1000 else generator.choice(found, 1000, replace=False)
    if slot < len(self._entries):
      self._entries[slot], self._pixels[slot] = entry, places
    else:
      self._entries.append(entry)
      self._pixels.append(places)

  def batch(self, step: int) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """Returns the crops of a step: features by stride and labels [B, crop, crop]. Steps have to be taken in order."""
    if step % _RENEW == 0:
      number = step // _RENEW - 1
      self._put(number % self._size, number + self._size)
    generator = np.random.default_rng((self._config.seed, 2, step))
    shown = sorted({index for places in self._pixels for index in places})
    crops = [self._crop(generator, shown) for _ in range(self._config.batch_size)]
    maps = {stride: np.stack([crop.maps[stride] for crop in crops]) for stride in crops[0].maps}
    return maps, np.stack([crop.labels for crop in crops])

  def _crop(self, generator: np.random.Generator, shown: list[int]) -> _Described:
    """Cuts a crop: on a pixel of a random class, or anywhere. It is turned and mirrored."""
    cells = self._side // CELL
    crop = min(_CROP, cells)
    last = cells - crop
    if shown and generator.random() < _ON_CLASS:
      index = shown[generator.integers(len(shown))]
      slots = [slot for slot, places in enumerate(self._pixels) if index in places]
      slot = slots[generator.integers(len(slots))]
      places = self._pixels[slot][index]
      at = np.divmod(places[generator.integers(len(places))], self._side)
      row, col = (int(np.clip(place // CELL - generator.integers(crop), 0, last)) for place in at)
    else:
      slot = int(generator.integers(self._size))
      row, col = (int(value) for value in generator.integers(last + 1, size=2))
    turns, mirrored = int(generator.integers(4)), bool(generator.integers(2))

    def cut(values: np.ndarray, scale: int) -> np.ndarray:
      values = values[row * scale : (row + crop) * scale, col * scale : (col + crop) * scale]
      values = np.rot90(values, turns)
      return values[:, ::-1] if mirrored else values

    entry = self._entries[slot]
    return _Described(
      {stride: cut(each, CELL // stride) for stride, each in entry.maps.items()}, cut(entry.labels, CELL)
    )


def _make_step(graph: nnx.GraphDef, transform: optax.GradientTransformation) -> Callable:
  """Returns the compiled step: (trained, optimizer state, frozen, features, labels) -> (both new, loss, confusion)."""

  def evaluate(trained, frozen, maps, labels):
    logits = parameters.merge(graph, {**frozen, **trained}).pixel_head(maps)
    return head_loss(logits, labels), logits

  @functools.partial(jit, donate_argnums=(0, 1))
  def step(trained, opt_state, frozen, maps, labels):
    (loss, logits), gradient = jax.value_and_grad(evaluate, has_aux=True)(trained, frozen, maps, labels)
    updates, opt_state = transform.update(gradient, opt_state, trained)
    counts = confusion_counts(jnp.argmax(logits, axis=-1), labels[:, ::2, ::2], logits.shape[-1])
    return optax.apply_updates(trained, updates), opt_state, loss, counts

  return step


def validation_indices(config: ConfigDict, source: Source) -> list[int]:
  """Returns the samples that validate a run: config.eval_pairs of them, evenly spread."""
  count = len(source) if config.eval_pairs < 0 else min(config.eval_pairs, len(source))
  return np.unique(np.linspace(0, len(source) - 1, count).astype(int)).tolist()


def _validate(run: _HeadRun, describe: Describe, params: Params) -> tuple[dict[str, float], UInt8[np.ndarray, "h w 3"]]:
  """Returns the scores of parameters on the validation images at their own size, and a picture of a few of them."""
  source, classes, answer = run.splits["val"], run.config.data.num_classes, _answer(run.graph)
  confusion, losses, rows = np.zeros((classes, classes), np.int64), [], []
  for index in validation_indices(run.config, source):
    sample = source[index]
    truth = sample["label"]
    probabilities = np.asarray(answer(params, describe(sample["image"])))
    found = cv2.resize(probabilities, truth.shape[::-1], interpolation=cv2.INTER_LINEAR).reshape(*truth.shape, classes)
    known = truth != IGNORE
    labels = found.argmax(axis=-1).astype(np.uint8)
    of_truth = np.take_along_axis(found, np.minimum(truth, classes - 1)[..., None], axis=-1)[..., 0]
    np.add.at(confusion, (truth[known], labels[known]), 1)
    losses.append(float(-np.log(np.maximum(of_truth[known], 1e-6)).mean()) if known.any() else 0.0)
    if len(rows) < _PANEL_ROWS:
      rows.append(_panel_row(sample["image"], truth, labels, classes))
  scores = {"loss": float(np.mean(losses)), "miou": float(mean_iou(confusion))}
  scores |= {f"iou_{index}": float(value) for index, value in enumerate(iou_from_confusion(confusion))}
  return scores, np.concatenate(rows)


def _panel_row(image: np.ndarray, truth: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
  """Draws an image, its labels and its prediction side by side."""
  colors = palette.display_palette(classes)
  parts = [image, *(colors[np.where(each == IGNORE, 0, each)] for each in (truth, labels))]
  return np.concatenate([to_square(part, _PANEL_SIDE) for part in parts], axis=1)


@functools.cache
def _answer(graph: nnx.GraphDef) -> Callable[[Params, dict[int, np.ndarray]], Float[Array, "h w c"]]:
  """Returns the compiled head: (parameters, features of an image) -> probabilities at stride 2."""

  @jit
  def run(params, maps):
    logits = parameters.merge(graph, params).pixel_head({stride: each[None] for stride, each in maps.items()})
    return jax.nn.softmax(logits[0])

  return run
