"""The small network's own design: what it may and may not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seggpt_jax import canvas
from seggpt_jax.model import matcher, parameters, weights
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.model.matcher import Matcher
from tests.tiny_matcher import CONFIG, tiny_matcher

pytestmark = pytest.mark.usefixtures("without_imagenet")


@pytest.fixture(scope="module")
def model():
  """A network that answers more than its linear heads do."""
  return tiny_matcher(hint_trust=lambda value: 0.2 * value)  # about as large as after pretraining


@pytest.fixture(scope="module")
def pixels():
  """Normalized prompts [2, 2, 32, 32, 3], their masks and queries."""
  generator = np.random.default_rng(1)
  prompts, queries = (canvas.normalize(generator.integers(0, 256, (*n, 32, 32, 3))) for n in ((2, 2), (2,)))
  masks = np.zeros((2, 2, 32, 32, 2), np.float32)
  masks[..., 4:20, 6:14, 0], masks[..., 10:30, 20:30, 1] = 1, 1
  return queries, prompts, masks


@pytest.fixture(scope="module")
def answer(model):
  return jax.jit(lambda *arrays: model.logits(*arrays))


def test_a_mask_is_answered_as_if_it_were_asked_alone(model, pixels, answer):
  queries, prompts, masks = pixels
  together = answer(queries, prompts, masks)
  for place in range(2):
    alone = answer(queries, prompts, masks[..., place : place + 1])
    np.testing.assert_allclose(together[..., place : place + 1], alone, atol=1e-4)


def test_queries_of_a_batch_do_not_see_each_other(pixels, answer):
  queries, prompts, masks = pixels
  both = answer(queries, prompts, masks)
  np.testing.assert_allclose(answer(queries[:1], prompts[:1], masks[:1]), both[:1], atol=1e-4)


def test_the_order_of_prompts_does_not_matter(pixels, answer):
  queries, prompts, masks = pixels
  np.testing.assert_allclose(
    answer(queries, prompts[:, ::-1], masks[:, ::-1]), answer(queries, prompts, masks), atol=2e-3
  )


def test_prompts_are_remembered_without_the_query(model, pixels, answer):
  queries, prompts, masks = pixels
  memory = jax.jit(lambda x, masks: model.remember(model.describe(x), masks))(prompts.reshape(-1, 32, 32, 3), masks)
  logits, _ = jax.jit(lambda x, memory: model.answer(model.describe(x), memory))(queries, memory)
  np.testing.assert_allclose(logits, answer(queries, prompts, masks), atol=1e-4)


def test_it_is_called_as_a_seggpt_is(model, pixels, answer):
  queries, prompts, masks = pixels
  colors = np.concatenate([masks, np.zeros_like(masks[..., :1])], axis=-1) * 255
  targets = canvas.normalize(np.concatenate([colors, np.zeros_like(colors)], axis=2).reshape(4, 64, 32, 3))
  images = jnp.concatenate([prompts, jnp.broadcast_to(queries[:, None], prompts.shape)], axis=2).reshape(4, 64, 32, 3)
  hidden = np.broadcast_to(canvas.lower_half_mask(CONFIG.grid), (4, *CONFIG.grid))
  found = jax.jit(lambda *arrays: model(*arrays, prompts_per_query=2))(images, targets, hidden)
  expected = jax.nn.sigmoid(answer(queries, prompts, masks))
  lower = canvas.unnormalize(found)[::2, 32:] / 255
  np.testing.assert_allclose(lower[..., :2], expected, atol=1e-4)
  np.testing.assert_allclose(found[:, :32], targets[:, :32], atol=1e-5)


def test_everything_has_a_gradient(model, pixels):
  graph, params = parameters.split(model)
  gradients = jax.jit(jax.grad(lambda params: jnp.sum(parameters.merge(graph, params).logits(*pixels) ** 2)))(params)
  still = {name for name, value in gradients.items() if np.abs(value).max() == 0}
  # The first linear head of each prompt's class is fitted in closed form, and `cheap_features` have no parameters.
  assert {name for name in still if not name.startswith("features.")} <= {"blocks.2.attn.qkv.bias"}, still


def test_a_kernel_head_finds_the_middle_of_three_grays_and_says_that_it_explains_it(model):
  levels = np.random.default_rng(2).integers(0, 3, (2, 8, 8)).repeat(4, axis=1).repeat(4, axis=2)
  grays = canvas.normalize(np.repeat(levels[..., None] * 100, 3, axis=-1))
  masks = np.stack([levels[:1] == 1, np.random.default_rng(3).random((1, 32, 32)) > 0.5], axis=-1).astype(np.float32)
  query = jax.jit(lambda x: model.describe(x).heads[2])(grays[1:])
  memory = jax.jit(model.remember)(model.describe(grays[:1]), masks[:, None])
  gram, target = memory.gram[:, 0], memory.target[:, 0]
  weights = matcher._solve(gram, target, 64)
  found = jnp.einsum("btpf,btfc->btpc", matcher._head_features(query, 2), weights[:, 2:])
  truth = levels[1, ::2, ::2].reshape(-1) == 1
  assert found[0, 0, truth, 0].min() > 0.5 > found[0, 0, ~truth, 0].max()
  explained = matcher._explained(gram, target, weights, 64)
  assert explained[0, 2, 0] > 0.8 > 0.4 > explained[0, 2, 1]


def test_the_heads_are_fitted_in_one_call(model, pixels):
  # XLA's CPU runtime (JAX 0.10) hangs now and then in a program with two.
  assert str(jax.make_jaxpr(model.logits)(*pixels)).count(" cholesky") == 1


def test_it_comes_back_from_disk(model, tmp_path):
  weights.save_weights(tmp_path / "weights", parameters.split(model)[1], CONFIG)
  loaded = weights.load_model(tmp_path / "weights")
  assert isinstance(loaded, Matcher) and loaded.config == CONFIG
  for name, value in parameters.split(loaded)[1].items():
    np.testing.assert_array_equal(value, parameters.split(model)[1][name])


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"backbone": "resnet"}, "backbone: found 'resnet', expected one of efficientnet_lite0"),
    ({"patch_size": 16}, "patch_size: found 16 with a backbone, expected 8"),
    ({"canvas_size": (48, 24)}, "canvas_size: found 48 x 24 with a backbone"),
  ],
)
def test_architectures_that_cannot_be_built_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    SegGPTConfig.from_dict(CONFIG.to_dict() | changes)
