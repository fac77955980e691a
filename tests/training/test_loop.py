"""Whole runs on real files: they learn, resume exactly, and write the files that the contracts promise."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from PIL import Image

from seggpt_jax.errors import InputError
from seggpt_jax.model import adapter_files, parameters, weights
from seggpt_jax.model.config import VARIANTS, SegGPTConfig
from seggpt_jax.model.seggpt import SegGPT
from seggpt_jax.synthetic.boards import write_boards
from seggpt_jax.training import loop, setup
from seggpt_jax.training.config import default_config
from seggpt_jax.training.step_recorder import StepRecorder

SMALL = SegGPTConfig(
  canvas_size=(64, 32),
  patch_size=8,
  posemb_size=4,
  width=32,
  depth=3,
  num_heads=2,
  mlp_dim=64,
  merge_block=0,
  feature_taps=(0, 2),
  decoder_dim=8,
)


@pytest.fixture(scope="module")
def boards(tmp_path_factory):
  directory = tmp_path_factory.mktemp("data") / "boards"
  write_boards(directory, num_train=24, num_val=10, seed=0, size=64, labels="kinds")
  return directory


@pytest.fixture(scope="module", autouse=True)
def small_test():
  """Has two devices, and the variant `small_test`."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, "device_count", lambda: 2)
    patch.setitem(VARIANTS, "small_test", SMALL)
    yield


@pytest.fixture(scope="module")
def finished(boards, tmp_path_factory):
  """A finished run of `config`, and what it returned."""
  workdir = tmp_path_factory.mktemp("finished") / "run"
  return workdir, loop.train(make_config(boards), workdir)


@pytest.fixture
def config(boards):
  return make_config(boards)


@pytest.fixture
def workdir(finished, tmp_path):
  """A copy of the finished run."""
  return Path(shutil.copytree(finished[0], tmp_path / "run"))


def make_config(boards):
  """Twelve steps of eight pairs on two devices, with drop path and a checkpoint after every four."""
  config = default_config()
  config.num_steps = 12
  config.batch_size = 8
  config.model.variant = "small_test"
  config.data.path = str(boards)
  config.data.threshold = 0  # one class of all kinds of defects
  config.data.resize = 40
  config.data.blur = 0.0
  config.optim.peak = 1e-3
  config.optim.first_cycle = 10
  config.optim.warmup = 2
  config.log_every = 2
  config.eval_every = 6
  config.eval_pairs = -1
  config.checkpoint_every = 4
  return config


def lines(workdir, split):
  return [line for line in map(json.loads, (workdir / "metrics.jsonl").open()) if line["split"] == split]


def start_from(config, path):
  """Starts from weights instead of a random network of a named variant."""
  config.model.init_from, config.model.variant = str(path), "vit_large"


def newest_params(workdir):
  steps = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
  return steps, weights.load_params(workdir / "checkpoints" / str(steps[-1]))


def test_a_run_leaves_what_the_contract_promises(config, finished):
  workdir, result = finished
  assert [line["step"] for line in lines(workdir, "train")] == [2, 4, 6, 8, 10, 12]
  assert lines(workdir, "train")[0].keys() == {
    *("step", "split", "loss", "miou", "lr", "pairs_per_second"),
    *("gradient_norm", "data_wait", "memory_gb"),
  }
  assert [line["step"] for line in lines(workdir, "val")] == [6, 12]
  assert lines(workdir, "val")[-1]["miou"] == pytest.approx(result["miou"], rel=1e-5)
  assert json.loads((workdir / "config.json").read_text())["data"]["path"] == config.data.path
  assert {path.name for path in (workdir / "panels").iterdir()} == {
    f"{split}_{step:07d}.png" for split in ("train", "val") for step in (6, 12)
  }
  assert list(workdir.glob("events*")) and Image.open(workdir / "curves.png").width > 1000
  steps, params = newest_params(workdir)
  assert steps == [8, 12]
  # The public functions load the same weights from the run, its step directory and its best.
  image = jnp.zeros((1, 64, 32, 3))
  mask = jnp.ones((1, 8, 4), bool)
  predict = nnx.jit(SegGPT.__call__)
  model = weights.load_model(workdir / "checkpoints" / "12")
  graph, _ = parameters.abstract(weights.load_config(workdir))
  expected = predict(parameters.merge(graph, params), image, image, mask)
  np.testing.assert_array_equal(predict(model, image, image, mask), expected)
  assert weights.load_model(workdir / "best").config == weights.load_config(workdir)


