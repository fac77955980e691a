"""Pretrains the small network on real sets and drawn tasks; resumes where it stopped.

  python -m pretraining.train --corpus DATA/pretraining --imagenet runs/imagenet.safetensors --workdir runs/small

In: a corpus (`sets.py`), ImageNet features (`features.py`), drawn tasks (`drawn.py`). Out: RUN/checkpoints and
RUN/progress.jsonl with a row of loss and, with `--judge`, the mean IoU on sets that never train. `pack.py` makes the
packaged file of the moving average, which RUN/weights_STEP holds.
"""

from __future__ import annotations

import argparse
import functools
import json
import queue
import threading
import time
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import safetensors.numpy
from flax import nnx
from jaxtyping import Array, Float

from pretraining import judge
from pretraining.sets import Corpus, Example, load_corpus
from seggpt_jax import canvas
from seggpt_jax.compilation import jit
from seggpt_jax.model import matcher, parameters, weights
from seggpt_jax.model.config import VARIANTS, SegGPTConfig
from seggpt_jax.model.matcher import FROZEN, Matcher

_SCORE_PAIRS = 0.3  # weight of the matches' own loss
# Parts of the network that a trial can do without, and what takes their place in `matcher`.
_PARTS = {
  "heads": ("_solve", lambda gram, target, pixels: jnp.zeros_like(target)),
  "matches": ("weighted_mean", lambda query, keys, values: jnp.zeros((*query.shape[:-1], values.shape[-1]))),
  "own_statistics": ("_standardize", jnp.zeros_like),
}


