"""Damaged weights, runs, configurations and flags end in the right value or in one line.

`benchmarks/fuzz.py` tries more.
"""

import json
import math
import time
import zipfile

import numpy as np
import pytest

from benchmarks.fuzz_targets import attempt, model, mutation
from benchmarks.nano import NANO
from seggpt_jax.model import digests, torch_files, weights
from seggpt_jax.model.adapter_files import load_adapter
from seggpt_jax.training import resume
from seggpt_jax.training.monitor import _drop_lines_after, read_metrics
from tests.faults.test_damaged_files import refused

_SECONDS = 5
# Tries take from a millisecond (configurations) to a third of a second (runs).
_TRIES = dict.fromkeys(model.TARGETS, 10) | {"configuration": 200, "run": 1, "run without digests": 5}
_TRIES |= {"adapter": 3, "adapter without digests": 5, "metadata of weights": 20}
_TRIES |= dict.fromkeys((".pth", "pickle with a program", ".safetensors", "weights"), 40)


@pytest.mark.parametrize("name", model.TARGETS)
def test_mutated_files_are_read_or_refused_in_one_line(name, tmp_path):
  target = model.TARGETS[name](tmp_path)
  target.read()
  for number in range(_TRIES[name]):
    start = time.process_time()
    outcome = attempt(tmp_path, target, *mutation(target, name, 0, number))
    assert outcome.what in ("read", "refused"), f"try {number}: {outcome.error}"
    assert time.process_time() - start < _SECONDS, number


# -------------------------------------------------------------------------------------- what fuzzing has found, by kind


@pytest.fixture
def old_weights(tmp_path):
  """A weights directory without digests."""
  target = model.TARGETS["weights without digests"](tmp_path)
  assert f"w/{digests.FILE}" not in target.seeds
  return tmp_path / "w"


@pytest.mark.parametrize("metadata", [3, {"tree_metadata": 3}, {"tree_metadata": {"a": "b"}}, [], None])
def test_metadata_of_another_type_is_refused(old_weights, metadata, capfd):
  (old_weights / "params/_METADATA").write_text(json.dumps(metadata))
  refused("params: cannot be read as weights, cut short or damaged", lambda: weights.load_params(old_weights))
  assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("config", [[], ["depth"], 3, None, {"width": [[]]}])
def test_an_architecture_of_another_type_is_refused(old_weights, config):
  (old_weights / "config/metadata").write_text(json.dumps(config))
  refused("config/metadata: cannot be read as a SegGPT configuration", lambda: weights.load_config(old_weights))