def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(config, finished, tmp_path):
  uninterrupted, _ = finished
  # Killed after step 7: the newest checkpoint is that of step 4.
  stopped = config.copy_and_resolve_references()

  class KilledError(Exception):
    pass

  def stop(self, step, output, samples, original=StepRecorder.add):
    if step == 7:
      raise KilledError
    original(self, step, output, samples)

  with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):
    patch.setattr(StepRecorder, "add", stop)
    loop.train(stopped, tmp_path / "parts")
  assert newest_params(tmp_path / "parts")[0] == [4]
  loop.train(config, tmp_path / "parts")
  whole, parts = newest_params(uninterrupted)[1], newest_params(tmp_path / "parts")[1]
  for name, value in whole.items():
    np.testing.assert_array_equal(parts[name], value, err_msg=name)

  def without_times(workdir):
    kept = []
    for line in lines(workdir, "train") + lines(workdir, "val"):
      for key in ("pairs_per_second", "data_wait", "memory_gb"):
        line.pop(key, None)
      kept.append(line)
    return kept

  def at(workdir, steps):
    return [line for line in without_times(workdir) if line["step"] in steps]

  assert at(tmp_path / "parts", {6, 8, 10, 12}) == at(uninterrupted, {6, 8, 10, 12})


@pytest.mark.slow  # .ci/run runs it
def test_a_run_with_several_prompts_negative_pairs_and_bad_files_resumes_bit_for_bit(config, boards, tmp_path, capsys):
  """All options of the data together, and the position in the data is still exact."""
  shutil.copytree(boards, tmp_path / "boards")
  bad = sorted((tmp_path / "boards" / "train" / "images").iterdir())[5]
  bad.write_bytes(bad.read_bytes()[:200])
  config.data.path = str(tmp_path / "boards")
  config.data.labels, config.data.num_classes, config.data.threshold = "index", 7, -1
  config.data.update(prompts=2, negative=0.3, same_class=0.5, bad_share=0.1, cache_mb=1, scale=(0.8, 1.2), blur=1.0)
  config.num_steps = 4
  config.eval_every = config.checkpoint_every = 2
  loop.train(config, tmp_path / "whole")
  said = capsys.readouterr().out
  assert f"passed over: train {bad.stem} cannot be read" in said
  assert "samples that can be the query of a negative pair" in said and "1 labels cannot be read" not in said
  config.num_steps = 2
  loop.train(config, tmp_path / "parts")
  config.num_steps = 4
  config.optim.first_cycle = 10
  loop.train(config, tmp_path / "parts")
  whole, parts = newest_params(tmp_path / "whole")[1], newest_params(tmp_path / "parts")[1]
  for name, value in whole.items():
    np.testing.assert_array_equal(parts[name], value, err_msg=name)


