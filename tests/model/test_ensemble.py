"""The ensemble as inference runs it, against the network on whole canvases: both must predict the same."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seggpt_jax.model import ensemble, parameters
from seggpt_jax.model.seggpt import SegGPT


def model(peers):
  return parameters.merge(parameters.abstract(peers.config)[0], peers.params)


def compiled(function, **options):
  """Compiles as one program what would otherwise be one for every operation."""
  return nnx.jit(functools.partial(function, **options))


def draw(config, queries, prompts, seed=0):
  """Draws queries, prompts, the targets of both, and a patch mask with holes; all but the mask are normalized."""
  generator, half = np.random.default_rng(seed), (config.canvas_size[0] // 2, config.canvas_size[1])
  shapes = [(queries, *half, 3), *[(queries, prompts, *half, 3)] * 2, (queries, *half, 3)]
  mask = generator.random((queries, config.grid[0] // 2, config.grid[1])) < 0.7
  return *(generator.normal(size=shape).astype(np.float32) for shape in shapes), mask


def on_canvases(network: SegGPT, queries, prompts, targets, query_targets, mask, seg_type):
  """Runs the network on whole canvases and returns the lower half of the first canvas of each query."""
  count = prompts.shape[1]

  def stacked(upper, lower):
    lower = np.repeat(lower[:, None], count, axis=1)
    return jnp.asarray(np.concatenate([upper, lower], axis=2).reshape(-1, 2 * lower.shape[2], *lower.shape[3:]))

  hidden = stacked(np.zeros((*prompts.shape[:2], *mask.shape[1:]), bool), mask)
  colors = compiled(SegGPT.__call__, seg_type=seg_type, prompts_per_query=count)(
    network, stacked(prompts, queries), stacked(targets, query_targets), hidden
  )
  return np.asarray(colors)[::count, queries.shape[1] :]


@pytest.mark.parametrize("queries, prompts, seg_type", [(3, 1, "semantic"), (2, 3, "instance"), (1, 9, "semantic")])
def test_predictions_equal_those_on_whole_canvases(peers, queries, prompts, seg_type):
  """Reference: `SegGPT.__call__`. Float32, 3e-5 of the largest color. Nine prompts attend in two portions."""
  drawn = draw(peers.config, queries, prompts)
  expected = on_canvases(model(peers), *drawn, seg_type)
  found = np.asarray(compiled(ensemble.predict_queries, seg_type=seg_type)(model(peers), *drawn))
  np.testing.assert_allclose(found, expected, atol=3e-5 * np.abs(expected).max())


def test_one_query_does_not_see_another(peers):
  drawn = draw(peers.config, 2, 3)
  predict = compiled(ensemble.predict_queries)
  together = np.asarray(predict(model(peers), *drawn))
  for index in range(2):
    alone = np.asarray(predict(model(peers), *(array[index : index + 1] for array in drawn)))
    np.testing.assert_allclose(alone[0], together[index], atol=3e-5 * np.abs(together).max())


def test_a_query_is_computed_once_for_all_its_prompts(peers):
  """The compiler counts far fewer operations than on whole canvases, half of which are the same query."""
  graph, params = parameters.split(model(peers))
  drawn = draw(peers.config, 1, 8)

  def count(function):
    compiled = jax.jit(lambda params: function(parameters.merge(graph, params))).lower(params).compile()
    return compiled.cost_analysis()["flops"]

  def canvases(network):
    shape = (8, *peers.config.canvas_size, 3)
    mask = np.zeros((8, *peers.config.grid), bool)
    return network(jnp.zeros(shape), jnp.zeros(shape), mask, prompts_per_query=8)

  assert count(lambda network: ensemble.predict_queries(network, *drawn)) < 0.75 * count(canvases)
