"""Programs for chips that are not there. Needs libtpu, TPUs' own compiler: `make tpu`."""

import pytest

from benchmarks import absent, children, chips
from seggpt_jax.model.config import VARIANTS


@pytest.mark.slow
@pytest.mark.tpu
def test_the_small_networks_step_compiles_for_a_tpu_with_its_kernels():
  """Splash attention, forward and backward, once for both streams and once for the merged one, in loops over blocks."""
  found = children.run_module("compiled_step", "--chip=v5e", "--variant=drawn", "--batch=4")
  assert found["kernels"] == 6
  assert found["collectives"] == []
  # Parameters and two moments in float32.
  assert 3 * 4 * 3.1e6 < found["state_bytes"] < 3 * 4 * 3.3e6
  assert found["argument_bytes"] + found["temporary_bytes"] < absent.chip("v5e").memory / 50


def test_the_least_time_grows_with_the_work():
  config, chip = VARIANTS["vit_large"], absent.chip("v5e")
  found = {"state_bytes": 3e9, "collectives": [["all-gather", 8 * 10**9, 8, 1, 2]]}
  times = chips.predict("train", config, found, 4, "full", chip)
  without_remat = chips.predict("train", config, found, 4, "none", chip)
  alone = chips.predict("predict", config, found, 4, "none", chip)
  # Every canvas of ViT-L takes 1.5 TFLOP forward and about four times as much with recomputation.
  assert 4 * 4 * 1.4e12 / 197e12 < times["compute"] < 4 * 4 * 1.6e12 / 197e12
  assert without_remat["compute"] < times["compute"] and without_remat["memory"] < times["memory"]
  assert alone["compute"] == pytest.approx(without_remat["compute"] / 3, rel=0.01)
  assert times["network"] == pytest.approx(2 * 7e9 / 200e9)


@pytest.mark.parametrize("name", absent.NAMES)
def test_every_chip_has_rates(name):
  assert absent.chip(name).memory > 1e10


def test_a_slice_that_does_not_exist_is_refused():
  with pytest.raises(ValueError, match="v5e: found 1 x 3 chips, expected one of 1, 4, 8"):
    absent.make_mesh("v5e", 1, 3)