@pytest.mark.slow  # .ci/run runs it
def test_frozen_averaged_and_accumulated_training_resumes_bit_for_bit(config, tmp_path, monkeypatch):
  """On devices that share parameters. Frozen ones do not change and have no optimizer state; best has averages."""
  architecture = dataclasses.replace(SMALL, depth=2, feature_taps=(0, 1))
  params = parameters.split(SegGPT(architecture, rngs=nnx.Rngs(3)))[1]
  weights.save_weights(tmp_path / "start", params, architecture)
  start_from(config, tmp_path / "start")
  config.model.drop_path_rate, config.model.remat = 0.2, "none"
  config.optim.update(freeze=(r"^blocks\.0\.", "pos_embed"), ema=0.3, layer_decay=0.7, clip_norm=1.0)
  config.batch_size, config.accumulate, config.mesh.fsdp = 16, 2, 2
  config.eval_every = config.checkpoint_every = config.log_every = 2
  config.num_steps = 4
  evaluated = []

  def recorded(*args, original=setup.make_eval_step):
    step = original(*args)
    return lambda params, batch: evaluated.append(jax.tree.map(np.asarray, params)) or step(params, batch)

  monkeypatch.setattr(setup, "make_eval_step", recorded)
  loop.train(config, tmp_path / "whole")
  config.num_steps = 2
  loop.train(config, tmp_path / "parts")
  config.num_steps = 4
  loop.train(config, tmp_path / "parts")
  for run in ("whole", "parts"):
    assert [line["step"] for line in lines(tmp_path / run, "val")] == [2, 4]
  assert lines(tmp_path / "whole", "val") == lines(tmp_path / "parts", "val")
  states = {run: saved_state(tmp_path / run / "checkpoints" / "4") for run in ("whole", "parts")}
  jax.tree.map(np.testing.assert_array_equal, *states.values())

  trained = {name for name in params if not name.startswith(("blocks.0", "pos_embed"))}
  now, beside = states["whole"]
  assert beside["ema"].keys() == trained
  in_state = {
    key.key for path, _ in jax.tree.leaves_with_path(beside["opt_state"]) for key in path if "key" in dir(key)
  }
  assert in_state & params.keys() == trained
  for name, value in params.items():
    assert name in trained or np.array_equal(now[name], value), name
  assert not np.array_equal(now["norm.scale"], params["norm.scale"])
  averages = {**now, **beside["ema"]}
  jax.tree.map(np.testing.assert_array_equal, evaluated[-1], averages)
  assert not np.array_equal(averages["norm.scale"], now["norm.scale"])
  best = int(next((tmp_path / "whole" / "best").iterdir()).name)
  raw, beside = saved_state(tmp_path / "whole" / "checkpoints" / str(best))
  jax.tree.map(np.testing.assert_array_equal, weights.load_params(tmp_path / "whole"), {**raw, **beside["ema"]})


def saved_state(directory):
  """Returns the parameters of a step directory and the rest of its state."""
  with ocp.PyTreeCheckpointer() as checkpointer:
    return checkpointer.restore(directory / "params"), checkpointer.restore(directory / "optimizer")


@pytest.mark.slow  # .ci/run runs it
def test_a_finished_run_is_evaluated_again_and_left_as_it_is(config, tmp_path):
  config.num_steps = 4
  first = loop.train(config, tmp_path)
  steps, params = newest_params(tmp_path)
  again = loop.train(config, tmp_path)
  assert again == pytest.approx(first)
  assert newest_params(tmp_path)[0] == steps
  np.testing.assert_array_equal(newest_params(tmp_path)[1]["mask_token"], params["mask_token"])


@pytest.mark.slow  # .ci/run runs it
def test_a_run_that_gets_no_better_stops_and_stays_stopped(config, tmp_path, capsys):
  config.optim.peak = 0.0
  config.eval_every = 2
  config.stop_after = 2
  loop.train(config, tmp_path)
  assert "stopped early: no better mIoU than" in capsys.readouterr().out
  # The first evaluation is the best; the next two are not better.
  assert [line["step"] for line in lines(tmp_path, "val")] == [2, 4, 6]
  assert newest_params(tmp_path)[0][-1] == 6
  again = loop.train(config, tmp_path)
  assert again["miou"] >= 0 and newest_params(tmp_path)[0][-1] == 6
  config.stop_after = 0
  loop.train(config, tmp_path)
  assert newest_params(tmp_path)[0][-1] == 12


