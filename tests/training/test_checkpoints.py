"""Checkpoints that are damaged, written on other devices or on a full disk: if these fail, a user loses a run."""

import json
import os
import shutil
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import faults
from benchmarks.faults import small_disk
from benchmarks.nano import NANO
from seggpt_jax.errors import InputError
from seggpt_jax.model import digests, parameters
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.training import sharding
from seggpt_jax.training.checkpoints import WRITTEN_LAST, Checkpoints
from seggpt_jax.training.step import TrainState

ROOT = Path(__file__).parents[2]


def state_at(step, mesh=None):
  """Returns a state whose parameters are near the number of its step, and too random to be compressed to nothing."""
  generator = np.random.default_rng(step)
  shapes = {name: leaf.shape for name, leaf in parameters.abstract(NANO)[1].items()}
  params = {name: generator.uniform(step - 0.4, step + 0.4, shape).astype(np.float32) for name, shape in shapes.items()}
  state = TrainState(jnp.asarray(step, jnp.int32), params, optax.adamw(1e-3).init(params))
  mesh = mesh or sharding.make_mesh(-1, 1)
  where = TrainState(
    sharding.replicated(mesh),
    sharding.tree_sharding(mesh, state.params),
    sharding.tree_sharding(mesh, state.opt_state),
  )
  return jax.device_put(state, where)


def abstract(state):
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


def write(folder, steps, **options):
  checkpoints = Checkpoints(folder, NANO, **{"keep": 10, **options})
  for step in steps:
    checkpoints.save(state_at(step), {"epoch": step, "best_miou": 0.5})
  checkpoints.close()


@pytest.fixture(scope="module")
def three(tmp_path_factory):
  folder = tmp_path_factory.mktemp("run")
  write(folder, (2, 4, 6))
  return folder


@pytest.fixture
def run(three, tmp_path):
  shutil.copytree(three, tmp_path / "run")
  return tmp_path / "run"


def steps_in(folder):
  return sorted(int(path.name) for path in folder.iterdir())


def remove_item(directory):
  shutil.rmtree(directory / "optimizer")


