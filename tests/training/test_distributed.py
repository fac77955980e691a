"""Several processes train as one process does and all end together: if these fail, a user pays for hosts that hang."""

import os
import re
import shutil
import signal
import time

import pytest

from seggpt_jax.errors import InputError
from seggpt_jax.training import distributed
from tests.training import launching

# Evaluations coincide with checkpoints, so that best weights and a checkpoint are often written at the same time.
SAME = ["--config.model.drop_path_rate=0.1", "--config.num_steps=20", "--config.eval_every=5"]


def output(workdir, index):
  return workdir.with_suffix(f".{index}.log").read_text()


def check_same_as_one_process(counts, data, folder):
  """Reference: one process with four devices; 1e-5 relative. Each run is also resumed from step 15 of the last."""
  assert launching.start(data, folder / "1", *SAME, devices=4).wait(timeout=300) == 0
  expected, before = [line["loss"] for line in launching.metrics(folder / "1")], folder / "1"
  for count in counts:
    run = folder / str(count)
    running = launching.start_many(count, data, run, *SAME, devices=4 // count)
    assert [process.wait(timeout=300) for process in running] == [0] * count, output(run, 0)[-2000:]
    assert [line["loss"] for line in launching.metrics(run)] == pytest.approx(expected, rel=1e-5)
    assert all(word not in output(run, 1) for word in ("done:", "new run", "resumed"))
    resumed = folder / f"{count}_resumed"
    shutil.copytree(before, resumed, ignore=lambda folder, names: {"20"} & set(names))
    running = launching.start_many(count, data, resumed, *SAME, devices=4 // count)
    assert [process.wait(timeout=300) for process in running] == [0] * count, output(resumed, 0)[-2000:]
    assert "resumed at step 15" in output(resumed, 0)
    assert [line["loss"] for line in launching.metrics(resumed)] == pytest.approx(expected, rel=1e-5)
    before = run


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_and_go_on_from_its_checkpoint(nano_data, tmp_path):
  check_same_as_one_process([2], nano_data, tmp_path)


@pytest.mark.slow
def test_four_processes_have_the_losses_of_one_and_go_on_from_those_of_two(nano_data, tmp_path):
  check_same_as_one_process([2, 4], nano_data, tmp_path)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_step(nano_data, tmp_path):
  run = tmp_path / "run"
  many = ["--config.num_steps=100000", "--config.checkpoint_every=1000"]
  running = launching.start_many(2, nano_data, run, *many)
  while not (run / "metrics.jsonl").exists() or (run / "metrics.jsonl").read_text().count("\n") < 5:
    assert all(process.poll() is None for process in running), output(run, 0)
    time.sleep(0.05)
  os.kill(running[1].pid, signal.SIGTERM)
  assert [process.wait(timeout=90) for process in running] == [0, 0]
  (step,) = launching.steps_in(run / "checkpoints")
  assert f"stopped by SIGTERM at step {step}, rerun the same command to resume" in output(run, 0)


@pytest.mark.slow
def test_a_bad_file_that_one_process_meets_ends_all_within_two_minutes(nano_data, tmp_path):
  shutil.copytree(nano_data, tmp_path / "data")
  os.truncate(tmp_path / "data" / "train" / "images" / "005.png", 100)
  began = time.monotonic()
  running = launching.start_many(2, tmp_path / "data", tmp_path / "run", *SAME)
  statuses = [process.wait(timeout=150) for process in running]
  assert time.monotonic() - began < 120
  assert all(statuses) and 2 in statuses
  failed = statuses.index(2)
  assert f"error: process {failed} of 2: " in output(tmp_path / "run", failed)
  assert "005.png" in output(tmp_path / "run", failed)


@pytest.mark.slow
def test_bad_files_that_any_process_passes_over_are_told_and_counted(nano_data, tmp_path):
  shutil.copytree(nano_data, tmp_path / "data")
  for index in range(3):
    os.truncate(tmp_path / "data" / "train" / "images" / f"{index:03d}.png", 100)
  skip = [*SAME, "--config.data.bad_share=0.2"]
  running = launching.start_many(2, tmp_path / "data", tmp_path / "run", *skip)
  assert [process.wait(timeout=150) for process in running] == [0, 0], output(tmp_path / "run", 0)[-2000:]
  told = re.findall(r"passed over: train (\d+) cannot be read", output(tmp_path / "run", 0))
  assert sorted(map(int, told)) == [0, 1, 2]
  assert "passed over" not in output(tmp_path / "run", 1)
  running = launching.start_many(2, tmp_path / "data", tmp_path / "other", *skip, "--config.data.bad_share=0.05")
  assert [process.wait(timeout=150) for process in running] == [2, 2]
  assert "config.data.bad_share: found" in output(tmp_path / "other", 0)


@pytest.mark.parametrize(
  ("where", "message"),
  [
    ("on", "--distributed: found 'on', expected off, auto or HOST:PORT,N,I"),
    ("here,2,0", "--distributed: found 'here,2,0', expected off"),
    ("here:1", "--distributed: found 'here:1', expected off"),
    ("here:99999,2,0", "--distributed: found 'here:99999,2,0', expected off"),
    ("here:1,0,0", "--distributed: found 'here:1,0,0', expected off"),
    ("here:1,2,2", "--distributed: found process 2 of 2, expected a number from 0 to 1"),
  ],
)
def test_a_place_of_another_form_is_refused(where, message):
  with pytest.raises(InputError, match=message) as caught:
    distributed.start(where)
  assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_run_goes_on_with_other_devices_and_another_mesh(nano_data, tmp_path):
  """Eight devices, then one, then 2 x 2: whoever loses a machine must not lose the run. 1e-5 relative."""
  common = ["--config.batch_size=8", SAME[0], SAME[2]]
  assert launching.start(nano_data, tmp_path / "whole", *common, SAME[1], devices=8).wait(timeout=300) == 0
  run = tmp_path / "parts"
  for steps, devices, fsdp in ((5, 8, 1), (10, 1, 1), (20, 4, 2)):
    arguments = [*common, f"--config.num_steps={steps}", f"--config.mesh.fsdp={fsdp}"]
    assert launching.start(nano_data, run, *arguments, devices=devices).wait(timeout=300) == 0
  losses = [
    [line["loss"] for line in launching.metrics(folder) if line["split"] == "train"]
    for folder in (run, tmp_path / "whole")
  ]
  assert losses[0] == pytest.approx(losses[1], rel=1e-5)