@pytest.mark.slow  # .ci/run runs it
def test_some_steps_are_traced(config, tmp_path, capfd):
  config.num_steps, config.profile_steps, config.eval_every = 3, 2, 100
  loop.train(config, tmp_path)
  assert "nothing was profiled: the run ended before step 6" in capfd.readouterr().out
  config.num_steps = 11
  loop.train(config, tmp_path)
  assert "profiling steps 9 to 10" in capfd.readouterr().out
  assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize(
  ("kind", "changes"),
  [
    ("lora", {}),
    pytest.param("prompt", {}, marks=pytest.mark.slow),
    pytest.param(
      *("lora", {"optim.ema": 0.9, "accumulate": 2, "batch_size": 16, "mesh.fsdp": 2}), marks=pytest.mark.slow
    ),
  ],
)
def test_an_adapter_learns_beside_a_frozen_network_and_only_it_is_kept(config, tmp_path, kind, changes):
  config.update_from_flattened_dict(changes)
  before = parameters.split(SegGPT(SMALL, rngs=nnx.Rngs(0)))[1]
  weights.save_weights(tmp_path / "base", before, SMALL)
  config.num_steps = config.eval_every = config.checkpoint_every = 4
  start_from(config, tmp_path / "base")
  config.adapter.kind = kind
  if kind == "lora":
    config.adapter.rank = 2
  config.data.palette, config.data.lower_half_share = "fixed", 1.0
  config.optim.update(schedule="cosine", first_cycle=5000, peak=1e-2, warmup=1)
  loop.train(config, tmp_path / "whole")
  config.checkpoint_every = 2

  class KilledError(Exception):
    pass

  def stop(self, step, *rest, original=StepRecorder.add):
    if step == 4:
      raise KilledError
    original(self, step, *rest)

  with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):
    patch.setattr(StepRecorder, "add", stop)
    loop.train(config, tmp_path / "parts")
  loop.train(config, tmp_path / "parts")
  whole, parts = (adapter_files.load_adapter(tmp_path / run / "checkpoints" / "4") for run in ("whole", "parts"))
  first = adapter_files.load_adapter(tmp_path / "parts" / "checkpoints" / "2")
  assert whole.num_classes == 2 and whole.base == str(tmp_path / "base")
  assert all(name.startswith(f"{kind}.") for name in whole.params)
  for name, value in whole.params.items():
    np.testing.assert_array_equal(parts.params[name], value, err_msg=name)
    assert (first.params[name] != value).any(), name
  # With the base weights the network is the same, except for the learned updates.
  model, stored = adapter_files.load_adapted_model(tmp_path / "base", tmp_path / "whole")
  for name, value in parameters.split(model)[1].items():
    updated = f"lora.{name}.a" in stored.params
    assert bool((np.asarray(value) != np.asarray(before[name])).any()) == updated, name
  with pytest.raises(InputError, match="found an adapter, which is not a network by itself"):
    weights.load_model(tmp_path / "whole")
  config.adapter.kind, config.adapter.rank = "none", 8
  with pytest.raises(InputError, match=r"config.adapter.kind: found none, expected"):
    loop.train(config, tmp_path / "whole")


@pytest.mark.slow  # .ci/run runs it
def test_fine_tuning_starts_from_given_weights_on_another_canvas(config, tmp_path):
  config.num_steps = 4
  loop.train(config, tmp_path / "first")
  start_from(config, tmp_path / "first")
  config.model.square = 48
  config.data.resize = 48
  config.num_steps = 1
  config.optim.peak = 0.0
  loop.train(config, tmp_path / "second")
  before, after = weights.load_params(tmp_path / "first"), weights.load_params(tmp_path / "second")
  assert weights.load_config(tmp_path / "second").canvas_size == (96, 48)
  assert after["blocks.0.attn.rel_pos_h"].shape == (23, 16) and before["blocks.0.attn.rel_pos_h"].shape == (15, 16)
  # With a learning rate of 0 nothing else has changed, and the network predicts the same on the new canvas.
  np.testing.assert_array_equal(after["blocks.0.mlp.fc1.kernel"], before["blocks.0.mlp.fc1.kernel"])
  generator = np.random.default_rng(0)
  images, targets = (jnp.asarray(generator.normal(size=(1, 96, 48, 3)), jnp.float32) for _ in range(2))
  mask = jnp.asarray(generator.random((1, 12, 6)) < 0.5)
  first, second = (weights.load_model(tmp_path / run)(images, targets, mask) for run in ("first", "second"))
  np.testing.assert_allclose(first, second, atol=1e-5)


