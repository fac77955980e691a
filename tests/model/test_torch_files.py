"""Checkpoints in every layout in use, to JAX and back.

If one of these fails, some user's weights cannot be read, come back changed, or run code while they are read.
"""

import argparse
import json
import os
import pickle
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import SegGptForImageSegmentation

from seggpt_jax.errors import InputError, MachineError
from seggpt_jax.model import parameters, torch_files, torch_weights, weights
from seggpt_jax.model.config import SegGPTConfig
from tests import peers as peers_lib
from tests.model.comparison import assert_same


def baai_state(peers, dtype=torch.float32):
  """Returns the peers' parameters as a BAAI state dict, renamed by the table but not converted to our shapes."""
  theirs = peers.theirs.state_dict()
  return {entry.baai: theirs[entry.hf].to(dtype) for entry in torch_weights.entries(peers.config.depth)}


def plain(config: SegGPTConfig, **changes) -> SegGPTConfig:
  """Returns the architecture that shapes alone determine."""
  num_taps = len(config.feature_taps)
  taps = tuple((k + 1) * config.depth // num_taps - 1 for k in range(num_taps))
  values = {**config.to_dict(), "feature_taps": taps, "merge_block": min(2, taps[0]), **changes}
  return SegGPTConfig.from_dict(values)


def contiguous(params):
  """Returns a contiguous copy on the host."""
  return {name: np.array(value, order="C") for name, value in params.items()}


# ---------------------------------------------------------------------------------------------------------- layouts


def _bare(state):
  return state


def _release(state):
  return {"model": state}


def _fork(state):
  optimizer = {"state": {0: {"step": 7, "exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
  return {"model_state_dict": state, "optimizer_state_dict": optimizer, "epoch": 3, "best_miou": np.float64(0.54)}


def _trained_with_arguments(state):
  return {"model": state, "args": argparse.Namespace(lr=1e-4, epochs=1), "scaler": {"scale": 65536.0}}


def _ddp(state):
  return {"model_state_dict": {f"module.{name}": value for name, value in state.items()}}


def _compiled_ddp(state):
  return {"model": {f"_orig_mod.module.{name}": value for name, value in state.items()}}


def _ordered(state):
  return torch.nn.Module().state_dict().__class__(state)  # OrderedDict with PyTorch's metadata


@pytest.mark.parametrize("wrap", [_bare, _release, _fork, _trained_with_arguments, _ddp, _compiled_ddp, _ordered])
def test_pickle_layouts(square, tmp_path, wrap):
  """Weights are found inside anything that training scripts put around them.

  Reference: the parameters taken from transformers directly, bit for bit.
  """
  path = tmp_path / "weights.pth"
  torch.save(wrap(baai_state(square)), path)
  conversion = torch_files.read(path)
  assert (conversion.layout, conversion.unexpected) == ("baai", ())
  assert conversion.config == plain(square.config)
  assert_same(contiguous(conversion.params), square.params)


def test_pickle_from_before_pytorch_1_6(square, tmp_path, caplog):
  """Old files still convert, and a warning explains that they take more memory."""
  path = tmp_path / "old.pth"
  torch.save({"model": baai_state(square)}, path, _use_new_zipfile_serialization=False)
  assert_same(contiguous(torch_files.read(path).params), square.params)
  assert "before 1.6" in caplog.text


def test_safetensors_file(square, tmp_path):
  """A file without any configuration converts, because shapes determine the architecture."""
  path = tmp_path / "weights.safetensors"
  safetensors.torch.save_file({k: v.contiguous() for k, v in baai_state(square).items()}, path)
  conversion = torch_files.read(path)
  assert conversion.config == plain(square.config)
  assert_same(contiguous(conversion.params), square.params)


@pytest.mark.parametrize("shard_size", ["5GB", "100KB"])
def test_transformers_directory(peers, tmp_path, shard_size, capfd):
  """Directories of save_pretrained convert, in one file or in shards, with taps and merge block from config.json."""
  peers.theirs.save_pretrained(tmp_path / "hf", max_shard_size=shard_size)
  shards = len(list((tmp_path / "hf").glob("*.safetensors")))
  assert shards == 1 if shard_size == "5GB" else shards > 1
  conversion = torch_files.read(tmp_path / "hf")
  assert (conversion.layout, conversion.config, conversion.unexpected) == ("hf", peers.config, ())
  assert_same(contiguous(conversion.params), peers.params)


def test_architecture_from_shapes(peers):
  """A SegGPT of any size converts; depth and taps need no configuration.

  Reference: the arguments that transformers was built with.
  """
  tensors = {name: value.numpy() for name, value in baai_state(peers).items()}
  config = torch_weights.from_torch("test", tensors, {}).config
  theirs = peers.theirs.config
  assert config == plain(
    SegGPTConfig(
      canvas_size=tuple(theirs.image_size),
      patch_size=theirs.patch_size,
      posemb_size=theirs.pretrain_image_size // theirs.patch_size,
      width=theirs.hidden_size,
      depth=theirs.num_hidden_layers,
      num_heads=theirs.num_attention_heads,
      mlp_dim=theirs.mlp_dim,
      merge_block=0,
      feature_taps=tuple(theirs.intermediate_hidden_state_indices),
      decoder_dim=theirs.decoder_hidden_size,
    )
  )


def test_release_is_inferred_in_full():
  """The released checkpoint's shapes give exactly the released architecture, with taps 5, 11, 17, 23 and merge block 2.

  The tensors are broadcast from one zero, so they need no memory.
  """
  config = SegGPTConfig()
  _, shapes = parameters.abstract(config)
  tensors = {
    entry.baai: np.broadcast_to(
      np.float32(0), entry.to_torch(np.broadcast_to(np.int8(0), shapes[entry.name].shape)).shape
    )
    for entry in torch_weights.entries(config.depth)
  }
  assert tensors["blocks.23.attn.rel_pos_h"].shape == (111, 64)
  assert sum(tensor.size for tensor in tensors.values()) == pytest.approx(370.7e6, abs=5e4)
  assert torch_weights.from_torch("release", tensors, {}).config == config


# ------------------------------------------------------------------------------------------------- there and back


DTYPES = [torch.float32, torch.bfloat16]


def through_disk(state, path):
  torch.save({"model": state}, path)
  return torch_files.read(path)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_baai_and_back(square, tmp_path, dtype, suffix):
  """A fine-tuned model goes baai -> ours -> baai unchanged, bit for bit and with the same dtype."""
  state = baai_state(square, dtype)
  conversion = through_disk(state, tmp_path / "in.pth")
  torch_files.write(tmp_path / f"out{suffix}", conversion.params, conversion.config, "baai")
  if suffix == ".pth":
    back = torch.load(tmp_path / "out.pth", weights_only=True)["model"]
  else:
    back = safetensors.torch.load_file(tmp_path / "out.safetensors")
  assert back.keys() == state.keys()
  assert all(back[name].dtype == dtype and torch.equal(back[name], state[name]) for name in state)
  assert torch_files.read(tmp_path / f"out{suffix}").config == conversion.config


@pytest.mark.parametrize("dtype", DTYPES)
def test_transformers_and_back(peers, tmp_path, dtype):
  """After hf -> ours -> hf, from_pretrained loads a model that predicts the same, with the same taps and merge block.

  Reference: the original model. Parameters bit for bit, colors within 1e-6 in float32.
  """
  theirs = SegGptForImageSegmentation(peers.theirs.config).eval()
  theirs.load_state_dict(peers.theirs.state_dict())
  theirs.to(dtype).save_pretrained(tmp_path / "in")
  conversion = torch_files.read(tmp_path / "in")
  torch_files.write(tmp_path / "out", conversion.params, conversion.config, "hf")
  back, report = SegGptForImageSegmentation.from_pretrained(tmp_path / "out", dtype="auto", output_loading_info=True)
  assert not any(report.values()), report
  wanted = theirs.state_dict()
  assert all(value.dtype == dtype and torch.equal(value, wanted[name]) for name, value in back.state_dict().items())
  if dtype == torch.float32:
    inputs = peers_lib.canvases(peers.config, batch=1)
    with torch.no_grad():
      before, after = (peers_lib.colors(peers_lib.call_theirs(m, *inputs)) for m in (theirs, back.eval()))
    np.testing.assert_allclose(after, before, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_baai_to_transformers_to_baai(square, tmp_path, dtype):
  """baai -> ours -> hf -> ours -> baai changes nothing: no two entries of the name table are swapped."""
  state = baai_state(square, dtype)
  conversion = through_disk(state, tmp_path / "in.pth")
  torch_files.write(tmp_path / "hf", conversion.params, conversion.config, "hf")
  again = torch_files.read(tmp_path / "hf")
  assert again.config == conversion.config
  torch_files.write(tmp_path / "out.pth", again.params, again.config, "baai")
  back = torch.load(tmp_path / "out.pth", weights_only=True)["model"]
  assert all(back[name].dtype == dtype and torch.equal(back[name], state[name]) for name in state)


def test_what_shapes_cannot_tell_survives(square, tmp_path):
  """Feature taps, merge block, drop path and image mean of an unusual model survive in files that we write."""
  config = SegGPTConfig.from_dict({**square.config.to_dict(), "drop_path_rate": 0.25, "image_mean": [0.1, 0.2, 0.3]})
  assert config != plain(config, merge_block=0)
  for name in ("w.pth", "w.safetensors"):
    torch_files.write(tmp_path / name, contiguous(square.params), config, "baai")
    assert torch_files.read(tmp_path / name).config == config


def test_loaded_model_predicts_as_transformers(square, tmp_path):
  """A user's whole path: file, converter, load_model, colors. Float32, 1e-4 where colors are O(1)."""
  torch.save({"model": baai_state(square)}, tmp_path / "in.pth")
  conversion = torch_files.read(tmp_path / "in.pth")
  weights.save_weights(tmp_path / "w", conversion.params, square.config)
  inputs = peers_lib.canvases(square.config, batch=1)
  _graph, params = parameters.split(weights.load_model(tmp_path / "w"))
  colors = square.jitted()(params, *map(jnp.asarray, inputs))
  with torch.no_grad():
    wanted = peers_lib.colors(peers_lib.call_theirs(square.theirs, *inputs, embedding_type="semantic"))
  np.testing.assert_allclose(colors, wanted, atol=1e-4, rtol=0)


# ------------------------------------------------------------------------------------------------------- refusals


def refused(path) -> str:
  """Returns the message that explains why a checkpoint was refused."""
  with pytest.raises(InputError) as error:
    torch_files.read(path)
  assert str(path) in str(error.value)
  return str(error.value)


def test_missing_names_are_named(square, tmp_path):
  """Missing parameters are never replaced by zeros."""
  state = baai_state(square)
  del state["blocks.3.attn.rel_pos_w"], state["norm.bias"]
  state["head.weight"] = torch.zeros(2)
  torch.save(state, tmp_path / "w.pth")
  message = refused(tmp_path / "w.pth")
  assert "2 names missing (blocks.3.attn.rel_pos_w, norm.bias)" in message
  assert "1 unexpected (head.weight)" in message


def test_another_network_is_refused(tmp_path):
  """A ResNet's weights are refused with the names that were expected and found."""
  torch.save({"layer1.0.conv1.weight": torch.zeros(2, 2), "blocks.x.y": torch.zeros(1)}, tmp_path / "w.pth")
  assert "not a SegGPT checkpoint" in refused(tmp_path / "w.pth")
  torch.save({}, tmp_path / "empty.pth")
  assert "names missing" in refused(tmp_path / "empty.pth")


def test_unexpected_names_are_left_out_and_reported(square, tmp_path):
  """A fork's additional head is left out, and the summary names it."""
  state = {**baai_state(square), "extra_head.weight": torch.zeros(3, 3)}
  conversion = through_disk(state, tmp_path / "w.pth")
  assert conversion.unexpected == ("extra_head.weight",)
  assert conversion.params.keys() == square.params.keys()
  table = torch_weights.summary(conversion.params, conversion.unexpected)
  assert table.splitlines()[-1].split() == ["unexpected", "1", "extra_head.weight"]
  assert f"{sum(p.size for p in square.params.values()):,}" in table


@pytest.mark.parametrize(
  ("name", "shape"),
  [
    ("blocks.2.mlp.fc1.weight", (96, 47)),
    ("blocks.1.attn.rel_pos_h", (13, 12)),
    ("blocks.0.attn.rel_pos_h", (14, 12)),
    ("blocks.0.attn.rel_pos_h", (15, 10)),
    ("blocks.0.attn.rel_pos_w", (7, 0)),
    ("pos_embed", (1, 12, 48)),
    ("pos_embed", (48,)),
    ("decoder_embed.weight", (512, 20)),
    ("decoder_pred.0.weight", (8, 8)),
    ("patch_embed.proj.weight", (48, 3, 8)),
    ("patch_embed.proj.weight", (48, 3, 8, 4)),
    ("norm.weight", ()),
  ],
)
def test_wrong_shapes_are_refused(square, tmp_path, name, shape):
  """A tensor of any wrong shape is refused in one line and never reshaped."""
  state = {**baai_state(square), name: torch.zeros(shape)}
  torch.save(state, tmp_path / "w.pth")
  assert "shape" in refused(tmp_path / "w.pth")


def test_wrong_shape_is_named_in_the_checkpoint_s_terms(square, tmp_path):
  """The message has the name and shape that the user sees in PyTorch, not ours."""
  torch.save({**baai_state(square), "blocks.2.mlp.fc1.weight": torch.zeros(96, 47)}, tmp_path / "w.pth")
  assert "blocks.2.mlp.fc1.weight has shape (96, 47), expected (96, 48)" in refused(tmp_path / "w.pth")


class RunsCode:
  """Content of a malicious pickle: unpickling it calls os.system."""

  def __init__(self, marker):
    self.marker = marker

  def __reduce__(self):
    return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("kind", ["zip", "old", "pickle", "pickle 2"])
def test_code_in_a_pickle_does_not_run(square, tmp_path, kind):
  """A checkpoint from the internet cannot run code: it is refused before anything in it runs."""
  marker, path = tmp_path / "marker", tmp_path / "evil.pth"
  content = {"model": baai_state(square), "extra": RunsCode(marker)}
  if kind.startswith("pickle"):
    path.write_bytes(pickle.dumps(RunsCode(marker), protocol=2 if kind == "pickle 2" else None))
  else:
    torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
  message = refused(path)
  assert kind == "pickle" or "refused: loading it would need posix.system, which could run code" in message
  assert not marker.exists()
  pickle.loads(pickle.dumps(RunsCode(marker)))  # the bait itself works
  assert marker.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", ["cut short", "text", "empty"])
def test_broken_files(square, tmp_path, suffix, kind):
  """A broken download is reported as unreadable, in one line."""
  path = tmp_path / f"w{suffix}"
  torch_files.write(path, contiguous(square.params), square.config, "baai")
  whole = path.read_bytes()
  path.write_bytes({"cut short": whole[: len(whole) // 2], "text": b"hello, no weights here\n" * 9, "empty": b""}[kind])
  assert "cannot be read as" in refused(path)
  if suffix == ".pth" and kind == "cut short":
    torch.save({"model": baai_state(square)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-5000])
    assert "cut short" in refused(path)


def test_a_list_is_no_checkpoint(tmp_path):
  torch.save([1, 2], tmp_path / "w.pth")
  assert "found a list, expected a dictionary of tensors" in refused(tmp_path / "w.pth")


def test_unknown_configuration_is_named(square, tmp_path):
  """A file of a newer version is refused with the name of the unknown key."""
  torch.save({"model": baai_state(square), torch_files.CONFIG_KEY: {"windows": 3}}, tmp_path / "w.pth")
  assert "unknown key 'windows'" in refused(tmp_path / "w.pth")
  torch.save({"model": baai_state(square), torch_files.CONFIG_KEY: 3}, tmp_path / "w.pth")
  assert f"{torch_files.CONFIG_KEY}: found a int" in refused(tmp_path / "w.pth")


def test_broken_transformers_directories(square, tmp_path):
  """A directory with a missing or broken file is refused with the name of that file."""
  whole = tmp_path / "whole"
  square.theirs.save_pretrained(whole, max_shard_size="100KB")
  index = "model.safetensors.index.json"

  def broken(name, change):
    path = tmp_path / name
    shutil.copytree(whole, path)
    change(path)
    return refused(path)

  shard = sorted(whole.glob("*.safetensors"))[1].name
  message = broken("shard", lambda p: (p / shard).unlink())
  assert f"{shard}: not found" in message
  assert "config.json" in broken("config", lambda p: (p / "config.json").unlink())
  assert "config.json: cannot be read as JSON" in broken("json", lambda p: (p / "config.json").write_text("{"))
  assert "config.json: found a list" in broken("list", lambda p: (p / "config.json").write_text("[]"))
  assert f"{index}: cannot be read as JSON" in broken("index", lambda p: (p / index).write_text("no"))
  assert f"{index}: found a NoneType, expected an object under 'weight_map'" in broken(
    "map", lambda p: (p / index).write_text("{}")
  )

  def taps(path, value):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "intermediate_hidden_state_indices": value}))

  assert "feature_taps" in broken("taps", lambda p: taps(p, [2, 3, 4, 6]))
  assert "configuration" in broken("no_taps", lambda p: taps(p, []))


def test_nothing_half_written(square, tmp_path, monkeypatch):
  """A full disk leaves nothing behind, neither under the name of the result nor next to it."""

  def full(*args, **kwargs):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(torch_files.safetensors.numpy, "save_file", full)
  with pytest.raises(MachineError, match="hf: the disk is full; make room"):
    torch_files.write(tmp_path / "hf", contiguous(square.params), square.config, "hf")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("name", "layout", "message"),
  [("w.txt", "baai", "ending in .pth"), ("w.pth", "hf", "name of a directory"), ("", "hf", "already exists")],
)
def test_unfit_output(square, tmp_path, name, layout, message):
  """An output name that does not fit is refused before any work."""
  with pytest.raises(InputError, match=message):
    torch_files.write(tmp_path / name, contiguous(square.params), square.config, layout)
