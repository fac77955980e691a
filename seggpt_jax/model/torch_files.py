"""PyTorch checkpoints of SegGPT on disk: reading all layouts in use, and writing two of them.

In: a `.pth`/`.pt`/`.bin` pickle, a `.safetensors` file or a Hugging Face directory. Out: a `Conversion`, whose arrays
are views of the memory-mapped file, so nothing is copied until it is written. `write` goes back to PyTorch.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from absl import logging

from seggpt_jax.errors import InputError, one_line
from seggpt_jax.files import expand, parse_json, writing, written_whole
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.model.torch_weights import Conversion, Layout, Tensors, from_torch, to_torch

# Key in files that we write, for values that shapes do not determine (feature taps, mean, ...). Others ignore the key.
CONFIG_KEY = "seggpt_jax_config"
_WRAPPERS = ("model", "model_state_dict", "state_dict")


def read(path: str | os.PathLike) -> Conversion:
  """Reads any SegGPT checkpoint: a pickle, a safetensors file, or a Hugging Face directory.

  Examples:
    >>> found = read("seggpt_vit_large.pth")  # as `seggpt convert seggpt_vit_large.pth weights/large` does
    >>> seggpt_jax.model.weights.save_weights("weights/large", found.params, found.config)

  Raises:
    InputError: the path is not found, cannot be read, is not a SegGPT, or is a pickle whose loading could run code.
  """
  path = Path(expand(path))
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
      shards = list(_read_json(path / index_name, "weight_map").values())
      break
  else:
    shards = [n for n in ("model.safetensors", "pytorch_model.bin") if (path / n).exists()][:1]
  if not shards or not (path / "config.json").exists():
    raise InputError(f"{path}: no config.json with model.safetensors in it, expected a Hugging Face model directory")
  tensors: Tensors = {}
  for shard in shards:
    if not isinstance(shard, str) or Path(shard).name != shard:
      raise InputError(
        f"{path / index_name}: found {str(shard)[:80]!r}, expected the name of a file in the same folder"
      )
  for shard in sorted(set(shards)):
    if not os.path.isfile(path / shard):  # unlike pathlib's, it takes any text
      raise InputError(f"{path}/{shard[:80]}: not found, but {index_name} names it as a file of the same folder")
    tensors.update(_read_file(path / shard)[0])
  return from_torch(str(path), tensors, _hf_hints(_read_json(path / "config.json")))


def _read_json(path: Path, key: str | None = None) -> dict[str, Any]:
  """Reads a JSON object from a file, or the object under one of its keys."""
  try:
    content = parse_json(path.read_bytes())
  except (OSError, ValueError) as error:
    raise InputError(f"{path}: cannot be read as JSON: {error}") from error
  found = content.get(key) if key and isinstance(content, dict) else content
  if not isinstance(found, dict):
    raise InputError(f"{path}: found a {type(found).__name__}, expected an object{f' under {key!r}' if key else ''}")
  return found


def _hf_hints(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the values that shapes do not determine from transformers' config.json, or else those of the release."""
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
  """Reads a state dict, and the configuration stored next to it."""
  if path.suffix == ".safetensors":
    return _read_safetensors(path)
  return _read_pickle(path)


def _read_safetensors(path: Path) -> tuple[Tensors, dict[str, Any]]:
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      hints = parse_json((file.metadata() or {}).get(CONFIG_KEY, "{}"))
    header_size = int.from_bytes(path.open("rb").read(8), "little")
    # Views of a memory map, not the copies of `get_tensor`: a page is read when it is written out, and then dropped.
    header = parse_json(path.open("rb").read(8 + header_size)[8:])
    # Copy-on-write, because PyTorch warns about arrays that are not writable.
    data = np.memmap(path, np.uint8, "c", offset=8 + header_size) if len(header) > 1 else np.zeros(0, np.uint8)
    tensors = {
      name: data[slice(*entry["data_offsets"])].view(_SAFETENSORS_DTYPES[entry["dtype"]]).reshape(entry["shape"])
      for name, entry in header.items()
      if name != "__metadata__"
    }
  except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
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
    import torch  # an optional dependency, needed only for pickles

    return torch
  except ImportError as error:
    raise InputError("PyTorch is not installed; pip install 'seggpt-jax[torch]' to read .pth files") from error


def _read_pickle(path: Path) -> tuple[Tensors, dict[str, Any]]:
  torch = _torch()
  with path.open("rb") as file:
    is_zip = file.read(4) == b"PK\x03\x04"
  if is_zip:
    _check_records(path)
  try:
    with torch.serialization.safe_globals(_harmless_globals()), warnings.catch_warnings():
      warnings.simplefilter("ignore")  # about unreadable pickles; the errors below are clearer
      content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
  except Exception as error:  # the unpickler can raise anything for bytes that are no pickle
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
    logging.warning(
      "%s: PyTorch's format from before 1.6 cannot be memory-mapped, so the file was read as a whole", path
    )
  hints: dict[str, Any] = {}
  if isinstance(content, dict):
    hints = content.get(CONFIG_KEY, {})
    content = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)), content)
  if not isinstance(content, Mapping):
    raise InputError(f"{path}: found a {type(content).__name__}, expected a dictionary of tensors")
  tensors = {
    name: _to_numpy(value, f"{path}: {name}")
    for name, value in content.items()
    if isinstance(name, str) and isinstance(value, torch.Tensor)
  }
  return tensors, _checked_hints(path, hints)


