"""Nodes of an ONNX graph, written one by one with `onnx.helper`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Shaped

from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.model.seggpt import LAYER_NORM_EPSILON

if TYPE_CHECKING:
  import onnx


def scalar(value: float | int | np.floating) -> np.ndarray:
  """Returns a number as float32, for a constant."""
  return np.array(value, np.float32)


class NetworkGraph:
  """Writes nodes and constants into a graph. Methods add nodes and return the name of the result."""

  def __init__(self, graph: onnx.GraphProto, config: SegGPTConfig, num_prompts: int, params: Mapping[str, np.ndarray]):
    self.graph, self.config, self.k, self.params = graph, config, num_prompts, params
    self._names: dict[tuple, str] = {}

  @property
  def tile_size(self) -> tuple[int, int]:
    height, width = self.config.canvas_size
    return height // 2, width

  def op(self, kind: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
    """Adds a node with one result. Arrays among its inputs become constants."""
    from onnx import helper

    name = f"{kind.lower()}_{len(self.graph.node)}"
    names = [each if isinstance(each, str) else self.constant(each) for each in inputs]
    self.graph.node.append(helper.make_node(kind, names, [name], name=name, **attributes))
    return name

  def constant(self, value: Shaped[np.ndarray, "*shape"]) -> str:
    """Adds a constant, or returns the one of the same value."""
    from onnx import numpy_helper

    key = (value.dtype.str, value.shape, hashlib.blake2b(np.ascontiguousarray(value)).digest())
    if key not in self._names:
      self._names[key] = f"constant_{len(self.graph.initializer)}"
      self.graph.initializer.append(numpy_helper.from_array(value, self._names[key]))
    return self._names[key]

  def reshape(self, x: str, *shape: int) -> str:
    return self.op("Reshape", x, np.array(shape, np.int64))

  def transpose(self, x: str, *axes: int) -> str:
    return self.op("Transpose", x, perm=axes)

  def part(self, x: str, axis: int, start: int, end: int) -> str:
    return self.op("Slice", x, *(np.array([value], np.int64) for value in (start, end, axis)))

  def concatenate(self, parts: Sequence[str], axis: int) -> str:
    return self.op("Concat", *parts, axis=axis) if len(parts) > 1 else parts[0]

  def pad(self, x: str, axis: int, ndim: int, count: int, value: float = 0.0) -> str:
    """Appends a constant along an axis."""
    pads = np.zeros((2, ndim), np.int64)
    pads[1, axis] = count
    return self.op("Pad", x, pads.ravel(), np.array(value, np.float32))

  def cast(self, x: str, dtype: Any) -> str:
    from onnx import helper

    return self.op("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

  def linear(self, x: str, name: str) -> str:
    kernel: str | np.ndarray = self.params[f"{name}.kernel"]
    if kernel.dtype != np.float32:
      kernel = self.cast(self.constant(kernel), np.float32)  # runtimes do this once, when they load the file
    return self.op("Add", self.op("MatMul", x, kernel), self.params[f"{name}.bias"])

  def norm(self, x: str, name: str) -> str:
    scale, bias = self.params[f"{name}.scale"], self.params[f"{name}.bias"]
    return self.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=LAYER_NORM_EPSILON)

  def normalized(self, pixels: str) -> str:
    """Adds `canvas.normalize` of uint8 pixels."""
    mean, std = (np.array(values, np.float32) for values in (self.config.image_mean, self.config.image_std))
    scaled = self.op("Div", self.cast(pixels, np.float32), scalar(255))
    return self.op("Div", self.op("Sub", scaled, mean), std)

  def split(self, x: str, names: Sequence[str], axis: int) -> None:
    """Adds a node that cuts an array into equal parts of these names."""
    from onnx import helper

    self.graph.node.append(helper.make_node("Split", [x], list(names), axis=axis, num_outputs=len(names)))
