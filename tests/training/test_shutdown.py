"""Signals: if these fail, a user loses the steps since the last checkpoint or cannot end a run."""

import os
import signal
import subprocess
import threading
import time

import numpy as np
import pytest

from seggpt_jax.model import weights
from seggpt_jax.training import sharding
from seggpt_jax.training.shutdown import listen_for_signals
from tests.training import launching


@pytest.fixture
def mesh():
  return sharding.make_mesh(-1, 1)


def test_a_signal_is_remembered_and_the_handlers_come_back(mesh):
  before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
  with listen_for_signals(mesh) as interruption:
    assert not interruption.stop_requested()
    os.kill(os.getpid(), signal.SIGTERM)
    assert interruption.stop_requested()
    assert interruption.describe(7) == "stopped by SIGTERM at step 7, rerun the same command to resume"
    # A second one would end the process at once.
    assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) == signal.SIG_DFL
  assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
  with pytest.raises(SystemExit) as caught:
    interruption.exit_if_stopped()
  assert caught.value.code == 0


def test_ctrl_c_still_ends_as_ctrl_c(mesh):
  with listen_for_signals(mesh) as interruption:
    os.kill(os.getpid(), signal.SIGINT)
    assert interruption.stop_requested()
  with pytest.raises(KeyboardInterrupt):
    interruption.exit_if_stopped()


def test_in_another_thread_nothing_is_changed(mesh):
  """A notebook or a server may train in a thread, where Python refuses handlers."""
  seen = []

  def work():
    before = signal.getsignal(signal.SIGTERM)
    with listen_for_signals(mesh) as interruption:
      seen.extend([signal.getsignal(signal.SIGTERM) == before, interruption.stop_requested()])

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert seen == [True, False]


def wait_for_step(process, workdir, step):
  while not (workdir / "metrics.jsonl").exists() or len((workdir / "metrics.jsonl").read_text().splitlines()) < step:
    assert process.poll() is None, workdir.with_suffix(".log").read_text()[-2000:]
    time.sleep(0.02)


@pytest.mark.slow  # .ci/run runs it
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_stopped_run_has_saved_its_last_step_and_goes_on_bit_for_bit(nano_data, tmp_path, number, status):
  """The signal also reaches the worker processes, as one from a terminal or from SLURM does."""
  run, arguments = tmp_path / "run", ["--config.checkpoint_every=1000", "--config.data.num_workers=1"]
  process = launching.start(nano_data, run, *arguments, "--config.num_steps=100000", start_new_session=True)
  wait_for_step(process, run, 5)
  os.killpg(process.pid, number)
  assert process.wait(timeout=60) == status
  (stopped,) = launching.steps_in(run / "checkpoints")
  said = f"stopped by {signal.Signals(number).name} at step {stopped}, rerun the same command to resume"
  assert said in run.with_suffix(".log").read_text()
  steps = [f"--config.num_steps={stopped + 2}", "--config.eval_every=100000"]
  assert launching.start(nano_data, run, *arguments, *steps).wait(timeout=120) == 0
  assert launching.start(nano_data, tmp_path / "whole", *arguments, *steps).wait(timeout=120) == 0
  parts, whole = (weights.load_params(path / "checkpoints" / str(stopped + 2)) for path in (run, tmp_path / "whole"))
  for name, value in whole.items():
    np.testing.assert_array_equal(parts[name], value, err_msg=name)


@pytest.mark.slow
def test_no_worker_outlives_a_run_that_was_killed(nano_data, tmp_path):
  run = tmp_path / "run"
  options = ("--config.data.num_workers=1", "--config.num_steps=100000")
  process = launching.start(nano_data, run, *options, start_new_session=True)

  def living() -> list[str]:
    listed = subprocess.run(["ps", "-A", "-o", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if line.split()[0] == str(process.pid) and "Z" not in line.split()[1]]

  wait_for_step(process, run, 1)
  assert len(living()) > 1, "no worker was started"
  process.kill()
  process.wait()
  until = time.monotonic() + 20
  while living() and time.monotonic() < until:
    time.sleep(0.1)
  assert not living()