def cut_arrays(directory):
  """Truncates the largest file of the parameters, as a copy that was interrupted does."""
  largest = max((path for path in (directory / "params").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
  os.truncate(largest, largest.stat().st_size // 2)


def spoil_progress(directory):
  (directory / "progress" / "metadata").write_text('{"epoch": ')


def spoil_config(directory):
  (directory / "config" / "metadata").write_text("\0\0\0")


def spoil_array_metadata(directory):
  (directory / "params" / "_METADATA").write_text("garbage")


DAMAGE = [remove_item, cut_arrays, spoil_progress, spoil_config, spoil_array_metadata]


def test_a_checkpoint_has_digests_from_the_moment_it_appears(tmp_path):
  """A run that is killed leaves its newest checkpoint as it is, and a bit of it may flip before the run is resumed."""
  checkpoints = Checkpoints(tmp_path, NANO, keep=10)
  state = state_at(5)
  checkpoints.save(state, {"epoch": 5, "best_miou": 0.5})
  checkpoints.save_best(state)
  for folder in (tmp_path / "checkpoints/5", tmp_path / "best/5"):
    while not folder.exists():
      time.sleep(0.001)
    assert digests.is_sealed(folder)
    with digests.verifying(folder):
      pass
  largest = max((tmp_path / "checkpoints/5/params").rglob("*"), key=lambda path: path.stat().st_size)
  largest.write_bytes(largest.read_bytes()[::-1])
  damaged = pytest.raises(digests.DamageError, match="is not what was written")
  with damaged, digests.verifying(tmp_path / "checkpoints/5"):
    pass
  checkpoints.close()
  stored = json.loads((tmp_path / "best/5" / digests.FILE).read_text())
  files = {path.relative_to(tmp_path / "best/5").as_posix() for path in (tmp_path / "best/5").rglob("*")}
  assert {name for name in files if (tmp_path / "best/5" / name).is_file()} == {
    *stored,
    digests.FILE,
    *files.intersection(WRITTEN_LAST),
  }


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(run, damage):
  """Otherwise one bad file would end a run whose earlier checkpoints are whole."""
  damage(run / "checkpoints" / "6")
  checkpoints = Checkpoints(run, NANO, keep=10)
  state, progress = checkpoints.restore(abstract(state_at(0)))
  assert int(state.step) == 4 and progress["epoch"] == 4
  np.testing.assert_array_equal(state.params["mask_token"], state_at(4).params["mask_token"])
  (line,) = checkpoints.warnings
  assert "warning: checkpoint" in line and f"{run}/checkpoints/6 is damaged" in line
  assert f"resuming from {run}/checkpoints/4" in line and "\n" not in line
  assert steps_in(run / "checkpoints") == [2, 4] and steps_in(run / "damaged") == [6]
  # The run reaches step 6 again and can write it.
  checkpoints.save(state_at(6), {"epoch": 6, "best_miou": 0.5})
  checkpoints.close()
  assert int(Checkpoints(run, NANO, keep=10).restore(abstract(state_at(0)))[0].step) == 6


def test_the_same_step_damaged_again_does_not_replace_the_first(run):
  for _ in range(2):
    spoil_progress(run / "checkpoints" / "6")
    checkpoints = Checkpoints(run, NANO, keep=10)
    checkpoints.restore(abstract(state_at(0)))
    checkpoints.save(state_at(6), {"best_miou": 0.5})
    checkpoints.close()
  assert sorted(path.name for path in (run / "damaged").iterdir()) == ["6", "6_2"]


def test_where_all_are_damaged_they_are_named_and_left(run):
  for step in (2, 4, 6):
    spoil_progress(run / "checkpoints" / str(step))
  with pytest.raises(InputError, match=r"checkpoints/6, .*checkpoints/4, .*checkpoints/2: damaged") as caught:
    Checkpoints(run, NANO, keep=10).restore(abstract(state_at(0)))
  assert "\n" not in str(caught.value)
  assert steps_in(run / "checkpoints") == [2, 4, 6] and not (run / "damaged").exists()


def test_another_architecture_is_refused_and_not_taken_for_damage(run):
  other = SegGPTConfig.from_dict({**NANO.to_dict(), "mlp_dim": 64})
  with pytest.raises(InputError, match=r"checkpoint of another model: mlp_dim is 32, expected 64"):
    Checkpoints(run, other, keep=10).restore(abstract(state_at(0)))
  assert steps_in(run / "checkpoints") == [2, 4, 6]


@pytest.mark.slow  # .ci/run runs it
def test_the_newest_are_kept_and_every_so_manyth_for_good(tmp_path):
  write(tmp_path, range(1, 9), keep=2, keep_every=3)
  assert steps_in(tmp_path / "checkpoints") == [3, 6, 7, 8]
  # The same rule holds across a restart.
  write(tmp_path, (9, 10, 11), keep=2, keep_every=3)
  assert steps_in(tmp_path / "checkpoints") == [3, 6, 9, 10, 11]


def test_what_a_killed_run_left_half_written_is_cleared(run):
  """Otherwise each kill would cost the disk space of a checkpoint."""
  half = run / "checkpoints" / "8.orbax-checkpoint-tmp"
  shutil.copytree(run / "checkpoints" / "6", half)
  shutil.rmtree(half / "progress")
  checkpoints = Checkpoints(run, NANO, keep=10)
  assert int(checkpoints.restore(abstract(state_at(0)))[0].step) == 6
  checkpoints.save(state_at(8), {"best_miou": 0.5})
  checkpoints.close()
  assert steps_in(run / "checkpoints") == [2, 4, 6, 8]


@pytest.mark.parametrize(("count", "data", "fsdp"), [(1, 1, 1), (4, 2, 2), (8, 1, 8)])
def test_a_checkpoint_of_eight_devices_is_read_on_others(run, count, data, fsdp):
  mesh = jax.make_mesh((data, fsdp), ("data", "fsdp"), devices=jax.devices()[:count])
  state, _ = Checkpoints(run, NANO, keep=10).restore(abstract(state_at(0, mesh)))
  assert state.params["blocks.0.mlp.fc1.kernel"].sharding.mesh.shape == {"data": data, "fsdp": fsdp}
  expected = state_at(6).params
  for name, value in state.params.items():
    np.testing.assert_array_equal(value, expected[name], err_msg=name)


FILL = """
import sys
from pathlib import Path
folder = Path(sys.argv[1]); steps = int(sys.argv[2])
from seggpt_jax.errors import MachineError
from tests.training import test_checkpoints as own
from seggpt_jax.training.checkpoints import Checkpoints
checkpoints = Checkpoints(folder, own.NANO, keep=2)
try:
  with checkpoints.explain_full_disk():
    try:
      for step in range(1, steps):
        checkpoints.save(own.state_at(step), {"epoch": step, "best_miou": 0.5})
        if step == 2:
          checkpoints._steps.wait_until_finished()
          (folder / "filler").write_bytes(b"")
          with (folder / "filler").open("wb", buffering=0) as file:
            try:
              while True: file.write(bytes(4096))
            except OSError: pass
    finally:
      checkpoints.close()
except MachineError as error:
  print("refused:", error)
print("steps", sorted(p.name for p in (folder / "checkpoints").iterdir() if p.name.isdigit()))
(folder / "filler").unlink()
restored, _ = Checkpoints(folder, own.NANO, keep=2).restore(own.abstract(own.state_at(0)))
print("restored", int(restored.step), float(restored.params["mask_token"].mean().round()))
"""


@pytest.fixture
def can_mount(tmp_path):
  if not faults.can_mount(tmp_path):
    pytest.skip("needs a Linux where a file system can be mounted in a namespace")


@pytest.mark.usefixtures("can_mount")
def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint_whole(tmp_path):
  """The file system is full after step 2. Otherwise a run could continue for days without saving anything."""
  done = small_disk(tmp_path, [sys.executable, "-c", FILL, str(tmp_path), "6"], 8)
  assert (
    f"refused: {tmp_path}: the disk is full, the newest whole checkpoint is {tmp_path}/checkpoints/2; make"
    in done.stdout
  ), done
  assert "restored 2 2.0" in done.stdout


@pytest.mark.slow  # .ci/run runs it
@pytest.mark.usefixtures("can_mount")
def test_training_on_a_full_disk_ends_with_status_1(tmp_path):
  """train.py itself also writes metrics and pictures, which need space too."""
  from benchmarks import nano

  nano.write_dataset(tmp_path / "data")
  (tmp_path / "run").mkdir()
  arguments = ["--config", "benchmarks/nano.py", f"--config.data.path={tmp_path}/data", "--config.num_steps=4000"]
  arguments += ["--config.checkpoint_every=2"]
  arguments += ["--config.keep_every=2", "--workdir", str(tmp_path / "run")]
  done = small_disk(tmp_path / "run", [sys.executable, "train.py", *arguments], 1)
  assert done.returncode == 1, done.stderr[-2000:]
  (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
  assert line.startswith(f"error: {tmp_path}/run: the disk is full, the newest whole checkpoint is")
