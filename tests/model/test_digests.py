"""Weights are compared with their digests while they are read, so the comparison has to win over what was read."""

import dataclasses
import os

import pytest

from benchmarks.killed import nano_params
from benchmarks.nano import NANO
from seggpt_jax.errors import InputError
from seggpt_jax.model import digests, parameters, weights


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A directory with a small file and a large one."""
  monkeypatch.setattr(digests, "SMALL", 10)
  (tmp_path / "small").write_bytes(b"1" * 10)
  (tmp_path / "large").write_bytes(b"1" * 11)
  digests.seal(tmp_path)
  return tmp_path


def flip(path):
  path.write_bytes(b"2" + path.read_bytes()[1:])


def cut(path):
  os.truncate(path, 3)


@pytest.mark.parametrize("name", ["small", "large"])
@pytest.mark.parametrize("spoil", [flip, cut, os.unlink])
def test_damage_replaces_what_was_read_and_errors_of_reading_it(folder, spoil, name):
  spoil(folder / name)
  done = []
  for fail in (False, True):
    damaged = pytest.raises(
      digests.DamageError, match=f"^{name} (is not what was written|cannot be read: No such file)"
    )
    with damaged, digests.verifying(folder):
      done.append(fail)
      if fail:
        raise KeyError("garbled")
  # A large file is read before it is known to be whole, and only if the small ones that describe it are whole.
  assert done == ([False, True] if name == "large" else [])


def test_whole_files_are_read_and_other_errors_pass(folder):
  with digests.verifying(folder):
    pass
  with pytest.raises(KeyError), digests.verifying(folder):
    raise KeyError
  (folder / digests.FILE).write_text("{")
  with pytest.raises(digests.DamageError, match=f"^{digests.FILE} is damaged$"), digests.verifying(folder):
    pytest.fail("read without digests")


def test_an_interruption_stays_one_beside_damage(folder):
  flip(folder / "large")
  with pytest.raises(KeyboardInterrupt), digests.verifying(folder):
    raise KeyboardInterrupt


@pytest.mark.parametrize("sealed", [True, False])
def test_shapes_are_checked_before_memory_is_allocated(tmp_path, monkeypatch, sealed):
  weights.save_weights(tmp_path / "w", nano_params(), NANO)
  if not sealed:
    (tmp_path / "w" / digests.FILE).unlink()
  monkeypatch.setattr(weights, "_restore", lambda *_: pytest.fail("read arrays of another shape"))
  with pytest.raises(InputError, match=r"has shape \(.*\), expected \("):
    weights.load_params(tmp_path / "w", lambda: parameters.abstract(dataclasses.replace(NANO, mlp_dim=64))[1])


def test_wrong_options_of_a_network_are_no_damage_of_its_weights(tmp_path):
  weights.save_weights(tmp_path / "w", nano_params(), NANO)
  with pytest.raises(TypeError, match="no_option"):
    weights.load_model(tmp_path / "w", no_option=1)
