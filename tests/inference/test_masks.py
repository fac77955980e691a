"""Networks that answer one mask for each class: groups of classes, prompts that are computed once, no third class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seggpt_jax import canvas
from seggpt_jax.inference import forward
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.predictor import Predictor
from tests.tiny_matcher import tiny_matcher

pytestmark = pytest.mark.usefixtures("without_imagenet")
OFF = InferenceOptions(head="off")


@pytest.fixture(scope="module")
def model():
  """A network whose answers are those of its linear heads, nearly."""
  hints = {"hint_weights": lambda _: np.array([0.0, 4.0, 4.0, 0.0, 0.0]), "hint_trust": lambda _: np.zeros(4)}
  return tiny_matcher(**{"to1.kernel": lambda value: 0.1 * value, **hints})


@pytest.fixture(scope="module")
def pictures():
  """Two pictures of five stripes in five colors, at the network's own size, and the stripes' labels."""
  labels = np.repeat(np.arange(5, dtype=np.uint8), 8)[None, :32].repeat(32, axis=0)
  labels[:, 30:] = 4
  colors = np.random.default_rng(2).integers(40, 220, (5, 3))
  image = colors[labels].astype(np.uint8)
  return image, image[:, ::-1].copy(), labels


def test_four_classes_are_asked_in_two_groups_and_the_likeliest_wins(model, pictures):
  image, other, labels = pictures
  found = next(Predictor(model).predict_many([(other, [(image, labels)])], OFF))
  masks = (labels[..., None] == np.arange(1, 5)).astype(np.float32)
  # A single prompt is shown mirrored as well.
  images, masks = np.stack([image, image[:, ::-1]]), np.stack([masks, masks[:, ::-1]])
  arrays = (canvas.normalize(other)[None], canvas.normalize(images)[None], jnp.asarray(masks)[None])
  probabilities = np.asarray(jax.nn.sigmoid(jax.jit(lambda *a: model.logits(*a))(*arrays)))[0]
  probabilities = np.round(probabilities * 255) / 255
  expected = np.where(probabilities.max(axis=-1) > 0.5, 1 + probabilities.argmax(axis=-1), 0)
  assert len(np.unique(expected)) > 3  # otherwise nothing was compared
  near = np.abs(probabilities.max(axis=-1) - 0.5) < 0.01  # colors are integers
  assert (found.labels == expected)[~near].mean() > 0.99


def test_a_prompt_is_computed_once_for_all_queries(model, pictures, monkeypatch):
  image, other, labels = pictures
  calls = []
  compute = forward.remember_prompt
  monkeypatch.setattr(forward, "remember_prompt", lambda *args: calls.append(1) or compute(*args))
  predictor = Predictor(model)
  first = next(predictor.predict_many([(other, [(image, labels)])], OFF))
  again, turned = predictor.predict_many([(other, [(image, labels)]), (other[:, ::-1], [(image, labels)])], OFF)
  assert len(calls) == 4  # one for each group of classes, and for the mirrored prompt
  np.testing.assert_array_equal(again.labels, first.labels)
  assert (turned.labels != first.labels).any()
  next(predictor.predict_many([(other, [(image, labels[::-1, ::-1])])], OFF))
  assert len(calls) == 8  # another label map is another prompt
