"""The network as an ONNX graph, node by node from the parameters.

The graph follows `model/ensemble.py`: K prompt halves and one query half go through the linear layers, and attention
sees K whole canvases. jax2onnx 0.17 replaces Flax's layers by primitives of its own that cannot be batched, and needs
several other packages, so the graph is written with `onnx.helper`. The tests hold it against the model.

Dimensions in comments: B queries, N = 2B while image and target streams are apart and B after that, K prompts, T tokens
of a half, D channels, h heads of d channels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

import seggpt_jax
from seggpt_jax import palette
from seggpt_jax.errors import InputError
from seggpt_jax.export.onnx_graph import NetworkGraph, scalar
from seggpt_jax.export.onnx_matcher import MatcherGraph
from seggpt_jax.model import parameters
from seggpt_jax.model.attention.relative_positions import fit_table, one_hot_positions, relative_index
from seggpt_jax.model.matcher import Matcher
from seggpt_jax.model.parameters import StoredDtype, stored_params
from seggpt_jax.model.seggpt import SegGPT, SegType

if TYPE_CHECKING:
  import onnx

_OPSET = 20  # the first with GELU
_IR_VERSION = 10  # of ONNX 1.16, so that older runtimes read the file


def build_onnx(
  model: SegGPT, num_prompts: int, *, dtype: StoredDtype = "float32", seg_type: SegType = "semantic"
) -> onnx.ModelProto:
  """Returns the network as an ONNX model.

  Its metadata hold `tile_size` (width and height in pixels), `num_prompts`, `palette` (colors, of which color I stands
  for class I: 256, or 4 of a `Matcher`, which answers three masks), `canvas_size` (height and width) and
  `seggpt_jax_version`.

  Args:
    model: the network. Only its architecture and parameters are read; the arithmetic is in float32.
    num_prompts: K.
    dtype: type in which large kernels are stored, see `stored_params`.
    seg_type: "semantic" or "instance".

  Raises:
    InputError: the package `onnx` is missing.
    ValueError: a large kernel holds values beyond float16.
  """
  try:
    import onnx
    from onnx import helper
  except ImportError as error:
    raise InputError("onnx is not installed; pip install 'seggpt-jax[export]'") from error
  # Filled in place: `helper.make_graph` and `make_model` would copy all parameters, once each.
  opset = helper.make_opsetid("", _OPSET)
  proto = onnx.ModelProto(opset_import=[opset], producer_name="seggpt-jax", ir_version=_IR_VERSION)
  proto.graph.name = "seggpt"
  stored = stored_params(parameters.split(model)[1], dtype)
  params = {name: np.asarray(value) for name, value in stored.items()}
  network: NetworkGraph
  if isinstance(model, Matcher):
    network, colors = MatcherGraph(proto.graph, model.config, num_prompts, params), np.eye(4, 3, -1, np.uint8) * 255
  else:
    network, colors = _SegGPTGraph(proto.graph, model, num_prompts, params, seg_type), palette.fixed_palette(256)
  network.predict("query", "prompt_images", "prompt_colors")
  proto.graph.node[-1].output[0] = "colors"
  (height, width), k = network.tile_size, num_prompts
  uint8, float32 = (helper.np_dtype_to_tensor_dtype(np.dtype(dtype)) for dtype in (np.uint8, np.float32))
  inputs = {
    "query": ("batch", height, width, 3),
    "prompt_images": ("batch", k, height, width, 3),
    "prompt_colors": ("batch", k, height, width, 3),
  }
  proto.graph.input.extend(helper.make_tensor_value_info(name, uint8, shape) for name, shape in inputs.items())
  proto.graph.output.append(helper.make_tensor_value_info("colors", float32, ("batch", height, width, 3)))
  metadata = {
    "tile_size": json.dumps([width, height]),
    "canvas_size": json.dumps(model.config.canvas_size),
    "num_prompts": json.dumps(k),
    "palette": json.dumps(colors.tolist()),
    "seggpt_jax_version": seggpt_jax.__version__,
  }
  helper.set_model_props(proto, metadata)
  return proto


class _SegGPTGraph(NetworkGraph):
  """Writes a SegGPT into a graph; see `NetworkGraph` for the arguments."""

  def __init__(
    self, graph: onnx.GraphProto, model: SegGPT, num_prompts: int, params: Mapping[str, np.ndarray], seg_type: SegType
  ):
    super().__init__(graph, model.config, num_prompts, params)
    self._posemb = np.asarray(model.position_embedding(self.config.grid))[0]
    self._type_token = params["type_token_cls" if seg_type == "semantic" else "type_token_ins"]

  def predict(self, query: str, images: str, targets: str) -> str:
    """Adds the whole network: from uint8 pixels to float32 colors, 0..255."""
    x, features = self.embed(query, images, targets), []
    for index in range(self.config.depth):
      x = self.block(x, f"blocks.{index}")
      if index == self.config.merge_block:
        streams = [f"{part}_stream" for part in ("image", "target")]
        self.split(x, streams, axis=0)
        x = self.op("Mul", self.op("Add", *streams), scalar(0.5))
      if index in self.config.feature_taps:
        features.append(self.tap(x))
    return self.decode(self.concatenate(features, 3))

  def embed(self, query: str, images: str, targets: str) -> str:
    """Adds the tokens of both streams, one after the other along the batch: `[2B, K + 1, T, D]`."""
    k, (height, width), p = self.k, self.tile_size, self.config.patch_size
    rows, cols = height // p, width // p

    def tokens(pixels: str, halves: int) -> str:
      patches = self.transpose(self.reshape(self.normalized(pixels), -1, rows, p, cols, p, 3), 0, 1, 3, 2, 4, 5)
      return self.linear(self.reshape(patches, -1, halves, rows * cols, p * p * 3), "patch_embed")

    query = self.reshape(query, -1, 1, height, width, 3)
    x = tokens(self.concatenate([images, query], 1), k + 1)
    y = self.pad(tokens(targets, k), 1, 4, 1)  # the query's target is hidden: zeros, to which the mask token is added
    posemb = self.op("Gather", self._posemb.reshape(2, rows * cols, -1), np.array([0] * k + [1], np.int64), axis=0)
    streams = []
    for stream, z in zip("xy", (x, y), strict=True):
      token = np.tile((self.params[f"segment_token_{stream}"] + self._type_token)[0], (k + 1, 1, 1))
      if stream == "y":
        token[k] += self.params["mask_token"][0, 0]
      streams.append(self.op("Add", z, self.op("Add", posemb, token)))
    return self.concatenate(streams, 0)

  def block(self, x: str, name: str) -> str:
    """Adds a block: `[N, K + 1, T, D]`."""
    attended = self.attend(self.linear(self.norm(x, f"{name}.norm1"), f"{name}.attn.qkv"), f"{name}.attn")
    x = self.op("Add", x, self.linear(attended, f"{name}.attn.proj"))
    hidden = self.op("Gelu", self.linear(self.norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"))
    return self.op("Add", x, self.linear(hidden, f"{name}.mlp.fc2"))

  def attend(self, qkv: str, name: str) -> str:
    """Adds attention on K whole canvases, and the mean of their query halves: `[N, K + 1, T, D]`."""
    k, (rows, cols), heads, dim = self.k, self.config.grid, self.config.num_heads, self.config.head_dim
    half, tokens = rows * cols // 2, rows * cols
    lower = self.part(qkv, 1, k, k + 1)
    if k > 1:
      lower = self.op("Expand", lower, np.array([1, k, 1, 1], np.int64))
    canvases = self.concatenate([self.part(qkv, 1, 0, k), lower], 2)
    parts = [f"{name}.{part}" for part in ("query", "key", "value")]
    self.split(canvases, parts, axis=3)
    query, key, value = (self.transpose(self.reshape(x, -1, tokens, heads, dim), 0, 2, 1, 3) for x in parts)
    weights = self.op("Softmax", self.logits(query, key, name), axis=-1)
    output = self.transpose(self.op("MatMul", weights, value), 0, 2, 1, 3)
    output = self.reshape(output, -1, k, tokens, heads * dim)
    lower = self.part(output, 2, half, tokens)
    if k > 1:
      lower = self.op("ReduceMean", lower, np.array([1], np.int64), keepdims=1)
    return self.concatenate([self.part(output, 2, 0, half), lower], 1)

  def logits(self, query: str, key: str, name: str) -> str:
    """Adds the products of queries with keys, both extended such that relative positions are included."""
    rows, cols = self.config.grid
    heads, dim, tokens = self.config.num_heads, self.config.head_dim, rows * cols

    def table(axis: str, size: int) -> str:
      """Returns `[row or column of the query, d, row or column of the key]`."""
      fitted = np.asarray(fit_table(jnp.asarray(self.params[f"{name}.rel_pos_{axis}"]), size))
      # Gathered by the runtime when it loads the file, because the table is a fraction of the result.
      return self.transpose(self.op("Gather", fitted, relative_index(size).astype(np.int64)), 0, 2, 1)

    grid = self.reshape(query, -1, heads, rows, cols, dim)
    by_row = self.op("MatMul", grid, table("h", rows))
    by_col = self.transpose(self.op("MatMul", self.transpose(grid, 0, 1, 3, 2, 4), table("w", cols)), 0, 1, 3, 2, 4)
    scaled = self.op("Mul", query, scalar(1 / math.sqrt(dim)))
    relative = [self.reshape(x, -1, heads, tokens, n) for x, n in ((by_row, rows), (by_col, cols))]
    positions = np.pad(one_hot_positions((rows, cols)), ((0, 0), (dim, 0))).astype(np.float32)
    keys = self.op("Add", self.pad(key, 3, 4, rows + cols), positions)
    return self.op("MatMul", self.concatenate([scaled, *relative], 3), self.transpose(keys, 0, 1, 3, 2))

  def tap(self, x: str) -> str:
    """Adds the features of a block for the decoder: the query's, below the last row of the first prompt."""
    k, (rows, cols) = self.k, self.config.grid
    half = rows * cols // 2
    above = self.part(self.part(x, 1, 0, 1), 2, half - cols, half)
    return self.norm(self.concatenate([above, self.part(x, 1, k, k + 1)], 2), "norm")

  def decode(self, features: str) -> str:
    """Adds the decoder, from the normalized features of all taps to colors."""
    p, dim, (rows, cols) = self.config.patch_size, self.config.decoder_dim, self.config.grid
    rows = rows // 2 + 1
    patches = self.reshape(self.linear(features, "decoder_embed"), -1, rows, cols, p, p, dim)
    pixels = self.reshape(self.transpose(patches, 0, 5, 1, 3, 2, 4), -1, dim, rows * p, cols * p)
    kernel, bias = (self.params[f"decoder_pred.conv.{part}"] for part in ("kernel", "bias"))
    pixels = self.op("Conv", pixels, np.transpose(kernel, (3, 2, 0, 1)), bias, pads=(1, 1, 1, 1))
    pixels = self.transpose(self.part(pixels, 2, p, rows * p), 0, 2, 3, 1)
    hidden = self.op("Gelu", self.norm(pixels, "decoder_pred.norm"))
    colors = self.linear(hidden, "decoder_pred.head")
    mean, std = (np.array(values, np.float32) for values in (self.config.image_mean, self.config.image_std))
    colors = self.op("Mul", self.op("Add", self.op("Mul", colors, std), mean), scalar(255.0))
    return self.op("Clip", colors, scalar(0.0), scalar(255.0))
