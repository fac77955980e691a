"""Commands that are killed: what is left is whole, and the rerun ends with what an undisturbed run writes.

benchmarks/faults.py is the long form of these tests. .ci/run runs them after the suite.
"""

import contextlib
import functools
import itertools
import re
import signal
import threading
import time

import httpx2
import numpy as np
import pytest

from benchmarks import faults, killed, nano
from seggpt_jax.app.sessions import Session
from seggpt_jax.model import weights
from tests.app.page_clients import noise, png, square


def survived(tries):
  tries = list(tries)
  assert not [each.problem for each in tries if each.problem]
  return tries


def kill(folder, tries, make, number=signal.SIGKILL):
  return survived(killed.kill_commands(folder, tries, np.random.default_rng(0), make=make, number=number))


@pytest.mark.slow
def test_a_run_that_is_killed_is_bit_for_bit_the_one_left_alone(tmp_path):
  run = functools.partial(killed.kill_training, number=signal.SIGKILL, num_steps=30)
  tries = survived(run(tmp_path, 2, np.random.default_rng(1)))
  assert len(tries) == 2 and all(0 <= each.lost <= 10 for each in tries)  # every fifth step is kept


@pytest.mark.slow
def test_weights_of_a_conversion_that_is_killed_are_missing_or_whole(tmp_path):
  assert len(kill(tmp_path, 1, killed.convert)) == 1


@pytest.mark.slow
def test_folders_of_a_preparation_that_is_killed_are_completed(tmp_path):
  kill(tmp_path, 1, functools.partial(killed.prepare, output="folder", images=80))


def nano_inference(folder):
  weights.save_weights(folder / "weights", killed.nano_params(), nano.NANO)
  return killed.infer(folder, str(folder / "weights"), images=16)


@pytest.mark.slow
def test_images_of_an_inference_that_is_killed_are_completed(tmp_path):
  kill(tmp_path, 1, nano_inference)


@pytest.mark.slow
def test_the_file_of_an_export_that_is_killed_is_missing_or_whole(tmp_path):
  assert len(kill(tmp_path, 2, killed.export)) == 2


@pytest.mark.slow
def test_a_page_that_is_killed_loses_nothing_that_it_has_acknowledged(tmp_path):
  weights.save_weights(tmp_path / "weights", killed.nano_params(), nano.NANO)
  generator, project, known = np.random.default_rng(2), tmp_path / "project", {}
  for _ in range(20):
    (tmp_path / "log").unlink(missing_ok=True)
    process = killed.start(["app", str(project), "--port=0", f"--model-path={tmp_path / 'weights'}"], tmp_path)
    while not (found := re.search(r"http://[^/\s]+", (tmp_path / "log").read_text())):
      assert process.poll() is None, (tmp_path / "log").read_text()
      time.sleep(0.1)
    until = time.monotonic() + 3 * generator.random()
    with httpx2.Client(base_url=found[0], headers={"origin": found[0]}, timeout=60) as person:
      person.get("/")
      killing = threading.Timer(until - time.monotonic(), process.kill)
      killing.start()
      with contextlib.suppress(httpx2.HTTPError):
        for seed in itertools.count(len(known)):
          name, start = f"cam{seed % 3}/{seed}", seed % 20
          known[name] = None  # asked for, and perhaps stored
          key = person.post(f"/api/images?name={name}.png", content=png(noise(seed))).raise_for_status().json()["key"]
          for what in ("draft", "label", "draft"):
            known[name] = None
            person.put(f"/api/images/{key}/{what}", content=png(square(start=start))).raise_for_status()
            known[name] = what
      killing.join()
    assert process.wait() == -signal.SIGKILL
    session = Session(project)
    found = {each.name: each.key for each in session.pictures.values()}
    for name, what in known.items():
      seed = int(name.partition("/")[2])
      if name in found:
        np.testing.assert_array_equal(session.pixels(found[name]), noise(seed))
      if what is not None:
        np.testing.assert_array_equal(getattr(session, what)(found[name]), square(start=seed % 20))
  assert len(known) > 20


@pytest.mark.parametrize("spoil", [faults.flip, faults.cut, faults.delete])
def test_damaged_weights_and_checkpoints_are_not_read(tmp_path, spoil):
  for function in (faults.spoil_weights, faults.spoil_checkpoints):
    (tmp_path / function.__name__).mkdir()
    survived(function(tmp_path / function.__name__, 8, np.random.default_rng(2), spoil=spoil))


@pytest.mark.slow  # .ci/run runs it
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax, of damaged arrays
def test_what_was_not_survived_is_seen(tmp_path, monkeypatch):
  """The other tests would be worthless if nothing could fail them."""
  monkeypatch.setattr("seggpt_jax.model.digests.is_sealed", lambda directory: False)
  tries = list(faults.spoil_weights(tmp_path, 40, np.random.default_rng(0), spoil=faults.flip))
  assert any("read without an error" in each.problem for each in tries)


@pytest.mark.slow
@pytest.mark.parametrize("name", faults.FAULTS)
def test_every_fault_is_survived(name):
  row = faults.measure(name, min(faults.FAULTS[name].tries, 5), seed=1)
  assert "not_tried" in row or row["survived"] == row["tries"] > 0, row