def test_a_workdir_of_another_architecture_is_refused(config, workdir):
  config.model.square = 40
  with pytest.raises(InputError, match=r"checkpoint of another model: canvas_size is \[64, 32\], expected \[80, 40\]"):
    loop.train(config, workdir)


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("data.path", "nowhere", r"config.data.path: folder 'nowhere' not found, expected SPLIT/images/NAME"),
    (
      "model.init_from",
      "nowhere",
      r"config.model.init_from: nowhere: not found.*; or convert the released weights with",
    ),
    ("model.variant", "huge", r"config.model.variant: found 'huge', expected one of vit_large"),
    ("model.square", 60, r"config.model.square: found 60, expected a multiple of the patch size 8"),
    ("data.resize", 20, r"config.data.resize: found 20, expected 0 or at least the square 32"),
    ("batch_size", 13, r"config.batch_size: found 13, expected a multiple of the 2 devices"),
    ("accumulate", 3, r"config.batch_size: found 8, expected a multiple of the 2 devices x config.accumulate = 3"),
    ("optim.freeze", ("posembed",), r"config.optim.freeze: found 'posembed', expected a regular expression that fits"),
    ("mesh.fsdp", 3, r"mesh.data x mesh.fsdp: found 0 x 3"),
    ("optim.warmup", 10, r"config.optim.first_cycle: found 10, expected more than"),
  ],
)
def test_wrong_input_is_one_line_and_leaves_nothing_behind(config, tmp_path, key, value, message):
  config.update_from_flattened_dict({key: value} | ({"model.variant": "vit_large"} if key == "model.init_from" else {}))
  with pytest.raises(InputError, match=message) as caught:
    loop.train(config, tmp_path / "run")
  assert "\n" not in str(caught.value)
  assert not (tmp_path / "run").exists()


def test_a_workdir_that_is_a_file_is_refused_and_left_alone(config, tmp_path):
  path = tmp_path / "run"
  path.write_text("mine")
  for workdir in (path, path / "deeper"):
    with pytest.raises(InputError, match=r"run/.*checkpoints: cannot be written: Not a directory"):
      loop.train(config, workdir)
  assert path.read_text() == "mine"


def test_a_file_where_checkpoints_should_be_is_refused_before_training(config, tmp_path):
  (tmp_path / "checkpoints").write_text("mine")
  with pytest.raises(InputError, match=r"checkpoints: already exists and is not part of a training run"):
    loop.train(config, tmp_path)
  assert (tmp_path / "checkpoints").read_text() == "mine"


def test_resuming_another_task_is_refused_and_other_changes_are_said(config, workdir, capsys):
  before = (workdir / "config.json").read_text()
  config.data.num_classes = 3
  with pytest.raises(InputError, match=r"config.data.num_classes: found 3, expected 2 as the run in .* has"):
    loop.train(config, workdir)
  assert (workdir / "config.json").read_text() == before
  config.data.num_classes = 2
  config.model.drop_path_rate, config.optim.peak = 0.3, 5e-4
  loop.train(config, workdir)
  assert "changed since the run was last started: model.drop_path_rate, optim.peak" in capsys.readouterr().out


@pytest.mark.slow  # .ci/run runs it
def test_best_weights_of_an_abandoned_future_are_dropped(config, tmp_path):
  """Otherwise `best` would keep weights of steps that the resumed run does not reach in the same way."""
  config.num_steps = 8
  config.eval_every = 8
  loop.train(config, tmp_path)
  assert [path.name for path in (tmp_path / "best").iterdir()] == ["8"]
  shutil.rmtree(tmp_path / "checkpoints" / "8")
  config.num_steps = 7
  config.optim.peak = 3e-3
  result = loop.train(config, tmp_path)
  assert [path.name for path in (tmp_path / "best").iterdir()] == ["7"]
  progress = json.loads((tmp_path / "checkpoints" / "7" / "progress" / "metadata").read_text())
  assert progress["best_miou"] == pytest.approx(result["miou"])
  # A run that died before its first checkpoint cannot be resumed, but may leave best weights.
  shutil.rmtree(tmp_path / "checkpoints")
  config.num_steps = config.eval_every = 3
  loop.train(config, tmp_path)
  assert [path.name for path in (tmp_path / "best").iterdir()] == ["3"]


