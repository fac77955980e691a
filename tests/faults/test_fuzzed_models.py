"""Damaged weights, runs, configurations and flags end in the right value or in one line; a longer form is benchmarks.

Each try changes one file of a target in `benchmarks.fuzz_targets.model` by bytes or, for JSON, by values.
"""

import copy
import json
import math
import random
import time

import numpy as np
import pytest

from benchmarks.fuzz_targets import model
from benchmarks.nano import NANO
from seggpt_jax.errors import InputError
from seggpt_jax.model import digests, torch_files, weights
from seggpt_jax.model.adapter_files import load_adapter
from seggpt_jax.training import resume
from seggpt_jax.training.curves import read_metrics
from seggpt_jax.training.monitor import _drop_lines_after
from tests.faults.test_damaged_files import refused

_SECONDS = 5
_VALUES = (
  *(None, True, -1, 0, 1e308, math.nan, math.inf, 2**70, 10**6, 1e-9, "", "x", "\0", "a\nb", "../../x", "/etc", "~"),
  *("x" * 300, "\ud800", [], ["a"], [[1]], [1, 2, 3], [math.nan] * 3, {}, {"a": 1}, [[[[]]]], "nan", "1,2,4"),
)
# Tries take from a millisecond (configurations) to a third of a second (runs).
_TRIES = dict.fromkeys(model.TARGETS, 10) | {"configuration": 200, "run": 1, "run without digests": 5}
_TRIES |= {"adapter": 3, "adapter without digests": 5, "metadata of weights": 20}
_TRIES |= dict.fromkeys((".pth", "pickle with a program", ".safetensors", "weights"), 40)


def places(value, path=()):
  """Yields the path to each value of a JSON value but the outermost."""
  inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
  for key, each in inner:
    yield (*path, key)
    yield from places(each, (*path, key))


def mutate_values(data, draw):
  """Replaces, deletes or repeats values of a JSON text; None for another text."""
  try:
    value = json.loads(data)
  except ValueError:
    return None
  for _ in range(draw.randint(1, 2)):
    found = list(places(value))
    if not found:
      break
    *path, last = draw.choice(found)
    inner = value
    for key in path:
      inner = inner[key]
    if draw.random() < 0.15:
      del inner[last]
    else:
      inner[last] = copy.deepcopy(draw.choice(_VALUES))
  return json.dumps(value).encode()


def mutate_bytes(data, draw):
  """Replaces, cuts out, repeats and cuts off bytes."""
  data = bytearray(data)
  for _ in range(draw.randint(1, 4)):
    place = draw.randrange(min(len(data), 300 if draw.random() < 0.6 else len(data)) or 1)
    kind, count = draw.randrange(4), draw.randint(1, 30)
    if kind == 0:
      data[place : place + 1] = bytes([draw.randrange(256)])
    elif kind == 1:
      del data[place : place + count]
    elif kind == 2:
      data[place:place] = data[place : place + count]
    else:
      data[place : place + 4] = draw.choice((b"\xff\xff\xff\xff", bytes(4), b"\xff\xff\xff\x7f"))
  return bytes(data)


@pytest.mark.parametrize("name", model.TARGETS)
def test_whatever_is_in_a_file_it_is_read_or_refused_in_one_line(name, tmp_path):
  target = model.TARGETS[name](tmp_path)
  target.read()
  for seed in range(_TRIES[name]):
    draw = random.Random(seed)
    path = draw.choice(sorted(target.seeds))
    content = mutate_values(target.seeds[path], draw) if target.structured and draw.random() < 0.7 else None
    (tmp_path / path).write_bytes(mutate_bytes(target.seeds[path], draw) if content is None else content)
    start = time.process_time()
    try:
      target.read()
    except InputError as error:
      assert str(error) and "\n" not in str(error)
    assert time.process_time() - start < _SECONDS, (seed, path)
    (tmp_path / path).write_bytes(target.seeds[path])


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


def test_an_index_of_shards_of_another_type_is_refused(tmp_path):
  model.TARGETS["Hugging Face folder"](tmp_path)
  for shard in ([], {}, None, "x" * 5000, "a\0b", ".", ""):
    index = {"weight_map": {"a": shard, "b": "model.safetensors"}}
    (tmp_path / "hf/model.safetensors.index.json").write_text(json.dumps(index))
    refused("index.json: found .*same folder", lambda: torch_files.read(tmp_path / "hf"))


def test_an_adapter_that_is_not_finite_is_refused(tmp_path):
  """Its masks would be empty without a reason."""
  import jax

  from seggpt_jax.model.adapter_files import describe_adapter
  from seggpt_jax.model.adapters import LoRA
  from seggpt_jax.training.checkpoints import Checkpoints
  from seggpt_jax.training.step import TrainState

  fresh = LoRA(rank=1).init(model._expected(), NANO.canvas_size, jax.random.key(0))
  params = {name: np.full(value.shape, np.nan, np.float32) for name, value in fresh.items()}
  checkpoints = Checkpoints(tmp_path, NANO, 1, adapter=describe_adapter(LoRA(rank=1), NANO, "f", "base", 2))
  checkpoints.save_best(TrainState(np.int32(7), params, {}, {}))
  checkpoints.close()
  refused("values that are not finite", lambda: load_adapter(tmp_path))


@pytest.mark.parametrize(
  ("change", "match"),
  [
    ({"data": 3}, "config.json: data: found 3, expected an object"),
    ({"num_steps": "many"}, "config.json: num_steps: found 'many', expected a whole number"),
    ({"data": {"zoom": 99.0}}, "config.json: data.zoom: found 99.0, expected -1 to 8"),
    ({"data": {"coarse_classes": [[]]}}, "config.json: data.coarse_classes: found"),
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


def test_a_checkpoint_with_progress_of_another_type_is_passed_over(tmp_path):
  """Its digests are gone too, as after a kill."""
  target = model.TARGETS["run without digests"](tmp_path)
  for progress in ({"best_miou": "high"}, {"best_miou": 0.5, "since_best": []}, [], None):
    (tmp_path / "run/checkpoints/4/progress/metadata").write_text(json.dumps(progress))
    target.read()
