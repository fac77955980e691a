"""Trains a head on ImageNet features: a configuration and a run directory in, weights out.

With config.adapter.kind=head the features are frozen. Those of augmented training images are computed once and kept in
memory, so that a step costs only the head, which sees many more pixels in a minute than fine-tuning. With "features"
they learn as well, from a head that fits them, whose first gradients would spoil them otherwise (arXiv 2202.10054);
memory keeps images in place of features. From time to time an image gets another augmentation. What a step sees follows
from its number alone, so a resumed run equals one that was never stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import operator
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

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
from seggpt_jax.compilation import jit
from seggpt_jax.data.augment import Augmentation, augment, to_square
from seggpt_jax.data.sources import Source
from seggpt_jax.errors import InputError
from seggpt_jax.formats.labels import classes_in
from seggpt_jax.metrics.iou import confusion_counts, iou_from_confusion, mean_iou
from seggpt_jax.model import parameters, weights
from seggpt_jax.model.parameters import Params
from seggpt_jax.palette import IGNORE
from seggpt_jax.training.inputs import head_side, open_splits
from seggpt_jax.training.loss import head_loss
from seggpt_jax.training.monitor import SharedBadFiles
from seggpt_jax.training.optimizer import Optimizer
from seggpt_jax.training.setup import Run, architecture, check_start, make_folders, make_plan, open_monitor, open_state
from seggpt_jax.training.sharding import DeviceFeed
from seggpt_jax.training.step import StepOutput, TrainState
from seggpt_jax.training.step_recorder import StepProfiler, StepRecorder
from seggpt_jax.training.validation import BestScore, Validation

CELL = 16  # pixels of the coarsest features
_CROPS = {"head": 8, "features": 16}  # cells along a side of a training crop
_MOST_BYTES = 2 * 2**30  # of the features or images in memory
_RENEW = {"head": 4, "features": 1}  # steps between two renewals of an image
_ON_CLASS = 0.5  # share of the crops that are placed on a pixel of a random class
_PANEL_ROWS, _PANEL_SIDE = 4, 256

Maps = dict[int, np.ndarray]  # features by stride; with stride 1 alone, the image itself
Describe = Callable[[Params, UInt8[np.ndarray, "h w 3"]], Maps]


def prepare_head(config: ConfigDict, workdir: str | os.PathLike, held: contextlib.ExitStack) -> Run:
  """Checks everything that can be wrong before the first step and builds the run, or restores it, as `prepare` does."""
  workdir, config, changed = check_start(config, workdir)
  if jax.process_count() > 1:
    found = f"{config.adapter.kind} with {jax.process_count()} processes"
    raise InputError(f"config.adapter.kind: found {found}, expected one")
  splits, notes = open_splits(config.data)
  config.data.class_names = config.data.class_names or getattr(splits["train"], "categories", ())
  model_config, kind, classes = architecture(config), config.adapter.kind, config.data.num_classes
  given = f"config.model.init_from: found {config.model.init_from!r}"
  base = weights.load_config(config.model.init_from) if config.model.init_from else model_config
  if kind == "features" and base.head_classes != classes:
    raise InputError(f"{given}, expected a run with a trained head of {classes} classes (--config head)")
  if not model_config.backbone:
    raise InputError(f"{given}, a network without ImageNet features, expected small with adapter.kind=head")
  # A run keeps the side of its first start.
  started = any((workdir / "checkpoints").glob("*"))
  side = config.data.resize or (weights.load_config(workdir) if started else base).head_side
  side = side or head_side(splits["train"], config.data)
  if side % CELL:
    raise InputError(f"config.data.resize: found {side}, expected a multiple of {CELL} with adapter.kind={kind}, or 0")
  model_config = dataclasses.replace(model_config, head_classes=classes, head_side=side)
  mesh = Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1), ("data", "fsdp"))
  plan = make_plan(config, model_config, mesh)
  make_folders(workdir, held)
  checkpoints, state, progress = open_state(config, model_config, plan, workdir)
  start = int(state.step)
  on = "frozen features" if kind == "head" else "features that learn as well"
  described = f"a head of {classes} classes on {on}, images of {side} x {side} pixels"
  monitor = open_monitor(config, workdir, start, described, changed, (*checkpoints.warnings, *notes))
  describe = _make_describe(plan.graph, side)
  shown = functools.partial(describe, state.params) if kind == "head" else lambda image: {1: to_square(image, side)}
  pool = Pool(splits["train"], shown, config, side)
  return Run(
    config=config,
    model_config=model_config,
    mesh=mesh,
    start=start,
    state=state,
    schedule=plan.optimizer.schedule,
    train_step=_make_step(plan.graph, plan.optimizer),
    validate=functools.partial(_validate, plan.graph, config, splits["val"], describe),
    best=BestScore.resumed(config, progress),
    feed=DeviceFeed(_batches(pool, start), operator.itemgetter("crops")),
    bad_files=SharedBadFiles(splits, 0.0, monitor.say),
    recorder=StepRecorder(config.data.num_classes, lambda _: "the crops of a batch", checkpoints.describe_newest),
    profiler=StepProfiler(workdir, start, 0, monitor.say),
    checkpoints=checkpoints,
    monitor=monitor,
  )


class _Described(NamedTuple):
  """An image to learn from: its features, float16 [h, w, channels], or pixels; and labels, uint8 [side, side]."""

  maps: Maps
  labels: np.ndarray


def _make_describe(graph: nnx.GraphDef, side: int) -> Describe:
  """Returns a function from parameters and an image of any size, seen as a square, to its features, as float16."""

  @jit
  def run(params, image):
    maps = parameters.merge(graph, params).pixel_features(canvas.normalize(image[None]))
    return {stride: jnp.float16(each[0]) for stride, each in maps.items()}

  return lambda params, image: {
    stride: np.asarray(each) for stride, each in run(params, to_square(image, side)).items()
  }


class Pool:
  """Augmented training images or their features, and the batches that steps take from them."""

  def __init__(self, source: Source, describe: Callable[[np.ndarray], Maps], config: ConfigDict, side: int):
    self._source, self._describe, self._config, self._side = source, describe, config, side
    self._cells, self._renew = _CROPS[config.adapter.kind], _RENEW[config.adapter.kind]
    data = config.data
    self._augmentation = Augmentation(
      0, tuple(map(float, data.scale)), 0.0, data.flips, tuple(map(float, data.color)), float(data.blur)
    )
    each = sum(values.nbytes for values in describe(np.zeros((side, side, 3), np.uint8)).values())
    self._size = max(min(len(source), _MOST_BYTES // each), 1)
    self._order = np.random.default_rng(config.seed).permutation(len(source))
    self._entries: dict[int, _Described] = {}  # by slot
    self._pixels: dict[int, dict[int, np.ndarray]] = {}  # some places of each class in each slot

  def fill(self, step: int) -> None:
    """Makes what the step after `step` finds."""
    versions = step // self._renew
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
    self._entries[slot], self._pixels[slot] = _Described(self._describe(sample["image"]), labels), {}
    for index in classes_in(np.ascontiguousarray(labels)):
      found = np.flatnonzero(labels == index)
      self._pixels[slot][index] = found if len(found) < 1000 else generator.choice(found, 1000, replace=False)

  def batch(self, step: int) -> tuple[Maps, np.ndarray]:
    """Returns the crops of a step: features or pixels, and labels [B, crop, crop]. Steps have to be taken in order."""
    if step % self._renew == 0:
      number = step // self._renew - 1
      self._put(number % self._size, number + self._size)
    generator = np.random.default_rng((self._config.seed, 2, step))
    shown = sorted({index for places in self._pixels.values() for index in places})
    crops = [self._crop(generator, shown) for _ in range(self._config.batch_size)]
    maps = {stride: np.stack([crop.maps[stride] for crop in crops]) for stride in crops[0].maps}
    return maps, np.stack([crop.labels for crop in crops])

  def _crop(self, generator: np.random.Generator, shown: list[int]) -> _Described:
    """Cuts a crop: on a pixel of a random class, or anywhere. It is turned and mirrored."""
    cells = self._side // CELL
    crop = min(self._cells, cells)
    last = cells - crop
    if shown and generator.random() < _ON_CLASS:
      index = shown[generator.integers(len(shown))]
      slots = [slot for slot, places in self._pixels.items() if index in places]
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


def _batches(pool: Pool, start: int) -> Iterator[dict[str, Any]]:
  """Yields the batches of a pool after the given step; there are no samples that a report could name."""
  pool.fill(start)
  none = np.full((1, 2), -1, np.int32)
  for step in itertools.count(start + 1):
    yield {"crops": pool.batch(step), "bad": none, "samples": none}


def _make_step(graph: nnx.GraphDef, optimizer: Optimizer) -> Callable[..., tuple[TrainState, StepOutput]]:
  """Returns the training step, (state, (maps, labels), key) -> (state, output). What changes is donated."""

  def evaluate(trained, frozen, maps, labels):
    model = parameters.merge(graph, {**frozen, **trained})
    logits = model.pixel_head(model.pixel_features(canvas.normalize(maps[1])) if 1 in maps else maps)
    return head_loss(logits, labels), logits

  @functools.partial(jit, donate_argnums=(0, 1))
  def step(trained, opt_state, frozen, maps, labels):
    (loss, logits), gradient = jax.value_and_grad(evaluate, has_aux=True)(trained, frozen, maps, labels)
    updates, opt_state = optimizer.transform.update(gradient, opt_state, trained)
    counts = confusion_counts(jnp.argmax(logits, axis=-1), labels[:, ::2, ::2], logits.shape[-1])
    output = StepOutput(loss, counts, None, optax.tree.norm(gradient))
    return optax.apply_updates(trained, updates), opt_state, output

  def take_step(state: TrainState, batch: tuple[Any, np.ndarray], key: jax.Array) -> tuple[TrainState, StepOutput]:
    del key
    frozen = {name: value for name, value in state.params.items() if name in optimizer.frozen}
    trained = {name: value for name, value in state.params.items() if name not in optimizer.frozen}
    trained, opt_state, output = step(trained, state.opt_state, frozen, *batch)
    return TrainState(state.step + 1, {**frozen, **trained}, opt_state), output

  return take_step


def validation_indices(config: ConfigDict, source: Source) -> list[int]:
  """Returns the samples that validate a run: config.eval_pairs of them, evenly spread."""
  count = len(source) if config.eval_pairs < 0 else min(config.eval_pairs, len(source))
  return np.unique(np.linspace(0, len(source) - 1, count).astype(int)).tolist()


def _validate(
  graph: nnx.GraphDef, config: ConfigDict, source: Source, describe: Describe, params: Params
) -> Validation:
  """Returns the outcome of parameters on the validation images at their own size."""
  classes, answer = config.data.num_classes, _answer(graph)
  confusion, losses, rows = np.zeros((classes, classes), np.int64), [], []
  for index in validation_indices(config, source):
    sample = source[index]
    truth = sample["label"]
    probabilities = np.asarray(answer(params, describe(params, sample["image"])))
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
  return Validation(scores, (), np.concatenate(rows))


def _panel_row(image: np.ndarray, truth: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
  """Draws an image, its labels and its prediction side by side."""
  colors = palette.display_palette(classes)
  parts = [image, *(colors[np.where(each == IGNORE, 0, each)] for each in (truth, labels))]
  return np.concatenate([to_square(part, _PANEL_SIDE) for part in parts], axis=1)


@functools.cache
def _answer(graph: nnx.GraphDef) -> Callable[[Params, Maps], Float[Array, "h w c"]]:
  """Returns the compiled head: (parameters, features of an image) -> probabilities at stride 2."""

  @jit
  def run(params, maps):
    logits = parameters.merge(graph, params).pixel_head({stride: each[None] for stride, each in maps.items()})
    return jax.nn.softmax(logits[0])

  return run
