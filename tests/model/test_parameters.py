"""The flat dictionary of parameters: damaged parameters are named, and a fingerprint identifies equal ones."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.nano import NANO
from seggpt_jax.errors import InputError
from seggpt_jax.model import parameters
from tests.loud_network import loud_params

KERNEL = "blocks.1.attn.qkv.kernel"


def test_the_fingerprint_depends_on_values_and_not_on_their_storage():
  params = {name: np.float16(value).astype(np.float32) for name, value in loud_params(NANO).items()}
  known = parameters.fingerprint(params)
  assert re.fullmatch("[0-9a-f]{32}", known)
  half = {name: value.astype(np.float16) for name, value in reversed(params.items())}
  on_device = {name: jnp.asarray(value) for name, value in params.items()}
  strided = {name: np.asfortranarray(value) for name, value in params.items()}
  assert [parameters.fingerprint(same) for same in (half, on_device, strided)] == [known] * 3
  name = "blocks.1.attn.qkv.kernel"
  moved = params[name].copy()
  moved[3, 5] = np.nextafter(moved[3, 5], np.float32(np.inf))
  renamed = {"other" if key == name else key: value for key, value in params.items()}
  others = [params | {name: moved}, params | {name: params[name].T}, params | {name: params[name][None]}, renamed]
  assert known not in [parameters.fingerprint(other) for other in others]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda params: params.pop(KERNEL), f"weights: 1 missing parameters, first '{KERNEL}'"),
    (lambda params: params.update(extra=np.zeros(3)), "weights: 1 unexpected parameters, first 'extra'"),
    (
      lambda params: params.update({KERNEL: np.zeros((16, 47))}),
      f"weights: {KERNEL} has shape (16, 47), expected (16, 48)",
    ),
  ],
)
def test_parameters_that_do_not_fit_the_architecture_are_named(change, message):
  _, expected = parameters.abstract(NANO)
  params = loud_params(NANO)
  parameters.check_shapes("weights", params, expected)
  change(params)
  with pytest.raises(InputError, match=re.escape(message)):
    parameters.check_shapes("weights", params, expected)


def test_parameters_that_are_not_finite_are_named_and_large_ones_are_not():
  """Weights of a training that diverged would give masks of one class without any error."""
  params = {"large": np.full(4, 3e38, np.float32), "norm.scale": np.array([1, np.nan, np.inf], np.float32)}
  with pytest.raises(InputError, match=r"weights: norm\.scale holds 2 values that are not finite"):
    parameters.check_finite("weights", params)
  parameters.check_finite("weights", {"large": params["large"]})  # their float32 sum overflows


def test_resized_parameters_predict_as_the_stored_ones_on_the_new_canvas(oblong):
  """Fine-tuning on another canvas starts from what the released weights predict there.

  Reference: the network, which resizes its tables at every call. Float32, 2e-5 where colors are O(1),
  because NumPy and XLA round the resized tables differently.
  """
  params = {name: np.asarray(value) for name, value in oblong.params.items()}
  resized = parameters.resize_canvas(params, oblong.config, (96, 48))
  generator = np.random.default_rng(0)
  images, targets = (jnp.asarray(generator.normal(size=(1, 96, 48, 3)), jnp.float32) for _ in range(2))
  mask = jnp.asarray(generator.random((1, 12, 6)) < 0.5)
  graph, _ = parameters.abstract(oblong.config)
  found, wanted = (
    jax.jit(lambda params: parameters.merge(graph, params)(images, targets, mask))(p) for p in (resized, params)
  )
  assert resized["blocks.0.attn.rel_pos_h"].shape == (23, params["blocks.0.attn.rel_pos_h"].shape[1])
  np.testing.assert_allclose(found, wanted, atol=2e-5, rtol=0)
