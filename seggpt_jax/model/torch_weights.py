"""PyTorch SegGPT checkpoints <-> our parameters, in all the layouts that are about.

In: a `.pth`/`.pt`/`.bin` pickle, a `.safetensors` file or a Hugging Face directory, in BAAI's or transformers' names.
Out: parameters under our names as views of the memory-mapped file (nothing is copied until it is written) and the
architecture, inferred from tensor shapes. And back, bit for bit.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import pickle
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from absl import logging

from seggpt_jax.errors import InputError
from seggpt_jax.model import weights
from seggpt_jax.model.config import SegGPTConfig

Layout = Literal["baai", "hf"]
Tensors = dict[str, np.ndarray]
# Key under which a written .pth carries what shapes cannot tell (feature taps, mean, ...); other loaders ignore it.
CONFIG_KEY = "seggpt_jax_config"
WRAPPERS = ("model", "model_state_dict", "state_dict")


class Entry(NamedTuple):
  """One parameter in the three worlds, and how its array turns into ours and back."""

  name: str
  baai: str
  hf: str
  to_ours: Callable[[np.ndarray], np.ndarray]
  to_torch: Callable[[np.ndarray], np.ndarray]


def _same(array: np.ndarray) -> np.ndarray:
  return array


def _transpose(array: np.ndarray) -> np.ndarray:
  return array.T


def _conv_to_ours(array: np.ndarray) -> np.ndarray:
  return array.transpose(2, 3, 1, 0)


def _conv_to_torch(array: np.ndarray) -> np.ndarray:
  return array.transpose(3, 2, 0, 1)


def _patch_to_ours(array: np.ndarray) -> np.ndarray:
  return _conv_to_ours(array).reshape(-1, array.shape[0])


def _patch_to_torch(array: np.ndarray) -> np.ndarray:
  side = round((array.shape[0] / 3) ** 0.5)
  return _conv_to_torch(array.reshape(side, side, 3, -1))


def _pointwise_to_ours(array: np.ndarray) -> np.ndarray:
  return array[:, :, 0, 0].T


def _pointwise_to_torch(array: np.ndarray) -> np.ndarray:
  return array.T[:, :, None, None]


def entries(depth: int) -> list[Entry]:
  """The name table for a SegGPT of the given depth."""
  table: list[Entry] = []

  def add(name, baai, hf, to_ours=_same, to_torch=_same):
    table.append(Entry(name, baai, hf, to_ours, to_torch))

  def add_layer(name, baai, hf, to_ours=_transpose, to_torch=_transpose):
    add(f"{name}.kernel", f"{baai}.weight", f"{hf}.weight", to_ours, to_torch)
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
  add_layer(
    "patch_embed", "patch_embed.proj", f"{embeddings}patch_embeddings.projection", _patch_to_ours, _patch_to_torch
  )
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
  add_layer("decoder_pred.conv", "decoder_pred.0", f"{decoder}conv", _conv_to_ours, _conv_to_torch)
  add_norm("decoder_pred.norm", "decoder_pred.1", f"{decoder}layernorm")
  add_layer("decoder_pred.head", "decoder_pred.3", f"{decoder}head", _pointwise_to_ours, _pointwise_to_torch)
  return table


@dataclasses.dataclass(frozen=True)
class Conversion:
  """What a checkpoint turned into.

  Attributes:
    params: arrays under our names, in the checkpoint's dtype; views of the file where that was possible.
    config: the architecture.
    layout: whose names the checkpoint had.
    unexpected: names in the checkpoint that no parameter of a SegGPT has; they are left behind.
  """

  params: Tensors
  config: SegGPTConfig
  layout: Layout
  unexpected: tuple[str, ...]


def from_torch(source: str, tensors: Mapping[str, np.ndarray], hints: Mapping[str, Any]) -> Conversion:
  """Renames and transposes a state dict, after checking that it is a SegGPT's.

  Args:
    source: what to call the checkpoint in errors.
    tensors: the state dict, in either layout.
    hints: attributes of `SegGPTConfig` that are known, over those inferred from shapes.

  Raises:
    InputError: parameters are missing or have the wrong shape; names them.
  """
  tensors = _strip_wrappers(tensors)
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
  _, expected = weights.abstract(config)
  params: Tensors = {}
  for entry in table:
    name = getattr(entry, layout)
    shape = entry.to_torch(np.broadcast_to(False, expected[entry.name].shape)).shape
    if tensors[name].shape != shape:
      raise InputError(f"{source}: {name} has shape {tensors[name].shape}, expected {shape}")
    params[entry.name] = entry.to_ours(tensors[name])
  return Conversion(params, config, layout, tuple(unexpected))


def to_torch(params: dict[str, np.ndarray], depth: int, layout: Layout) -> Tensors:
  """Our parameters -> a state dict in PyTorch's shapes and the layout's names, contiguous, dtype kept.

  `params` is emptied on the way, so that memory never holds two copies of the network.
  """
  return {getattr(e, layout): np.ascontiguousarray(e.to_torch(params.pop(e.name))) for e in entries(depth)}


def _strip_wrappers(tensors: Mapping[str, np.ndarray]) -> Tensors:
  """Removes what DistributedDataParallel and torch.compile put in front of names, in whatever order."""
  return {re.sub(r"^((module|_orig_mod)\.)+", "", name): value for name, value in tensors.items()}


def _some(names: Iterable[str], count: int = 4) -> str:
  names = list(names)
  return ", ".join(names[:count]) + (", ..." if len(names) > count else "") or "none"


def _infer_config(source: str, shapes: Mapping[str, tuple[int, ...]], hints: Mapping[str, Any]) -> SegGPTConfig:
  """The architecture from the shapes in PyTorch's order, under our names."""
  try:
    width, _, patch, _ = shapes["patch_embed.kernel"]
    distances_h, head_dim = shapes["blocks.0.attn.rel_pos_h"]
    distances_w, _ = shapes["blocks.0.attn.rel_pos_w"]
    depth = sum(name.endswith(".norm1.scale") for name in shapes)
    num_taps = shapes["decoder_embed.kernel"][1] // width
    # Quarter depths (5, 11, 17, 23 of 24), and the merge no later than the first tap, which holds one stream.
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