def test_a_flipped_bit_of_a_pth_file_is_noticed_by_its_checksum(tmp_path):
  """PyTorch itself reads it as other weights where the file is memory-mapped."""
  target = model.TARGETS[".pth"](tmp_path)
  content = bytearray(target.seeds["a.pth"])
  content[len(content) // 2] ^= 1
  (tmp_path / "a.pth").write_bytes(content)
  refused("a.pth: cannot be read as a PyTorch checkpoint, damaged: .*Bad CRC-32", lambda: target.read())


def test_a_pth_file_without_checksums_is_read_and_one_with_compressed_records_is_not(tmp_path):
  torch = pytest.importorskip("torch")
  target = model.TARGETS[".pth"](tmp_path)
  content = torch.load(tmp_path / "a.pth", weights_only=True)
  torch.serialization.set_crc32_options(False)
  try:
    torch.save(content, tmp_path / "a.pth")
  finally:
    torch.serialization.set_crc32_options(True)
  target.read()
  with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as file:
    file.writestr("a/data.pkl", bytes(10**7))
  refused("a.pth: a/data.pkl: found a compressed record", target.read)


def test_an_index_of_shards_of_another_type_is_refused(tmp_path):
  model.TARGETS["Hugging Face folder"](tmp_path)
  for shard in ([], {}, None, "x" * 5000, "a\0b", ".", ""):
    index = {"weight_map": {"a": shard, "b": "model.safetensors"}}
    (tmp_path / "hf/model.safetensors.index.json").write_text(json.dumps(index))
    refused("index.json.* same folder", lambda: torch_files.read(tmp_path / "hf"))


def test_an_adapter_that_is_not_finite_is_refused(tmp_path):
  """Its masks would be empty without a reason."""
  import jax

  from seggpt_jax.model.adapter_files import StoredAdapter
  from seggpt_jax.model.adapters import LoRA
  from seggpt_jax.training.checkpoints import Checkpoints
  from seggpt_jax.training.step import TrainState

  fresh = LoRA(rank=1).init(model._expected(), NANO.canvas_size, jax.random.key(0))
  params = {name: np.full(value.shape, np.nan, np.float32) for name, value in fresh.items()}
  checkpoints = Checkpoints(tmp_path, NANO, 1, adapter=StoredAdapter(LoRA(rank=1), {}, NANO, "f", "base", 2).describe())
  checkpoints.save_best(TrainState(np.int32(7), params, {}, {}))
  checkpoints.close()
  refused("values that are not finite", lambda: load_adapter(tmp_path))


@pytest.mark.parametrize(
  ("change", "match"),
  [
    ({"data": 3}, "config.json: data: found 3, expected an object"),
    ({"num_steps": "many"}, "config.json: num_steps: found 'many', expected an integer"),
    ({"data": {"zoom": 99.0}}, "config.json: data.zoom: found 99.0, expected -1 to 8"),
    ({"optim": {"peak": math.nan}}, "config.json: optim.peak: found nan, expected a finite number"),
  ],
)
def test_the_configuration_of_another_program_is_refused(tmp_path, change, match):
  (tmp_path / "checkpoints/1").mkdir(parents=True)
  config = model.nano.get_config()
  (tmp_path / "config.json").write_text(json.dumps({**json.loads(json.dumps(config.to_dict())), **change}))

  def start():
    resume.changed_keys(tmp_path, resume.keep_pairs(tmp_path, config))

  refused(match, start)


def test_nested_garbage_in_a_configuration_is_passed_over(tmp_path):
  (tmp_path / "checkpoints/1").mkdir(parents=True)
  config = model.nano.get_config()
  deep = {}
  for _ in range(300):
    deep = {"a": deep}
  (tmp_path / "config.json").write_text(json.dumps(json.loads(json.dumps(config.to_dict())) | {"garbage": deep}))
  assert resume.changed_keys(tmp_path, resume.keep_pairs(tmp_path, config)) == []


def test_lines_of_a_log_of_another_type_are_left_out(tmp_path):
  path = tmp_path / "metrics.jsonl"
  lines = ["[]", "3", "null", '{"step": [], "split": "val"}', '{"step": 1, "split": {}, "loss": "x", "miou": NaN}']
  path.write_text("\n".join([*lines, '{"step": 2, "split": "val", "loss": 0.5}', '{"step": "a"}', "\0"]) + "\n")
  assert read_metrics(path) == {"val": {"loss": [(2, 0.5)]}}
  _drop_lines_after(path, 5)
  assert '"loss": 0.5' in path.read_text()


def test_a_deep_architecture_is_compared_with_the_weights_before_it_is_built(old_weights):
  """A thousand blocks would take seconds to build."""
  path = old_weights / "config/metadata"
  path.write_text(json.dumps({**json.loads(path.read_text()), "depth": 1000}))
  refused("found parameters of 2 blocks, expected depth = 1000", lambda: weights.load_params(old_weights))


def test_a_checkpoint_with_garbled_times_hides_no_other(tmp_path):
  """Orbax would list no step at all."""
  for place, name in enumerate(("run", "run without digests")):
    target = model.TARGETS[name](tmp_path / str(place))
    for content in ('""', '{"custom_metadata": "x"}', '{"commit_timestamp_nsecs": "x"}', "[", ""):
      (tmp_path / str(place) / "run/checkpoints/4/_CHECKPOINT_METADATA").write_text(content)
      target.read()


def test_a_checkpoint_with_progress_of_another_type_is_passed_over(tmp_path):
  """Its digests are gone too, as after a kill."""
  target = model.TARGETS["run without digests"](tmp_path)
  for progress in ({"best_miou": "high"}, {"best_miou": 0.5, "since_best": []}, [], None):
    (tmp_path / "run/checkpoints/4/progress/metadata").write_text(json.dumps(progress))
    target.read()
