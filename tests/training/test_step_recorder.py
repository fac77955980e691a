"""The recorder of steps: a run that diverged must stop, and its log must tell what the steps did."""

import jax.numpy as jnp
import numpy as np
import pytest

from seggpt_jax.errors import InputError
from seggpt_jax.training.step import StepOutput
from seggpt_jax.training.step_recorder import StepRecorder


def output(loss, norm=1.0):
  return StepOutput(jnp.float32(loss), jnp.asarray([[3, 1], [0, 4]]), jnp.zeros((1, 2, 1, 3)), jnp.float32(norm))


@pytest.fixture
def recorder():
  return StepRecorder(2, lambda samples: f"samples {samples.tolist()}", lambda: "resume from step 5")


def test_means_are_over_the_steps_since_the_last_summary(recorder):
  for step, loss in enumerate((1.0, 3.0)):
    recorder.add(step, output(loss), np.zeros((1, 2), np.int32))
  recorder.flush(keep_pending=0)
  # IoU 3 / 4 and 4 / 5.
  assert recorder.summary() == {"loss": 2.0, "miou": pytest.approx(0.775), "gradient_norm": 1.0}
  recorder.add(2, output(5.0), np.zeros((1, 2), np.int32))
  recorder.flush(keep_pending=0)
  assert recorder.summary()["loss"] == 5.0


@pytest.mark.parametrize("numbers", [(float("nan"), 1.0), (1.0, float("inf"))])
def test_a_number_that_is_not_finite_is_named_with_its_step_once_it_is_read(recorder, numbers):
  recorder.add(6, output(*numbers), np.array([[1, 2]], np.int32))
  recorder.flush(keep_pending=1)
  with pytest.raises(InputError, match=r"step 6: found loss .* on samples \[\[1, 2\]\].*; resume from step 5"):
    recorder.flush(keep_pending=0)


def test_the_rate_counts_steps_since_it_was_last_read(recorder):
  recorder.add(0, output(1.0), np.zeros((1, 2), np.int32))
  assert recorder.steps_per_second() > 0
  assert recorder.steps_per_second() == 0