# ---------------------------------------------------------------------------------------------------------- reading


def read(path: str | os.PathLike) -> Conversion:
  """Reads any SegGPT checkpoint: a pickle, a safetensors file, or a Hugging Face directory.

  Raises:
    InputError: not found, not readable, not a SegGPT, or a pickle that holds more than tensors.
  """
  path = Path(path)
  if not path.exists():
    raise InputError(
      f"{path}: not found, expected a .pth, .pt, .bin or .safetensors file or a Hugging Face model directory"
    )
  if path.is_dir():
    return _read_hf_directory(path)
  tensors, hints = _read_file(path)
  return from_torch(str(path), tensors, hints)


def _read_hf_directory(path: Path) -> Conversion:
  for index_name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
    if (path / index_name).exists():
      shards = sorted(set(_read_json(path / index_name, "weight_map").values()))
      break
  else:
    shards = [n for n in ("model.safetensors", "pytorch_model.bin") if (path / n).exists()][:1]
  if not shards or not (path / "config.json").exists():
    raise InputError(f"{path}: no config.json with model.safetensors in it, expected a Hugging Face model directory")
  tensors: Tensors = {}
  for shard in shards:
    if not (path / shard).exists():
      raise InputError(f"{path / shard}: not found, but {index_name} names it")
    tensors.update(_read_file(path / shard)[0])
  return from_torch(str(path), tensors, _hf_hints(_read_json(path / "config.json")))


def _read_json(path: Path, key: str | None = None) -> dict[str, Any]:
  """The JSON object in a file, or the one under a key of it."""
  try:
    content = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise InputError(f"{path}: cannot be read as JSON: {error}") from error
  found = content.get(key) if key and isinstance(content, dict) else content
  if not isinstance(found, dict):
    raise InputError(f"{path}: found a {type(found).__name__}, expected an object{f' under {key!r}' if key else ''}")
  return found