def loss(logits: Array, matches: dict[int, Array], masks: Array, known: Array) -> Float[Array, ""]:
  """Returns cross-entropy plus Dice of the query's mask, and cross-entropy of what the matches alone found.

  Args:
    logits: [B, h, w].
    matches: shares of the mask by stride, [B, h, w, heads].
    masks: the true mask.
    known: 0 where it is unknown, else 1.
  """
  total = jnp.sum(known, axis=(1, 2)) + 1e-6
  cross = jnp.sum(optax.sigmoid_binary_cross_entropy(logits, masks) * known, axis=(1, 2)) / total
  p = jax.nn.sigmoid(logits) * known
  inside = masks * known
  dice = 1 - (2 * jnp.sum(p * inside, axis=(1, 2)) + 1) / (jnp.sum(p, axis=(1, 2)) + jnp.sum(inside, axis=(1, 2)) + 1)
  result = jnp.mean(cross + dice)
  for stride, found in matches.items():
    shape = (len(masks), masks.shape[1] // stride, stride, masks.shape[2] // stride, stride)
    truth, weight = (part.reshape(shape).mean(axis=(2, 4))[..., None] for part in (masks, known))
    found = jnp.clip(found, 0.01, 0.99)
    each = -(truth * jnp.log(found) + (1 - truth) * jnp.log(1 - found)) * weight
    result = result + _SCORE_PAIRS * jnp.mean(each)
  return result


def feature_statistics(graph, params, sets) -> dict[str, np.ndarray]:
  """Returns mean and inverse deviation of each ImageNet feature over some pictures of all sets."""
  images = [image for one in sets for image in one.images[:6]]
  squares = np.stack([cv2.resize(image, (128, 128), interpolation=cv2.INTER_AREA) for image in images])
  maps = jit(lambda x: parameters.merge(graph, params).features(canvas.normalize(x)))
  found = [maps(squares[start : start + 32]) for start in range(0, len(squares) - 31, 32)]
  values = [np.concatenate([np.asarray(part[stride]) for part in found]) for stride in found[0]]
  return {
    "feature_mean": np.concatenate([value.mean(axis=(0, 1, 2)) for value in values]),
    "feature_scale": np.concatenate([1 / (value.std(axis=(0, 1, 2)) + 1e-2) for value in values]),
  }


def make_step(graph, optimizer, decay: float):
  """Returns the jitted training step of (params, frozen, opt_state, ema, batch)."""

  def compute(params, frozen, images, masks, known):
    model: Matcher = parameters.merge(graph, params | frozen)
    b, k = images.shape[0], images.shape[1] - 1
    flat = canvas.normalize(images.reshape(b * (k + 1), *images.shape[2:]))
    described = model.describe(flat)

    def part(x, place):
      x = x.reshape(b, k + 1, *x.shape[1:])[:, place]
      return x.reshape(-1, *x.shape[2:]) if isinstance(place, slice) else x

    query = jax.tree.map(lambda x: part(x, k), described)
    prompts = jax.tree.map(lambda x: part(x, slice(0, k)), described)
    logits, matches = model.answer(query, model.remember(prompts, masks[:, :k, ..., None]))
    matches = {stride: found[..., 0, :] for stride, found in matches.items()}
    return loss(logits[..., 0], matches, masks[:, k], known[:, k])

  @jit(donate_argnums=(0, 2, 3))
  def step(params, frozen, opt_state, ema, images, masks, known, count):
    value, gradient = jax.value_and_grad(compute)(
      params, frozen, images, masks.astype(jnp.float32), known.astype(jnp.float32)
    )
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    params = optax.apply_updates(params, updates)
    keep = jnp.minimum(decay, (1 + count) / (10 + count))
    ema = jax.tree.map(lambda old, new: keep * old + (1 - keep) * new, ema, params)
    return params, opt_state, ema, value

  return step


def make_optimizer(rate: float, warmup: int, steps: int) -> optax.GradientTransformation:
  """Returns Muon for matrices and Adam for the rest; the rate is constant and falls to 0 over the last third.

  ImageNet features that are trained get Adam at a tenth of the rate, so that they stay what they are.
  """
  schedule = optax.join_schedules(
    [
      optax.linear_schedule(0.0, rate, warmup),
      optax.constant_schedule(rate),
      optax.linear_schedule(rate, 0.0, steps // 3),
    ],
    [warmup, steps - steps // 3],
  )
  muon = optax.contrib.muon(schedule, adam_b2=0.99, weight_decay=0.01, adam_weight_decay=0.01, consistent_rms=0.2)
  adam = optax.adam(lambda count: 0.1 * schedule(count), b2=0.99)
  parts = optax.multi_transform(
    {"learned": muon, "features": adam},
    lambda params: {name: "features" if name.startswith(FROZEN) else "learned" for name in params},
  )
  return optax.chain(optax.clip_by_global_norm(1.0), parts)


class Feed:
  """Draws batches in threads; batch i depends on the seed and on i alone."""

  def __init__(self, corpus: Corpus, drawn, args, start: int):
    self._corpus, self._drawn, self._args = corpus, drawn, args
    self._queue: queue.Queue = queue.Queue(8)
    threading.Thread(target=self._run, args=(start,), daemon=True).start()

  def _run(self, index: int) -> None:
    while True:
      self._queue.put(self._batch(index))
      index += 1

  def _batch(self, index: int) -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng([self._args.seed, index])
    size = int(generator.choice(self._args.sizes))
    count = max(2, round(self._args.batch * (min(self._args.sizes) / size) ** 2))
    prompts = 3 if generator.random() < self._args.several else 1
    if prompts > 1:
      count = max(2, count // 2)
    examples: list[Example] = []
    for _ in range(count):
      if self._drawn is not None and prompts == 1 and generator.random() < self._args.drawn_share:
        examples.append(self._drawn.draw(generator, size))
      else:
        examples.append(self._corpus.draw(generator, size, prompts))
    return tuple(np.stack([getattr(e, name) for e in examples]) for name in ("images", "masks", "known"))

  def __next__(self) -> tuple[np.ndarray, ...]:
    return self._queue.get()


def main() -> None:
  """Parses flags and trains."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--corpus", type=Path, required=True, help="folder with sets.json")
  parser.add_argument("--imagenet", type=Path, help="file written by pretraining.features")
  parser.add_argument("--workdir", type=Path, required=True, help="where checkpoints are kept")
  parser.add_argument("--drawn", type=Path, help="file written by pretraining.drawn")
  parser.add_argument("--drawn-share", type=float, default=0.2, help="share of drawn tasks")
  parser.add_argument("--judge", type=Path, help="folder of sets that only measure")
  parser.add_argument("--init-from", help="weights to start from, such as small")
  parser.add_argument("--steps", type=int, default=20000)
  parser.add_argument("--minutes", type=float, default=1e9, help="stop after so many minutes of this start")
  parser.add_argument("--batch", type=int, default=8, help="pairs of the smallest size")
  parser.add_argument("--sizes", type=int, nargs="+", default=[128])
  parser.add_argument("--several", type=float, default=0.15, help="share of batches with three prompts")
  parser.add_argument("--rate", type=float, default=2e-3)
  parser.add_argument("--unfreeze", type=int, nargs="+", default=[], help="blocks of the ImageNet features to train")
  parser.add_argument("--decay", type=float, default=0.998, help="of the moving average")
  parser.add_argument(
    "--keep-start", type=float, default=0.0, help="share of --init-from in the weights that are written"
  )
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--judge-every", type=float, default=5.0, help="minutes")
  parser.add_argument("--save-every", type=float, default=15.0, help="minutes")
  parser.add_argument(
    "--without", nargs="+", default=[], choices=["imagenet", *_PARTS], help="parts to leave out, to see what they bring"
  )
  parser.add_argument("--model", type=json.loads, default={}, help="changes of the architecture")
  args = parser.parse_args()
  train(args)


def train(args) -> None:
  """Runs the loop; see the flags of `main`."""
  for part in set(args.without) & _PARTS.keys():
    setattr(matcher, *_PARTS[part])
  config = SegGPTConfig.from_dict(VARIANTS["small"].to_dict() | args.model)
  graph, params = parameters.split(Matcher(config, rngs=nnx.Rngs(args.seed)))
  sets = load_corpus(args.corpus)
  if args.init_from:
    params |= weights.load_params(args.init_from, lambda: parameters.abstract(config)[1])
  else:
    if "imagenet" not in args.without:
      params |= {f"features.{name}": value for name, value in safetensors.numpy.load_file(args.imagenet).items()}
    params |= feature_statistics(graph, params, sets)
  params = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
  blocks = tuple(f"features.blocks.{block}." for block in args.unfreeze)
  if "imagenet" in args.without:
    blocks = ("features.",)
  frozen = {name: value for name, value in params.items() if name.startswith(FROZEN) and not name.startswith(blocks)}
  params = {name: value for name, value in params.items() if name not in frozen}
  print(
    f"{sum(v.size for v in params.values()):,} trained and {sum(v.size for v in frozen.values()):,} frozen parameters"
  )
  start, optimizer = params, make_optimizer(args.rate, 100, args.steps)
  state = {
    "params": jax.tree.map(jnp.copy, params),  # the first step takes them
    "opt_state": optimizer.init(params),
    "ema": jax.tree.map(jnp.copy, params),
    "step": np.zeros((), np.int64),
    "minutes": np.zeros(()),
  }
  manager = ocp.CheckpointManager(
    args.workdir.absolute() / "checkpoints", options=ocp.CheckpointManagerOptions(max_to_keep=2)
  )
  if manager.latest_step() is not None:
    state = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(state))
  step_fn = make_step(graph, optimizer, args.decay)
  feed = Feed(Corpus(sets), _drawn(args.drawn), args, int(state["step"]))
  log = (args.workdir / "progress.jsonl").open("a")
  judged_sets = judge.load(args.judge, 8) if args.judge else None
  predict = judge.make_predict(graph)
  begin = saved = judged = time.time()
  before, losses = float(state["minutes"]), []
  measured = 0.0
  while int(state["step"]) < args.steps and time.time() - begin < args.minutes * 60:
    images, masks, known = next(feed)
    state["params"], state["opt_state"], state["ema"], value = step_fn(
      state["params"], frozen, state["opt_state"], state["ema"], images, masks > 0.5, known, np.float32(state["step"])
    )
    state["step"] = np.asarray(state["step"] + 1)
    losses.append(float(value))
    now = time.time()
    state["minutes"] = np.asarray(before + (now - begin - measured) / 60)
    if len(losses) % 50 == 0:
      row = {
        "step": int(state["step"]),
        "minutes": round(float(state["minutes"]), 2),
        "loss": round(float(np.mean(losses[-50:])), 4),
      }
      print(row, flush=True)
      log.write(json.dumps(row) + "\n")
    if judged_sets and now - judged > args.judge_every * 60:
      mean, each = judge.evaluate(functools.partial(predict, state["ema"] | frozen), judged_sets, 128)
      row = {
        "step": int(state["step"]),
        "minutes": round(float(state["minutes"]), 2),
        "judge": round(mean, 4),
        "sets": {n: round(v, 3) for n, v in each.items()},
      }
      print(row, flush=True)
      log.write(json.dumps(row) + "\n")
      log.flush()
      measured += time.time() - now
      judged = time.time()
    if now - saved > args.save_every * 60:
      manager.save(int(state["step"]), args=ocp.args.StandardSave(state))
      saved = time.time()
  manager.save(int(state["step"]), args=ocp.args.StandardSave(state), force=True)
  manager.wait_until_finished()
  averaged = args.workdir / f"weights_{int(state['step'])}"
  # Between the start and what it became, weights are better than both (arXiv 2109.01903).
  mean = jax.tree.map(lambda old, new: args.keep_start * old + (1 - args.keep_start) * new, start, state["ema"])
  weights.save_weights(averaged, mean | frozen, config)
  print(f"written: {averaged}; python -m pretraining.pack {averaged} small")


def _drawn(path: Path | None):
  if path is None:
    return None
  from pretraining.drawn import DrawnTasks

  return DrawnTasks(path)


if __name__ == "__main__":
  main()
