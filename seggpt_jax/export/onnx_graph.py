"""A traced JAX function as an ONNX graph, operation by operation.

Operations on constants are computed here, except conversions from float16, which keep the file small. Broadcasts stay
implicit where ONNX broadcasts by itself, so that no constant is stored larger than it is. jax2onnx 0.17 cannot do that:
its layers cannot be batched.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

import seggpt_jax
from seggpt_jax import palette
from seggpt_jax.errors import InputError
from seggpt_jax.export.stablehlo import input_shapes, predict_function, tile_size
from seggpt_jax.model import parameters
from seggpt_jax.model.imagenet import same_padding
from seggpt_jax.model.matcher import Matcher
from seggpt_jax.model.parameters import StoredDtype, stored_params
from seggpt_jax.model.seggpt import SegGPT, SegType

if TYPE_CHECKING:
  import onnx


# Size of the batch in the trace, a prime: dimensions that are multiples of it depend on the batch.
BATCH = 1_000_003
_SMALL = 2**14  # values of a constant that is always computed here
_STEPS = 160  # of conjugate gradients, after which the answers agree with those of Cholesky's method

_SAME = {
  **{"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min", "exp": "Exp", "erf": "Erf"},
  **{"sqrt": "Sqrt", "abs": "Abs", "neg": "Neg", "logistic": "Sigmoid", "round": "Round", "log": "Log", "tanh": "Tanh"},
  **{"gt": "Greater", "ge": "GreaterOrEqual", "lt": "Less", "le": "LessOrEqual", "eq": "Equal"},
  **{"and": "And", "or": "Or", "not": "Not", "cos": "Cos"},
}
_ELEMENTWISE = {*_SAME, "square", "rsqrt", "ne", "select_n", "convert_element_type", "integer_pow", "stop_gradient"}

_SIMPLE: dict[str, Callable] = {
  "transpose": lambda op, x, params: op("Transpose", x[0], perm=params["permutation"]),
  "tile": lambda op, x, params: op("Tile", x[0], _ints(params["reps"])),
  "concatenate": lambda op, x, params: op("Concat", *x, axis=params["dimension"]),
  "stack": lambda op, x, params: op(
    "Concat", *(op("Unsqueeze", each, _ints([params["axis"]])) for each in x), axis=params["axis"]
  ),
  "split": lambda op, x, params: op(
    "Split", x[0], _ints(params["sizes"]), axis=params["axis"], outputs=len(params["sizes"])
  ),
  "reduce_sum": lambda op, x, params: op("ReduceSum", x[0], _ints(params["axes"]), keepdims=0),
  "reduce_max": lambda op, x, params: op("ReduceMax", x[0], _ints(params["axes"]), keepdims=0),
}


def _ints(values: Any) -> np.ndarray:
  return np.array(values, np.int64)


def _grouped_convolution(x: jax.Array, kernel: jax.Array, *, result: Any) -> jax.Array:
  """Convolves each channel as `imagenet.depthwise`, in one node."""
  (*batch, height, width, channels), stride = x.shape, -(-x.shape[-3] // result.shape[-3])
  padding = [same_padding(side, len(kernel), stride) for side in (height, width)]
  dims, x = ("NHWC", "HWIO", "NHWC"), x.reshape(-1, height, width, channels)
  options = {"dimension_numbers": dims, "feature_group_count": channels}
  found = jax.lax.conv_general_dilated(x, kernel[:, :, None], (stride, stride), padding, **options)
  return found.reshape(*batch, *found.shape[1:])


def _conjugate_gradients(matrix: jax.Array, target: jax.Array, **_: Any) -> jax.Array:
  """Solves linear equations by products only, which ONNX has; `matrix` is symmetric and positive."""
  identity = np.expand_dims(np.eye(matrix.shape[-1], dtype=np.float32), tuple(range(matrix.ndim - 2)))
  inverse = 1 / jnp.sum(matrix * identity, axis=-1, keepdims=True)
  weights, left = jnp.zeros_like(target), target
  ahead = scaled = inverse * left
  size = jnp.sum(left * scaled, axis=-2, keepdims=True)
  for _ in range(_STEPS):
    moved = matrix @ ahead
    # A mask that is empty has nothing left to fit.
    step = size / (jnp.sum(ahead * moved, axis=-2, keepdims=True) + 1e-30)
    weights, left = weights + step * ahead, left - step * moved
    scaled, before = inverse * left, size
    size = jnp.sum(left * scaled, axis=-2, keepdims=True)
    ahead = scaled + size / (before + 1e-30) * ahead
  return weights


# JAX functions by name that ONNX cannot express, or not as well. The factor of Cholesky's method is the matrix itself.
_REPLACED = {
  **{"_cholesky": lambda matrix, **_: matrix, "_cho_solve": _conjugate_gradients},
  "depthwise": _grouped_convolution,
}


def _weighted_mean(op: Callable, query: str, key: str, value: str, rank: int) -> str:
  """Adds `layers.weighted_mean` with one node for the softmax, which takes two thirds of the time of its parts."""
  scores = op("MatMul", query, op("Transpose", key, perm=[*range(rank - 2), rank - 1, rank - 2]))
  return op("MatMul", op("Softmax", scores, axis=-1), value)


class _Value(NamedTuple):
  """An array: a constant or the name of a result; `shape` has 1 where a broadcast is implicit."""

  data: np.ndarray | str
  shape: tuple[int, ...]


class GraphWriter:
  """Writes nodes and constants into a graph.

  Args:
    graph: the graph, which is filled in place.
    batch_of: name of an input whose first dimension is the batch.
  """

  def __init__(self, graph: onnx.GraphProto, batch_of: str):
    self._graph, self._batch_of, self._batch = graph, batch_of, ""
    self._names: dict[tuple, str] = {}

  def write(self, traced: ClosedJaxpr, arguments: Sequence[np.ndarray | str]) -> list[str]:
    """Adds a traced function and returns the names of its results.

    Args:
      traced: the function, traced with a batch of `BATCH`.
      arguments: constants, and names of inputs of the graph.
    """
    given = [_Value(data, var.aval.shape) for data, var in zip(arguments, traced.jaxpr.invars, strict=True)]
    found = self._evaluate(traced, given)
    return [self._full(value, var.aval.shape) for value, var in zip(found, traced.jaxpr.outvars, strict=True)]

  def _evaluate(self, traced: ClosedJaxpr, arguments: Sequence[_Value]) -> list[_Value]:
    consts = [_Value(np.asarray(each), np.shape(each)) for each in traced.consts]
    known = dict(zip([*traced.jaxpr.constvars, *traced.jaxpr.invars], [*consts, *arguments], strict=True))

    def read(var: Any) -> _Value:
      return _Value(np.asarray(var.val, var.aval.dtype), ()) if isinstance(var, Literal) else known[var]

    for equation in traced.jaxpr.eqns:
      known.update(zip(equation.outvars, self._apply(equation, [*map(read, equation.invars)]), strict=True))
    return [*map(read, traced.jaxpr.outvars)]

  def _apply(self, equation: Any, inputs: list[_Value]) -> list[_Value]:
    """Computes one operation on constants, or adds nodes for it."""
    name, params = equation.primitive.name, equation.params
    shapes = [var.aval.shape for var in equation.outvars]
    inner = next((params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params), None)
    if replacement := _REPLACED.get(params.get("name", "")):
      result = equation.outvars[0].aval
      inner = jax.make_jaxpr(functools.partial(replacement, result=result))(*(var.aval for var in equation.invars))
    if params.get("name") == "weighted_mean":
      names = [self._full(each, var.aval.shape) for each, var in zip(inputs, equation.invars, strict=True)]
      return [_Value(_weighted_mean(self._op, *names, rank=len(shapes[0])), shapes[0])]
    if inner is not None:
      closed = inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())
      return self._evaluate(closed, inputs)
    if name == "broadcast_in_dim":
      kept = dict(zip(params["broadcast_dimensions"], inputs[0].shape, strict=True))
      return [self._reshape(inputs[0], tuple(kept.get(axis, 1) for axis in range(len(shapes[0]))))]
    constant = all(isinstance(each.data, np.ndarray) for each in inputs)
    stored = name == "convert_element_type" and inputs[0].data.dtype == np.float16 if constant else False
    if name in _ELEMENTWISE:
      shape = np.broadcast_shapes(*(each.shape for each in inputs))
      if constant and not stored:
        data = [np.broadcast_to(each.data, shape) for each in inputs]
        return [_Value(np.asarray(equation.primitive.bind(*data, **params)), shape)]
      return [_Value(self._elementwise(name, params, [each.data for each in inputs]), shape)]
    depends = any(size % BATCH == 0 for size in shapes[0] if size)
    if constant and not depends and not (self._has_rule(name) and _enlarges(inputs, shapes[0])):
      full = (np.broadcast_to(each.data, var.aval.shape) for each, var in zip(inputs, equation.invars, strict=True))
      found = equation.primitive.bind(*full, **params)
      return [_Value(np.asarray(each), np.shape(each)) for each in (found if len(shapes) > 1 else [found])]
    return self._add(equation, inputs, shapes)

  def _has_rule(self, name: str) -> bool:
    return name in _SIMPLE or hasattr(self, f"_{name.replace('-', '_')}")

  def _add(self, equation: Any, inputs: list[_Value], shapes: list[tuple[int, ...]]) -> list[_Value]:
    """Adds the nodes of an operation that needs its inputs in their whole shape."""
    name, params = equation.primitive.name, equation.params
    names = [self._full(each, var.aval.shape) for each, var in zip(inputs, equation.invars, strict=True)]
    if name in ("reshape", "squeeze", "expand_dims"):
      return [self._reshape(_Value(names[0], equation.invars[0].aval.shape), shapes[0])]
    if not self._has_rule(name):
      raise NotImplementedError(f"no rule for {name} in ONNX")
    if name in _SIMPLE:
      found = _SIMPLE[name](self._op, names, params)
    else:
      found = getattr(self, f"_{name.replace('-', '_')}")(names, params, equation)
    found = [found] if isinstance(found, str) else found
    return [_Value(each, shape) for each, shape in zip(found, shapes, strict=True)]

  # ------------------------------------------------------------------------------------------------------ small parts

  def _op(self, kind: str, *inputs: str | np.ndarray, outputs: int = 1, **attributes: Any) -> Any:
    """Adds a node and returns the name of its result, or the names of several. Arrays become constants."""
    from onnx import helper

    base = f"{kind.lower()}_{len(self._graph.node)}"
    found = [base] if outputs == 1 else [f"{base}_{index}" for index in range(outputs)]
    names = [each if isinstance(each, str) else self._constant(each) for each in inputs]
    self._graph.node.append(helper.make_node(kind, names, found, name=base, **attributes))
    return base if outputs == 1 else found

  def _constant(self, value: np.ndarray) -> str:
    """Adds a constant, or returns the one of the same value."""
    from onnx import numpy_helper

    key = (value.dtype.str, value.shape, hashlib.blake2b(np.ascontiguousarray(value)).digest())
    if key not in self._names:
      self._names[key] = f"constant_{len(self._graph.initializer)}"
      self._graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), self._names[key]))
    return self._names[key]

  def _reshape(self, value: _Value, shape: tuple[int, ...]) -> _Value:
    if isinstance(value.data, np.ndarray):
      return _Value(value.data.reshape(shape), shape)
    if value.shape == shape:
      return value
    return _Value(self._op("Reshape", value.data, _ints([_free(size) for size in shape])), shape)

  def _full(self, value: _Value, shape: tuple[int, ...]) -> Any:
    """Returns the name of an array of its whole shape, or a constant."""
    if value.shape == shape:
      return value.data
    free = [size % BATCH == 0 for size in shape]
    if not any(free):
      if isinstance(value.data, np.ndarray):
        return np.broadcast_to(value.data, shape)
      return self._op("Expand", value.data, _ints(shape))
    self._batch = self._batch or self._op("Shape", self._batch_of, start=0, end=1)
    factors = _ints([size // BATCH if is_free else 0 for size, is_free in zip(shape, free, strict=True)])
    fixed = _ints([0 if is_free else size for size, is_free in zip(shape, free, strict=True)])
    return self._op("Expand", value.data, self._op("Add", self._op("Mul", self._batch, factors), fixed))

  def _elementwise(self, name: str, params: Mapping[str, Any], inputs: list) -> str:
    if name in _SAME:
      return self._op(_SAME[name], *inputs)
    if name == "convert_element_type":
      from onnx import helper

      return self._op("Cast", inputs[0], to=helper.np_dtype_to_tensor_dtype(np.dtype(params["new_dtype"])))
    if name == "select_n":
      return self._op("Where", inputs[0], inputs[2], inputs[1])
    if name in ("square", "integer_pow"):
      return self._op("Pow", inputs[0], np.array(params.get("y", 2), np.float32))
    return {
      "stop_gradient": lambda: self._op("Identity", inputs[0]),
      "rsqrt": lambda: self._op("Reciprocal", self._op("Sqrt", inputs[0])),
      "ne": lambda: self._op("Not", self._op("Equal", *inputs)),
    }[name]()

  # ------------------------------------------------------------------------------------------- one method a primitive

  def _slice(self, inputs: list, params: Mapping[str, Any], equation: Any) -> str:
    shape, strides = equation.invars[0].aval.shape, params["strides"] or (1,) * len(params["start_indices"])
    bounds = zip(params["start_indices"], params["limit_indices"], strides, shape, range(len(shape)), strict=True)
    cut = [(start, end, axis, step) for start, end, step, size, axis in bounds if (start, end, step) != (0, size, 1)]
    return self._op("Slice", inputs[0], *_ints(cut).T.copy()) if cut else inputs[0]

  def _unstack(self, inputs: list, params: Mapping[str, Any], equation: Any) -> Any:
    axis, count = _ints([params["axis"]]), len(equation.outvars)
    parts = self._op("Split", inputs[0], axis=params["axis"], num_outputs=count, outputs=count)
    return [self._op("Squeeze", each, axis) for each in ([parts] if count == 1 else parts)]

  def _gather(self, inputs: list, params: Mapping[str, Any], _: Any) -> str:
    assert params["dimension_numbers"].start_index_map == (0,), "not along the first axis"
    return self._op("Gather", inputs[0], inputs[1][..., 0].astype(np.int64))

  def _scatter_add(self, inputs: list, params: Mapping[str, Any], equation: Any) -> str:
    """Adds a block at a constant place: the block with zeros around it is added."""
    numbers, (whole, _, block) = params["dimension_numbers"], (var.aval.shape for var in equation.invars)
    assert len(numbers.update_window_dims) == len(whole), "several blocks"
    low = np.zeros(len(whole), np.int64)
    low[[*numbers.scatter_dims_to_operand_dims]] = inputs[1].reshape(-1)
    high = np.subtract(whole, block) - low
    return self._op("Add", inputs[0], self._op("Pad", inputs[2], np.concatenate([low, high]), np.array(0, np.float32)))

  def _pad(self, inputs: list, params: Mapping[str, Any], _: Any) -> str:
    low, high, _ = zip(*params["padding_config"], strict=True)
    return self._op("Pad", inputs[0], _ints([*low, *high]), inputs[1])

  def _dot_general(self, inputs: list, params: Mapping[str, Any], equation: Any) -> Any:
    """Adds a product of matrices: batch dimensions in front, then those of one side, then the ones summed over."""
    contracted, batch = params["dimension_numbers"]
    sides, free = [], []
    for side, (name, var) in enumerate(zip(inputs, equation.invars, strict=True)):
      shape, first, last = var.aval.shape, batch[side], contracted[side]
      own = [axis for axis in range(len(shape)) if axis not in (*first, *last)]
      order = (*first, *own, *last) if side == 0 else (*first, *last, *own)
      value = _Value(name, shape)
      if order != tuple(range(len(shape))):
        moved = name.transpose(order) if isinstance(name, np.ndarray) else self._op("Transpose", name, perm=order)
        value = _Value(moved, tuple(shape[axis] for axis in order))
      merged = [int(np.prod([shape[axis] for axis in axes], dtype=np.int64)) for axes in (own, last)]
      sides.append(self._reshape(value, (*(shape[axis] for axis in first), *(merged if side == 0 else merged[::-1]))))
      free.append(merged[0])
    shape = (*sides[0].shape[:-1], sides[1].shape[-1])
    found = _Value(self._op("MatMul", *(each.data for each in sides)), shape)
    return self._reshape(found, equation.outvars[0].aval.shape).data

  def _conv_general_dilated(self, inputs: list, params: Mapping[str, Any], _: Any) -> str:
    (images, kernel), dims, padding = inputs, params["dimension_numbers"], params["padding"]
    kernel = (
      kernel.transpose(dims.rhs_spec)
      if isinstance(kernel, np.ndarray)
      else self._op("Transpose", kernel, perm=dims.rhs_spec)
    )
    options = {"strides": params["window_strides"], "group": params["feature_group_count"]}
    options["pads"] = [*(low for low, _ in padding), *(high for _, high in padding)]
    found = self._op("Conv", self._op("Transpose", images, perm=dims.lhs_spec), kernel, **options)
    return self._op("Transpose", found, perm=np.argsort(dims.out_spec).tolist())


def _enlarges(inputs: Sequence[_Value], shape: Sequence[int]) -> bool:
  """Returns whether an operation repeats large constants, which a runtime does when it loads the file."""
  sizes = {id(each.data): each.data.size for each in inputs}
  return math.prod(shape) > max(sum(sizes.values()), _SMALL)


def _free(size: int) -> int:
  """Returns a dimension for Reshape, which finds out the one that depends on the batch."""
  return -1 if size % BATCH == 0 and size else size


_OPSET = 20
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
  graph, _ = parameters.abstract(model.config, attention="folded", training=False)
  params = stored_params(parameters.split(model)[1], dtype)
  shapes = input_shapes(model, num_prompts, BATCH)
  traced = jax.make_jaxpr(predict_function(parameters.merge(graph, params), seg_type))(
    params, *(jax.ShapeDtypeStruct(shape, jnp.uint8) for shape in shapes.values())
  )
  constants = [np.asarray(value) for value in jax.tree.leaves(params)]
  GraphWriter(proto.graph, "query").write(traced, [*constants, *shapes])
  proto.graph.node[-1].output[0] = "colors"
  uint8, float32 = (helper.np_dtype_to_tensor_dtype(np.dtype(dtype)) for dtype in (np.uint8, np.float32))
  for name, shape in input_shapes(model, num_prompts, "batch").items():
    proto.graph.input.append(helper.make_tensor_value_info(name, uint8, shape))
  height, width = tile_size(model)
  proto.graph.output.append(helper.make_tensor_value_info("colors", float32, ("batch", height, width, 3)))
  colors = np.eye(4, 3, -1, np.uint8) * 255 if isinstance(model, Matcher) else palette.fixed_palette(256)
  metadata = {
    "tile_size": json.dumps([width, height]),
    "canvas_size": json.dumps(model.config.canvas_size),
    "num_prompts": json.dumps(num_prompts),
    "palette": json.dumps(colors.tolist()),
    "seggpt_jax_version": seggpt_jax.__version__,
  }
  helper.set_model_props(proto, metadata)
  return proto