def _hf_hints(config: Mapping[str, Any]) -> dict[str, Any]:
  """What transformers' config.json knows and shapes do not tell; what it leaves out is as in the release."""
  release = SegGPTConfig()
  return {
    ours: config.get(theirs, getattr(release, ours))
    for theirs, ours in (
      ("merge_index", "merge_block"),
      ("intermediate_hidden_state_indices", "feature_taps"),
      ("drop_path_rate", "drop_path_rate"),
    )
  }


def _read_file(path: Path) -> tuple[Tensors, dict[str, Any]]:
  """A state dict and the configuration hints beside it."""
  if path.suffix == ".safetensors":
    return _read_safetensors(path)
  return _read_pickle(path)


def _read_safetensors(path: Path) -> tuple[Tensors, dict[str, Any]]:
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      hints = json.loads((file.metadata() or {}).get(CONFIG_KEY, "{}"))
    header_size = int.from_bytes(path.open("rb").read(8), "little")
    # Views of a memory map instead of `get_tensor`'s copies: a page is read when it is written out, then dropped.
    header = json.loads(path.open("rb").read(8 + header_size)[8:])
    # Copy-on-write, since PyTorch warns about arrays that cannot be written to.
    data = np.memmap(path, np.uint8, "c", offset=8 + header_size) if len(header) > 1 else np.zeros(0, np.uint8)
    tensors = {
      name: data[slice(*entry["data_offsets"])].view(_SAFETENSORS_DTYPES[entry["dtype"]]).reshape(entry["shape"])
      for name, entry in header.items()
      if name != "__metadata__"
    }
  except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
    raise InputError(f"{path}: cannot be read as safetensors: {error}") from error
  return tensors, _checked_hints(path, hints)


_SAFETENSORS_DTYPES = {
  "F64": np.float64,
  "F32": np.float32,
  "F16": np.float16,
  "BF16": ml_dtypes.bfloat16,
  "I64": np.int64,
  "I32": np.int32,
  "U8": np.uint8,
  "BOOL": np.bool_,
}


def _torch():
  try:
    import torch  # an extra: only pickles need it

    return torch
  except ImportError as error:
    raise InputError(
      "PyTorch is not installed, and .pth files are read and written with it: pip install 'seggpt-jax[torch]'"
    ) from error


def _read_pickle(path: Path) -> tuple[Tensors, dict[str, Any]]:
  torch = _torch()
  with path.open("rb") as file:
    is_zip = file.read(4) == b"PK\x03\x04"
  try:
    with torch.serialization.safe_globals(_harmless_globals()), warnings.catch_warnings():
      warnings.simplefilter("ignore")  # about pickles it cannot read, which the error below says better
      content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
  except Exception as error:  # Bytes that are no pickle make the unpickler fail in any way there is.
    refused = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
    if refused:
      raise InputError(
        f"{path}: refused: loading it would need {refused[1]}, which could run code, expected a dictionary of tensors"
      ) from error
    reason = "" if isinstance(error, pickle.UnpicklingError) else str(error).split("\n")[0].split(". ")[0]
    raise InputError(
      f"{path}: cannot be read as a PyTorch checkpoint, it is cut short or something else "
      f"({type(error).__name__}{reason and ': ' + reason})"
    ) from error
  if not is_zip:
    logging.warning("%s: in PyTorch's format from before 1.6, which cannot be mapped: it was read into memory", path)
  hints: dict[str, Any] = {}
  if isinstance(content, dict):
    hints = content.get(CONFIG_KEY, {})
    content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), content)
  if not isinstance(content, Mapping):
    raise InputError(f"{path}: found a {type(content).__name__}, expected a dictionary of tensors")
  tensors = {name: _to_numpy(value) for name, value in content.items() if isinstance(value, torch.Tensor)}
  return tensors, _checked_hints(path, hints)


def _checked_hints(path: Path, hints: Any) -> dict[str, Any]:
  if not isinstance(hints, dict):
    raise InputError(f"{path}: {CONFIG_KEY}: found a {type(hints).__name__}, expected a dictionary")
  return hints


