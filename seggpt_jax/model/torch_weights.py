"""Conversion between PyTorch state dicts and our parameters.

In: a state dict as NumPy arrays, with BAAI's or transformers' names. Out: views of the same arrays under our names, and
the architecture, inferred from their shapes. The way back is exact, bit for bit. `torch_files.py` reads and writes the
files.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from seggpt_jax.errors import InputError
from seggpt_jax.model import parameters
from seggpt_jax.model.config import SegGPTConfig

Layout = Literal["baai", "hf"]
Tensors = dict[str, np.ndarray]


class Entry(NamedTuple):
  """Names of one parameter in the three layouts, and the functions that convert its array."""

  name: str  # our name
  baai: str  # name in BAAI's release
  hf: str  # name in Hugging Face transformers
  to_ours: Callable[[np.ndarray], np.ndarray]  # converts an array from PyTorch's shape to ours
  to_torch: Callable[[np.ndarray], np.ndarray]  # converts an array from our shape to PyTorch's


def _patch_to_torch(array: np.ndarray) -> np.ndarray:
  side = round((array.shape[0] / 3) ** 0.5)
  return array.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)


# How an array is converted from PyTorch's shape to ours, and back.
_FORMS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]] = {
  "same": (lambda array: array, lambda array: array),
  "linear": (lambda array: array.T, lambda array: array.T),
  "conv": (lambda array: array.transpose(2, 3, 1, 0), lambda array: array.transpose(3, 2, 0, 1)),
  "patch": (lambda array: array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0]), _patch_to_torch),
  "pointwise": (lambda array: array[:, :, 0, 0].T, lambda array: array.T[:, :, None, None]),
}


def entries(depth: int) -> list[Entry]:
  """Returns the table of all parameters of a SegGPT with the given number of blocks."""
  table: list[Entry] = []

  def add(name, baai, hf, form="same"):
    table.append(Entry(name, baai, hf, *_FORMS[form]))

  def add_layer(name, baai, hf, form="linear"):
    add(f"{name}.kernel", f"{baai}.weight", f"{hf}.weight", form)
    add(f"{name}.bias", f"{baai}.bias", f"{hf}.bias")

  def add_norm(name, baai, hf):
    add(f"{name}.scale", f"{baai}.weight", f"{hf}.weight")
    add(f"{name}.bias", f"{baai}.bias", f"{hf}.bias")

  embeddings = "model.embeddings."
  for ours, hf in (
    ("mask_token", "mask_token"),
    ("segment_token_x", "segment_token_input"),
    ("segment_token_y", "segment_token_prompt"),
    ("type_token_cls", "type_token_semantic"),
    ("type_token_ins", "type_token_instance"),
    ("pos_embed", "position_embeddings"),
  ):
    add(ours, ours, embeddings + hf)
  add_layer("patch_embed", "patch_embed.proj", f"{embeddings}patch_embeddings.projection", "patch")
  for index in range(depth):
    block, layer = f"blocks.{index}.", f"model.encoder.layers.{index}."
    add_norm(f"{block}norm1", f"{block}norm1", f"{layer}layernorm_before")
    add_layer(f"{block}attn.qkv", f"{block}attn.qkv", f"{layer}attention.qkv")
    add_layer(f"{block}attn.proj", f"{block}attn.proj", f"{layer}attention.proj")
    add(f"{block}attn.rel_pos_h", f"{block}attn.rel_pos_h", f"{layer}attention.rel_pos_h")
    add(f"{block}attn.rel_pos_w", f"{block}attn.rel_pos_w", f"{layer}attention.rel_pos_w")
    add_norm(f"{block}norm2", f"{block}norm2", f"{layer}layernorm_after")
    add_layer(f"{block}mlp.fc1", f"{block}mlp.fc1", f"{layer}mlp.lin1")
    add_layer(f"{block}mlp.fc2", f"{block}mlp.fc2", f"{layer}mlp.lin2")
  add_norm("norm", "norm", "model.encoder.layernorm")
  add_layer("decoder_embed", "decoder_embed", "decoder.decoder_embed")
  decoder = "decoder.decoder_pred."
  add_layer("decoder_pred.conv", "decoder_pred.0", f"{decoder}conv", "conv")
  add_norm("decoder_pred.norm", "decoder_pred.1", f"{decoder}layernorm")
  add_layer("decoder_pred.head", "decoder_pred.3", f"{decoder}head", "pointwise")
  return table


@dataclasses.dataclass(frozen=True)
class Conversion:
  """A converted checkpoint."""

  params: Tensors  # arrays under our names, in the checkpoint's dtype; views of the file where possible
  config: SegGPTConfig  # the architecture
  layout: Layout  # layout of the checkpoint's names
  unexpected: tuple[str, ...]  # names in the checkpoint that are not parameters of a SegGPT; they are left out


def from_torch(source: str, tensors: Mapping[str, np.ndarray], hints: Mapping[str, Any]) -> Conversion:
  """Renames and transposes a state dict, after checking that it is a SegGPT's.

  Args:
    source: name of the checkpoint for errors.
    tensors: the state dict, in either layout.
    hints: known attributes of `SegGPTConfig`, which override those inferred from shapes.

  Raises:
    InputError: parameters are missing or have the wrong shape. The message names them.
  """
  # Without the prefixes that DistributedDataParallel and torch.compile add, in any order.
  tensors = {re.sub(r"^((module|_orig_mod)\.)+", "", name): value for name, value in tensors.items()}
  layout: Layout = "hf" if any(name.startswith("model.") for name in tensors) else "baai"
  prefix = "model.encoder.layers." if layout == "hf" else "blocks."
  indices = [re.match(re.escape(prefix) + r"(\d+)\.", name) for name in tensors]
  table = entries(max((int(match[1]) for match in indices if match), default=0) + 1)
  torch_names = {getattr(entry, layout) for entry in table}
  missing, unexpected = sorted(torch_names - tensors.keys()), sorted(tensors.keys() - torch_names)
  if missing:
    raise InputError(
      f"{source}: not a SegGPT checkpoint: {len(missing)} names missing ({_some(missing)}), "
      f"{len(unexpected)} unexpected ({_some(unexpected)})"
    )
  config = _infer_config(source, {entry.name: tensors[getattr(entry, layout)].shape for entry in table}, hints)
  _, expected = parameters.abstract(config)
  params: Tensors = {}
  for entry in table:
    name = getattr(entry, layout)
    shape = entry.to_torch(np.broadcast_to(False, expected[entry.name].shape)).shape
    if tensors[name].shape != shape:
      raise InputError(f"{source}: {name} has shape {tensors[name].shape}, expected {shape}")
    params[entry.name] = entry.to_ours(tensors[name])
  return Conversion(params, config, layout, tuple(unexpected))


def to_torch(params: dict[str, np.ndarray], depth: int, layout: Layout) -> Tensors:
  """Converts our parameters to a state dict in PyTorch's shapes and the layout's names.

  Args:
    params: our parameters. They are removed one by one, so that memory never holds two copies of the network.
    depth: number of blocks.
    layout: layout of the names.

  Returns:
    Contiguous arrays of unchanged dtype.
  """
  return {getattr(e, layout): np.ascontiguousarray(e.to_torch(params.pop(e.name))) for e in entries(depth)}


def _some(names: Iterable[str], count: int = 4) -> str:
  names = list(names)
  return ", ".join(names[:count]) + (", ..." if len(names) > count else "") or "none"


def _infer_config(source: str, shapes: Mapping[str, tuple[int, ...]], hints: Mapping[str, Any]) -> SegGPTConfig:
  """Infers the architecture from PyTorch's shapes under our names."""
  try:
    width, _, patch, _ = shapes["patch_embed.kernel"]
    distances_h, head_dim = shapes["blocks.0.attn.rel_pos_h"]
    distances_w, _ = shapes["blocks.0.attn.rel_pos_w"]
    depth = sum(name.endswith(".norm1.scale") for name in shapes)
    num_taps = shapes["decoder_embed.kernel"][1] // width
    # Taps at equal distances (5, 11, 17, 23 of 24). The first tap needs one merged stream, so the merge is not later.
    taps = tuple((k + 1) * depth // num_taps - 1 for k in range(num_taps))
    inferred = {
      "canvas_size": ((distances_h + 1) // 2 * patch, (distances_w + 1) // 2 * patch),
      "patch_size": patch,
      "posemb_size": round((shapes["pos_embed"][1] - 1) ** 0.5),
      "width": width,
      "depth": depth,
      "num_heads": width // head_dim,
      "mlp_dim": shapes["blocks.0.mlp.fc1.kernel"][0],
      "merge_block": min(2, taps[0]),
      "feature_taps": taps,
      "decoder_dim": shapes["decoder_pred.conv.kernel"][0],
    }
  except (ValueError, IndexError, ZeroDivisionError) as error:
    raise InputError(f"{source}: its shapes are not those of a SegGPT: {error}") from error
  try:
    return SegGPTConfig.from_dict({**inferred, **hints})
  except (ValueError, TypeError, ZeroDivisionError) as error:
    raise InputError(f"{source}: its shapes and configuration are not those of a SegGPT: {error}") from error


def summary(params: Mapping[str, np.ndarray], unexpected: Iterable[str] = ()) -> str:
  """Returns the table that the converter prints.

  Returns:
    Lines with tensors, parameters and dtype of each part of the network, then the number of names left out.
  """
  parts: dict[str, list] = collections.defaultdict(lambda: [0, 0, set()])
  for name, array in params.items():
    for key in (name.split(".")[0], "mapped"):
      parts[key][0] += 1
      parts[key][1] += int(np.prod(array.shape))
      parts[key][2].add(str(array.dtype))
  parts["mapped"] = parts.pop("mapped")  # the total goes last
  rows = [("part", "tensors", "parameters", "dtype")]
  rows += [(part, str(n), f"{size:,}", ", ".join(sorted(dtypes))) for part, (n, size, dtypes) in parts.items()]
  unexpected = list(unexpected)
  rows += [("missing", "0", "", ""), ("unexpected", str(len(unexpected)), "", _some(unexpected) if unexpected else "")]
  return "\n".join(f"{a:<16} {b:>8} {c:>14}  {d}".rstrip() for a, b, c, d in rows)