def _check_records(path: Path) -> None:
  """Compares each record of a zip file with its checksum, which PyTorch does not do for memory-mapped files.

  A file whose checksums are all wrong was saved without any, as `torch.serialization.set_crc32_options` allows.

  Raises:
    InputError: some records are not what was written, or the file is no zip file that PyTorch writes.
  """
  wrong, right = [], 0
  try:
    with zipfile.ZipFile(path) as file:
      for record in file.infolist():
        if record.compress_type != zipfile.ZIP_STORED or record.file_size > path.stat().st_size:
          raise InputError(f"{path}: {record.filename}: found a compressed record, expected what torch.save writes")
        try:
          with file.open(record) as content:
            while content.read(2**20):
              pass
          right += record.file_size > 0
        except zipfile.BadZipFile as error:
          wrong.append(f"{record.filename}: {error}")
  except InputError:
    raise
  except (OSError, ValueError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
    raise InputError(
      f"{path}: cannot be read as a PyTorch checkpoint, it is cut short or something else: {one_line(error)[:200]}"
    ) from error
  if wrong and right:
    raise InputError(f"{path}: cannot be read as a PyTorch checkpoint, damaged: {one_line(wrong[0])[:200]}")
  if wrong:
    logging.warning("%s: has no checksums, so damage to it cannot be noticed", path)


def _checked_hints(path: Path, hints: Any) -> dict[str, Any]:
  if not isinstance(hints, dict):
    raise InputError(f"{path}: {CONFIG_KEY}: found a {type(hints).__name__}, expected a dictionary")
  return hints


def _harmless_globals() -> list[Any]:
  """Returns classes that training scripts save with the weights and that cannot run code.

  These are the arguments of a script and NumPy scalars.
  """
  scalar = np.float64(0).__reduce__()[0]
  dtypes = {type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"}
  numpy_1 = (scalar, "numpy.core.multiarray.scalar")
  return [argparse.Namespace, scalar, numpy_1, np.dtype, *dtypes]


def _to_numpy(tensor: Any, where: str) -> np.ndarray:
  """Returns a view of a tensor that is stored as it is.

  Raises:
    InputError: the tensor is sparse, quantized, or larger than what is stored of it, as an expanded one is.
  """
  torch = _torch()
  tensor = tensor.detach()
  if tensor.is_quantized or tensor.layout != torch.strided or tensor.is_complex():
    raise InputError(f"{where}: found a tensor of {tensor.dtype} and {tensor.layout}, expected plain numbers")
  size, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
  if size > stored:
    raise InputError(
      f"{where}: found {list(tensor.shape)} in {stored} bytes, expected {size}, one value for each element"
    )
  if tensor.dtype == torch.bfloat16:
    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
  try:
    return tensor.numpy()
  except (TypeError, RuntimeError) as error:
    raise InputError(f"{where}: found {tensor.dtype}, expected numbers that NumPy has") from error


def write(path: str | os.PathLike, params: dict[str, np.ndarray], config: SegGPTConfig, layout: Layout) -> None:
  """Writes PyTorch weights, which appear under their name only when they are complete.

  Args:
    path: a .pth, .pt or .safetensors file for layout "baai", a directory for layout "hf".
    params: our parameters. They are removed one by one, so that memory never holds two copies of the network.
    config: their architecture.
    layout: layout of the names.

  Raises:
    InputError: the path exists, or its ending does not fit the layout.
  """
  path = Path(expand(path))
  if config.backbone:
    raise InputError(f"{path}: found a network with a backbone, expected a SegGPT: PyTorch's has no such network")
  if path.exists():
    raise InputError(f"{path}: already exists; choose a new path")
  if layout == "baai" and path.suffix not in (".pth", ".pt", ".safetensors"):
    raise InputError(f"{path}: expected a file name ending in .pth, .pt or .safetensors for --to baai")
  if layout == "hf" and path.suffix in (".pth", ".pt", ".safetensors"):
    raise InputError(f"{path}: expected the name of a directory for --to hf")
  tensors = to_torch(params, config.depth, layout)
  with writing(path), written_whole(path) as unfinished:
    if layout == "hf":
      unfinished.mkdir()
      safetensors.numpy.save_file(tensors, unfinished / "model.safetensors", metadata={"format": "pt"})
      (unfinished / "config.json").write_text(json.dumps(_hf_config(config, tensors), indent=2) + "\n")
    elif path.suffix == ".safetensors":
      metadata = {"format": "pt", CONFIG_KEY: json.dumps(config.to_dict())}
      safetensors.numpy.save_file(tensors, unfinished, metadata=metadata)
    else:
      _write_pickle(unfinished, tensors, config)


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