def _harmless_globals() -> list[Any]:
  """What training scripts like to save beside the weights, and what only holds values: arguments and NumPy scalars."""
  scalar = np.float64(0).__reduce__()[0]
  dtypes = {type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"}
  numpy_1 = (scalar, "numpy.core.multiarray.scalar")
  return [argparse.Namespace, scalar, numpy_1, np.dtype, *dtypes]


def _to_numpy(tensor) -> np.ndarray:
  torch = _torch()
  tensor = tensor.detach()
  if tensor.dtype == torch.bfloat16:
    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
  return tensor.numpy()


# ---------------------------------------------------------------------------------------------------------- writing


def write(path: str | os.PathLike, params: dict[str, np.ndarray], config: SegGPTConfig, layout: Layout) -> None:
  """Writes PyTorch weights: a file for `baai` (.pth, .pt or .safetensors), a directory for `hf`.

  Whatever is written appears under its name only when it is whole. `params` is emptied on the way.

  Raises:
    InputError: the path exists, or its ending does not fit the layout.
  """
  path = Path(path)
  if path.exists():
    raise InputError(f"{path}: found something there already, expected a path that does not exist")
  if layout == "baai" and path.suffix not in (".pth", ".pt", ".safetensors"):
    raise InputError(f"{path}: expected a file name ending in .pth, .pt or .safetensors for --to baai")
  if layout == "hf" and path.suffix in (".pth", ".pt", ".safetensors"):
    raise InputError(f"{path}: expected the name of a directory for --to hf")
  path.parent.mkdir(parents=True, exist_ok=True)
  tensors = to_torch(params, config.depth, layout)
  with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
    whole = Path(scratch) / path.name
    if layout == "hf":
      whole.mkdir()
      safetensors.numpy.save_file(tensors, whole / "model.safetensors", metadata={"format": "pt"})
      (whole / "config.json").write_text(json.dumps(_hf_config(config, tensors), indent=2) + "\n")
    elif path.suffix == ".safetensors":
      metadata = {"format": "pt", CONFIG_KEY: json.dumps(config.to_dict())}
      safetensors.numpy.save_file(tensors, whole, metadata=metadata)
    else:
      _write_pickle(whole, tensors, config)
    os.replace(whole, path)


def _write_pickle(path: Path, tensors: Tensors, config: SegGPTConfig) -> None:
  torch = _torch()

  def to_tensor(array: np.ndarray):
    if array.dtype == ml_dtypes.bfloat16:
      return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)

  torch.save({"model": {n: to_tensor(a) for n, a in tensors.items()}, CONFIG_KEY: config.to_dict()}, path)


def _hf_config(config: SegGPTConfig, tensors: Tensors) -> dict[str, Any]:
  return {
    "architectures": ["SegGptForImageSegmentation"],
    "model_type": "seggpt",
    "hidden_size": config.width,
    "num_hidden_layers": config.depth,
    "num_attention_heads": config.num_heads,
    "mlp_dim": config.mlp_dim,
    "image_size": list(config.canvas_size),
    "patch_size": config.patch_size,
    "pretrain_image_size": config.posemb_size * config.patch_size,
    "drop_path_rate": config.drop_path_rate,
    "decoder_hidden_size": config.decoder_dim,
    "merge_index": config.merge_block,
    "intermediate_hidden_state_indices": list(config.feature_taps),
    "dtype": str(next(iter(tensors.values())).dtype),
  }


def summary(params: Mapping[str, np.ndarray], unexpected: Iterable[str] = ()) -> str:
  """The table the converter prints: tensors, parameters and dtype of each part, then what was left over."""
  parts: dict[str, list] = collections.defaultdict(lambda: [0, 0, set()])
  for name, array in params.items():
    part = ".".join(name.split(".")[:1])
    for key in (part, "mapped"):
      parts[key][0] += 1
      parts[key][1] += int(np.prod(array.shape))
      parts[key][2].add(str(array.dtype))
  parts["mapped"] = parts.pop("mapped")  # the total goes last
  rows = [("part", "tensors", "parameters", "dtype")]
  rows += [(part, str(n), f"{size:,}", ", ".join(sorted(dtypes))) for part, (n, size, dtypes) in parts.items()]
  unexpected = list(unexpected)
  rows += [("missing", "0", "", ""), ("unexpected", str(len(unexpected)), "", _some(unexpected) if unexpected else "")]
  return "\n".join(f"{a:<16} {b:>8} {c:>14}  {d}".rstrip() for a, b, c, d in rows)
