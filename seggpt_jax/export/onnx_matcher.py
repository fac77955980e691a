"""The small network's design as an ONNX graph, node by node; see `model/matcher.py` for what each part does.

Comments and names follow that module. All arrays are NHWC; only convolutions, which ONNX wants as NCHW, are transposed.
ONNX cannot solve linear equations, so the linear heads are found by conjugate gradients, which only need products.
"""

from __future__ import annotations

import itertools

import jax
import numpy as np

from seggpt_jax.export.onnx_graph import NetworkGraph, scalar
from seggpt_jax.model import imagenet
from seggpt_jax.model.matcher import FREQUENCIES, HEADS, KEY_DIM, PATCH, RIDGE, position_code

_MASKS = 3  # classes in pure red, green and blue
_STEPS = 64  # of conjugate gradients, after which the answers agree with those of Cholesky's method


class MatcherGraph(NetworkGraph):
  """Writes a `Matcher` into a graph. Methods add nodes and return the name of the result."""

  def predict(self, query: str, images: str, targets: str) -> str:
    """Adds the whole network: from uint8 pixels to float32 colors, each of which is a mask, 0..255."""
    height, width = self.tile_size
    shown = self.describe(self.normalized(self.reshape(images, -1, height, width, 3)))
    masks = self.op("Div", self.cast(self.reshape(targets, -1, height, width, 3), np.float32), scalar(255))
    logits = self.answer(self.describe(self.normalized(query)), self.remember(shown, masks))
    return self.op("Mul", self.op("Sigmoid", logits), scalar(255))

  # ----------------------------------------------------------------------------------------------- small operations

  def mean(self, x: str, *axes: int, keep: bool = False) -> str:
    return self.op("ReduceMean", x, np.array(axes, np.int64), keepdims=int(keep))

  def total(self, x: str, *axes: int, keep: bool = True) -> str:
    return self.op("ReduceSum", x, np.array(axes, np.int64), keepdims=int(keep))

  def pooled(self, x: str, rows: int, cols: int, channels: int, size: int) -> str:
    return self.mean(self.reshape(x, -1, rows // size, size, cols // size, size, channels), 2, 4)

  def upsampled(self, x: str, rows: int, cols: int, channels: int, factor: int) -> str:
    """Enlarges bilinearly: one product for each axis."""
    by_row, by_col = (
      np.asarray(jax.image.resize(np.eye(size, dtype=np.float32), (size * factor, size), "linear"))
      for size in (rows, cols)
    )
    x = self.op("MatMul", by_row, self.reshape(x, -1, rows, cols * channels))
    return self.op("MatMul", by_col, self.reshape(x, -1, rows * factor, cols, channels))

  def shuffled(self, x: str, rows: int, cols: int, size: int, channels: int, *, back: bool = False) -> str:
    """Moves squares of pixels into channels, or with `back` channels into squares of pixels."""
    cut = (-1, rows, cols, size, size, channels) if back else (-1, rows, size, cols, size, channels)
    x = self.transpose(self.reshape(x, *cut), 0, 1, 3, 2, 4, 5)
    done = (rows * size, cols * size, channels) if back else (rows, cols, size * size * channels)
    return self.reshape(x, -1, *done)

  def standardized(self, x: str) -> str:
    centered = self.op("Sub", x, self.mean(x, 1, 2, keep=True))
    deviation = self.op("Sqrt", self.mean(self.op("Mul", centered, centered), 1, 2, keep=True))
    return self.op("Div", centered, self.op("Add", deviation, scalar(1e-2)))

  def convolved(self, x: str, name: str) -> str:
    kernel, bias = (self.params[f"{name}.{part}"] for part in ("kernel", "bias"))
    x = self.op("Conv", self.transpose(x, 0, 3, 1, 2), np.transpose(kernel, (3, 2, 0, 1)), bias, pads=(1, 1, 1, 1))
    return self.transpose(x, 0, 2, 3, 1)

  # ------------------------------------------------------------------------------------------------------- features

  def features(self, images: str) -> dict[int, str]:
    """Adds the ImageNet features; see `ImageNetFeatures`."""
    mean, std = (np.array(values, np.float32) for values in (self.config.image_mean, self.config.image_std))
    x = self.op("Add", self.op("Mul", images, 2 * std), 2 * mean - 1)
    (rows, cols), outputs, blocks = self.tile_size, {}, itertools.count()
    zero, six = scalar(0), scalar(6)

    def convolution(x: str, name: str, kernel: np.ndarray, stride: int = 1, groups: int = 1) -> str:
      size, bias = kernel.shape[-1], self.params[f"{name}.bias"]
      (top, bottom), (left, right) = (imagenet.same_padding(side, size, stride) for side in (rows, cols))
      options = {"strides": (stride, stride), "group": groups, "pads": (top, left, bottom, right)}
      return self.op("Conv", x, kernel, bias, **options)

    def pointwise(x: str, name: str) -> str:
      return convolution(x, name, self.params[f"{name}.kernel"].T[..., None, None])

    stem = np.transpose(self.params["features.stem.kernel"], (3, 2, 0, 1))
    x = self.op("Clip", convolution(self.transpose(x, 0, 3, 1, 2), "features.stem", stem, 2), zero, six)
    rows, cols, channels = rows // 2, cols // 2, imagenet.STEM
    strides = {stage: stride for stride, stage in imagenet.STRIDES.items()}
    for number, stage in enumerate(imagenet.STAGES):
      for repeat in range(stage.repeats):
        name, stride = f"features.blocks.{next(blocks)}", stage.stride if repeat == 0 else 1
        y = x if stage.expand == 1 else self.op("Clip", pointwise(x, f"{name}.expand"), zero, six)
        kernel = np.transpose(self.params[f"{name}.depthwise.kernel"], (2, 0, 1))[:, None]
        y = self.op("Clip", convolution(y, f"{name}.depthwise", kernel, stride, len(kernel)), zero, six)
        rows, cols = rows // stride, cols // stride
        y = pointwise(y, f"{name}.project")
        x = self.op("Add", x, y) if stride == 1 and channels == stage.channels else y
        channels = stage.channels
      if number in strides:
        outputs[strides[number]] = self.transpose(x, 0, 2, 3, 1)
    return outputs

  def describe(self, images: str) -> dict[str, str]:
    """Adds everything that needs no mask; see `Matcher.describe`."""
    (height, width), counts = self.tile_size, imagenet.CHANNELS
    maps, ends = self.features(images), np.cumsum([0, *counts.values()])
    fixed, own = {}, {stride: self.standardized(x) for stride, x in maps.items()}
    for (stride, x), start, end in zip(maps.items(), ends[:-1], ends[1:], strict=True):
      mean, scale = (self.params[f"feature_{part}"][start:end] for part in ("mean", "scale"))
      fixed[stride] = self.op("Mul", self.op("Sub", x, mean), scale)
    rich = []
    for part, colors in ((fixed, images), (own, self.standardized(images))):
      sizes = {stride: (height // stride, width // stride, counts[stride]) for stride in counts}
      parts = [self.pooled(part[2], *sizes[2], 2), part[4]]
      parts += [self.upsampled(part[stride], *sizes[stride], stride // 4) for stride in (8, 16)]
      rich.append(self.concatenate([*parts, self.pooled(colors, height, width, 3, 4)], 3))
    all4, total = self.concatenate(rich, 3), 2 * (sum(counts.values()) + 3)
    rows, cols, places = height // PATCH, width // PATCH, height * width // 16
    kernel = self.params["embed.kernel"]
    code = position_code(rows, cols).reshape(rows * cols, 4 * FREQUENCIES) @ kernel[total:]
    coarse = self.reshape(self.pooled(all4, height // 4, width // 4, total, 2), -1, rows * cols, total)
    tokens = self.op("Add", self.op("MatMul", coarse, kernel[:total]), code + self.params["embed.bias"])
    for index in range(self.config.merge_block + 1):
      tokens = self.context(tokens, f"blocks.{index}")

    def keys(x: str, stride: int, count: int) -> str:
      x = self.reshape(x, -1, count, HEADS[stride], KEY_DIM)
      length = self.op("Sqrt", self.op("Add", self.total(self.op("Mul", x, x), 3), scalar(1e-6)))
      return self.op("Div", x, length)

    pixels = self.shuffled(self.concatenate([images, self.standardized(images)], 3), height // 2, width // 2, 2, 6)
    flat = [self.reshape(part, -1, 1, places, total // 2) for part in rich]
    return {
      "tokens": tokens,
      "keys4": keys(self.linear(self.reshape(all4, -1, places, total), "key4"), 4, places),
      "keys8": keys(self.linear(tokens, "key8"), 8, rows * cols),
      "ridge": self.pad(self.concatenate(flat, 1), 3, 4, 1, 1.0),
      "skip4": self.linear(all4, "skip4"),
      "skip2": self.concatenate([fixed[2], own[2], pixels], 3),
    }

  def context(self, x: str, name: str, others: str = "") -> str:
    """Adds a transformer block whose tokens attend to themselves and to others; see `ContextBlock`."""
    heads, dim = self.config.num_heads, self.config.width // self.config.num_heads
    seen = self.norm(x, f"{name}.norm1")
    parts = [f"{seen}_{part}" for part in ("query", "key", "value")]
    self.split(self.linear(seen, f"{name}.attn.qkv"), parts, axis=2)
    if others:
      seen = self.norm(others, f"{name}.norm1")
      added = [f"{seen}_others_{part}" for part in ("query", "key", "value")]
      self.split(self.linear(seen, f"{name}.attn.qkv"), added, axis=2)
      parts[1:] = [self.concatenate(pair, 1) for pair in zip(parts[1:], added[1:], strict=True)]

    def by_head(y: str, *axes: int) -> str:
      return self.transpose(self.op("Reshape", y, np.array((0, -1, heads, dim), np.int64)), *axes)

    query, key, value = by_head(parts[0], 0, 2, 1, 3), by_head(parts[1], 0, 2, 3, 1), by_head(parts[2], 0, 2, 1, 3)
    scores = self.op("MatMul", self.op("Mul", query, scalar(dim**-0.5)), key)
    found = self.transpose(self.op("MatMul", self.op("Softmax", scores, axis=-1), value), 0, 2, 1, 3)
    found = self.op("Reshape", found, np.array((0, -1, heads * dim), np.int64))
    x = self.op("Add", x, self.linear(found, f"{name}.attn.proj"))
    hidden = self.op("Gelu", self.linear(self.norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"))
    return self.op("Add", x, self.linear(hidden, f"{name}.mlp.fc2"))

  # ---------------------------------------------------------------------------------------------- prompts and answer

  def mask_patches(self, masks: str, stride: int) -> str:
    """Adds 4 x 4 values of each square of a mask: `[N, places, masks, 16]`."""
    (height, width), share = self.tile_size, stride // 4
    if share > 1:
      masks = self.pooled(masks, height, width, _MASKS, share)
    rows, cols = height // stride, width // stride
    values = self.shuffled(masks, rows, cols, 4, _MASKS)
    return self.transpose(self.reshape(values, -1, rows * cols, 16, _MASKS), 0, 1, 3, 2)

  def remember(self, prompts: dict[str, str], masks: str) -> dict[str, str]:
    """Adds everything that needs no query; see `Matcher.remember`. Results have the queries as their batch."""
    (height, width), k, dim = self.tile_size, self.k, self.config.width
    count = height * width // PATCH**2
    patches = {stride: self.mask_patches(masks, stride) for stride in (4, 8)}
    kernel, bias = (self.params[f"prompt_embed.{part}"] for part in ("kernel", "bias"))
    own = self.op("MatMul", self.reshape(prompts["tokens"], -1, 1, count, dim), kernel[:dim])
    shown = self.op("MatMul", self.transpose(patches[8], 0, 2, 1, 3), kernel[dim:])
    tokens = self.reshape(self.op("Add", self.op("Add", own, shown), bias), -1, count, dim)
    across, kept = range(self.config.merge_block + 1, self.config.depth), {}
    for index in across:
      by_class = self.transpose(self.reshape(tokens, -1, k, _MASKS, count, dim), 0, 2, 1, 3, 4)
      kept[f"tokens{index}"] = self.reshape(by_class, -1, k * count, dim)
      if index < across[-1]:
        tokens = self.context(tokens, f"blocks.{index}")
    size = self.ridge_size
    shares = self.reshape(self.mean(patches[4], 3), -1, 1, height * width // 16, _MASKS)
    turned = self.transpose(prompts["ridge"], 0, 1, 3, 2)
    gram = self.reshape(self.op("MatMul", turned, prompts["ridge"]), -1, k, 2, size, size)
    target = self.reshape(self.op("MatMul", turned, shares), -1, k, 2, size, _MASKS)
    kept |= {"gram": self.total(gram, 1, keep=False), "target": self.total(target, 1, keep=False)}
    for stride in (4, 8):
      places = k * height * width // stride**2
      kept[f"keys{stride}"] = self.reshape(prompts[f"keys{stride}"], -1, places, HEADS[stride], KEY_DIM)
      kept[f"values{stride}"] = self.reshape(patches[stride], -1, places, _MASKS * 16)
    kept["copy"] = self.mean(self.reshape(patches[8], -1, k, count, _MASKS, 16), 1)
    return kept

  @property
  def ridge_size(self) -> int:
    return sum(imagenet.CHANNELS.values()) + 3 + 1

  def heads(self, gram: str, target: str) -> str:
    """Adds the linear heads of the prompts; see `matcher._solve`."""
    (height, width), size = self.tile_size, self.ridge_size
    pixels = self.k * height * width // 16
    penalty = np.diag(np.append(np.ones(size - 1), 1e-4)).astype(np.float32) * scalar(RIDGE * pixels)
    matrix = self.op("Add", gram, penalty)
    identity = np.eye(size, dtype=np.float32)
    inverse = self.op("Div", scalar(1), self.total(self.op("Mul", matrix, identity), 3))
    weights, left = self.op("Mul", target, scalar(0)), target
    ahead = scaled = self.op("Mul", inverse, left)
    size_of = self.total(self.op("Mul", left, scaled), 2)
    tiny = scalar(1e-30)  # a mask that is empty has nothing left to fit
    for _ in range(_STEPS):
      moved = self.op("MatMul", matrix, ahead)
      step = self.op("Div", size_of, self.op("Add", self.total(self.op("Mul", ahead, moved), 2), tiny))
      weights = self.op("Add", weights, self.op("Mul", step, ahead))
      left = self.op("Sub", left, self.op("Mul", step, moved))
      scaled, before = self.op("Mul", inverse, left), size_of
      size_of = self.total(self.op("Mul", left, scaled), 2)
      ratio = self.op("Div", size_of, self.op("Add", before, tiny))
      ahead = self.op("Add", scaled, self.op("Mul", ratio, ahead))
    total, inside = self.part(gram, 3, size - 1, size), self.part(target, 2, size - 1, size)
    outside = self.op("Sub", scalar(pixels), inside)
    high = self.op("Div", self.total(self.op("Mul", weights, target), 2), self.op("Add", inside, scalar(1e-3)))
    low = self.total(self.op("Mul", weights, self.op("Sub", total, target)), 2)
    low = self.op("Div", low, self.op("Add", outside, scalar(1e-3)))
    weights = self.op("Sub", weights, self.op("Mul", identity[-1:].T, low))
    return self.op("Div", weights, self.op("Max", self.op("Sub", high, low), scalar(1e-2)))

  def matched(self, query: dict[str, str], memory: dict[str, str], stride: int, sharpness: np.ndarray) -> str:
    """Adds the mask values that similar places of the prompts have: `[B, masks, places, heads, 16]`."""
    height, width = self.tile_size
    places, found = height * width // stride**2, []
    for head, sharp in enumerate(sharpness):
      own, others = (self.part(each[f"keys{stride}"], 2, head, head + 1) for each in (query, memory))
      own = self.op("Mul", self.reshape(own, -1, places, KEY_DIM), scalar(np.exp(sharp)))
      others = self.reshape(others, -1, self.k * places, KEY_DIM)
      shares = self.op("Softmax", self.op("MatMul", own, self.transpose(others, 0, 2, 1)), axis=-1)
      values = self.op("MatMul", shares, memory[f"values{stride}"])
      found.append(self.transpose(self.reshape(values, -1, places, _MASKS, 1, 16), 0, 2, 1, 3, 4))
    return self.concatenate(found, 3)

  def answer(self, query: dict[str, str], memory: dict[str, str]) -> str:
    """Adds the logits of the masks, `[B, H, W, masks]`; see `Matcher.answer`."""
    (height, width), dim, half = self.tile_size, self.config.decoder_dim, self.config.decoder_dim // 2
    (rows, cols), fine_heads, wide = (height // PATCH, width // PATCH), HEADS[4], self.config.width
    rows4, cols4, rows2, cols2 = height // 4, width // 4, height // 2, width // 2
    sharpness = self.params["sharpness"]
    fine = self.matched(query, memory, 4, sharpness[:fine_heads])
    coarse = self.matched(query, memory, 8, sharpness[fine_heads:])
    linear = self.op("MatMul", query["ridge"], self.heads(memory["gram"], memory["target"]))
    linear = self.op("Clip", self.transpose(linear, 0, 3, 2, 1), scalar(-1), scalar(2))  # [B, masks, places, 2]
    means = self.concatenate([self.mean(fine, 4), linear], 3)
    means = self.reshape(means, -1, rows4, cols4, fine_heads + 2)
    copy = self.reshape(self.transpose(memory["copy"], 0, 2, 1, 3), -1, rows, cols, 16)

    def for_each_mask(x: str, *shape: int) -> str:
      """Repeats an array of each query for its masks, whose batch is `[B * masks]`."""
      repeated = self.op("Expand", self.reshape(x, -1, 1, *shape), np.array([1, _MASKS, *shape], np.int64))
      return self.reshape(repeated, -1, *shape)

    hints = [
      for_each_mask(query["tokens"], rows, cols, wide),
      self.reshape(coarse, -1, rows, cols, HEADS[8] * 16),
      copy,
      self.shuffled(means, rows, cols, 2, fine_heads + 2),
    ]
    tokens = self.reshape(self.linear(self.concatenate(hints, 3), "query_embed"), -1, rows * cols, wide)
    for index in range(self.config.merge_block + 1, self.config.depth):
      tokens = self.context(tokens, f"blocks.{index}", memory[f"tokens{index}"])
    x = self.reshape(self.linear(self.norm(tokens, "norm"), "to4"), -1, rows, cols, 4 * dim)
    copy4 = self.mean(self.reshape(copy, -1, rows, cols, 2, 2, 2, 2), 4, 6)
    copy4 = self.shuffled(copy4, rows, cols, 2, 1, back=True)
    skip4 = for_each_mask(query["skip4"], rows4, cols4, dim)
    x = self.concatenate([self.shuffled(x, rows, cols, 2, dim, back=True), skip4, means, copy4], 3)
    x = self.op("Gelu", self.convolved(x, "conv4a"))
    x = self.op("Gelu", self.op("Add", x, self.convolved(x, "conv4b")))
    fine = self.reshape(fine, -1, rows4, cols4, fine_heads, 2, 2, 2, 2)
    fine = self.reshape(self.transpose(fine, 0, 1, 4, 2, 6, 3, 5, 7), -1, rows2, cols2, fine_heads * 4)
    skip2 = for_each_mask(query["skip2"], rows2, cols2, 2 * imagenet.CHANNELS[2] + 24)
    large = self.upsampled(self.reshape(linear, -1, rows4, cols4, 2), rows4, cols4, 2, 2)
    x = self.shuffled(self.linear(x, "to2"), rows4, cols4, 2, half, back=True)
    x = self.concatenate([x, skip2, fine, large], 3)
    x = self.op("Gelu", self.convolved(x, "conv2a"))
    x = self.op("Gelu", self.op("Add", x, self.convolved(x, "conv2b")))
    hints = self.op("MatMul", self.op("Sub", means, scalar(0.5)), self.params["hint_weights"][:, None])
    hints = self.upsampled(hints, rows4, cols4, 1, 4)
    logits = self.op("Add", self.shuffled(self.linear(x, "to1"), rows2, cols2, 2, 1, back=True), hints)
    return self.transpose(self.reshape(logits, -1, _MASKS, height, width), 0, 2, 3, 1)