def test_a_bad_label_is_named_before_anything_is_written(config, boards, tmp_path):
  config.data.labels, config.data.threshold = "index", -1
  with pytest.raises(InputError, match=r"train/labels/.*png: found label value \d, expected 0..1"):
    loop.train(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run(config, tmp_path):
  config.optim.peak, config.optim.weight_decay = 100.0, 1000.0  # decay alone multiplies parameters by -99,999
  config.checkpoint_every = 1
  expected = r"step \d+: found loss \S+ and gradient norm \S+ on .*\d+, .*, expected finite numbers"
  with pytest.raises(InputError, match=expected) as caught:
    loop.train(config, tmp_path)
  names = sorted(path.stem for path in (Path(config.data.path) / "train" / "images").iterdir())
  assert sum(name in str(caught.value) for name in names) >= 2
  failed = int(str(caught.value).split()[1].rstrip(":"))
  saved = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
  assert max(saved) == failed - 1  # the newest checkpoint is from before
  assert f"the newest whole checkpoint is {tmp_path / 'checkpoints' / str(failed - 1)}" in str(caught.value)


def test_the_tiny_network_learns_to_paint_what_it_is_shown(config, boards, tmp_path):
  """Labels that follow the brightness of the image are learned in 60 steps; this is not a benchmark."""
  for split in ("train", "val"):
    for kind in ("images", "labels"):
      (tmp_path / "data" / split / kind).mkdir(parents=True)
    for index in range(16):
      generator = np.random.default_rng([index, len(split)])
      label = np.zeros((32, 32), np.uint8)
      top, left = generator.integers(0, 16, 2)
      label[top : top + 16, left : left + 16] = 1
      image = np.where(label[..., None], 220, 40) + generator.integers(-20, 20, (32, 32, 3))
      Image.fromarray(image.astype(np.uint8)).save(tmp_path / "data" / split / "images" / f"{index}.png")
      Image.fromarray(label).save(tmp_path / "data" / split / "labels" / f"{index}.png")
  config.data.path = str(tmp_path / "data")
  config.data.palette = "fixed"
  config.data.resize = 0
  config.num_steps = 60
  config.optim.first_cycle = 61
  config.optim.peak = 3e-3
  config.eval_every = config.checkpoint_every = 60
  result = loop.train(config, tmp_path / "run")
  assert result["miou"] > 0.8


@pytest.mark.slow  # .ci/run runs it
def test_muon_resumes_bit_for_bit_and_is_not_changed_on_the_way(config, tmp_path):
  changes = {"num_steps": 6, "eval_every": 3, "eval_pairs": 8, "checkpoint_every": 3}
  changes |= {"optim.name": "muon", "optim.clip_norm": 1.0}
  config.update_from_flattened_dict(changes)
  loop.train(config, tmp_path / "whole")
  # The schedule does not depend on where the run ends.
  config.num_steps = 3
  loop.train(config, tmp_path / "parts")
  config.num_steps = 6
  loop.train(config, tmp_path / "parts")
  whole, parts = newest_params(tmp_path / "whole")[1], newest_params(tmp_path / "parts")[1]
  for name, value in whole.items():
    np.testing.assert_array_equal(parts[name], value, err_msg=name)
  assert [line["step"] for line in lines(tmp_path / "parts", "val")] == [3, 6]
  config.optim.name = "adamw"
  with pytest.raises(InputError, match=r"config.optim.name: found adamw, expected muon as the run in .* has"):
    loop.train(config, tmp_path / "parts")


def test_resuming_with_another_source_is_refused(config, workdir):
  config.update_from_flattened_dict({"data.source": "voc", "data.threshold": -1})
  with pytest.raises(InputError, match=r"config.data.source: found voc, expected \w+ as the run in .* has"):
    loop.train(config, workdir)
