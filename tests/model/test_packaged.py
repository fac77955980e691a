"""Packaged weights load by name and segment by example."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import seggpt_jax
from pretraining import held_out, tasks
from pretraining.pack import main, write
from seggpt_jax.errors import InputError
from seggpt_jax.model import packaged, parameters, weights
from seggpt_jax.model.config import VARIANTS


def test_the_small_weights_are_there_and_small():
  assert "small" in packaged.names()
  path = packaged.find("small")
  assert path.stat().st_size < 20e6
  config = weights.load_config("small")
  assert config == VARIANTS["small"]
  params = weights.load_params("small")
  parameters.check_shapes("small", params, parameters.abstract(config)[1])
  assert all(value.dtype == np.float16 for value in params.values())


def test_load_model_takes_the_name():
  model = seggpt_jax.load_model("small")
  shape = (1, *model.config.canvas_size, 3)
  hidden = jnp.ones((1, *model.config.grid), bool)
  colors = nnx.eval_shape(lambda network: network(jnp.zeros(shape), jnp.zeros(shape), hidden), model)
  assert colors.shape == shape and colors.dtype == jnp.float32


def test_the_small_weights_read_the_prompt():
  """The weights segment the prompted kind of object, and not the other, in pictures of a family not trained on."""
  predictor = seggpt_jax.Predictor.from_checkpoint("small")
  right, wrong = [], []
  for seed in range(8):
    episode = tasks.draw_episode(held_out.cells, np.random.default_rng(seed), 96, 2, 0.5)
    kinds = episode.present(0.02)[:2]
    for asked, other in (kinds, kinds[::-1]):
      prompt = (episode.images[0], (episode.kinds[0] == asked).astype(np.uint8))
      found = predictor.predict(episode.images[1], [prompt]).labels == 1
      for scores, kind in ((right, asked), (wrong, other)):
        truth = episode.kinds[1] == kind
        scores.append((found & truth).sum() / (found | truth).sum())
  assert np.mean(right) > 0.5
  assert np.mean(wrong) < 0.2


def test_a_name_that_is_not_there_lists_those_that_are():
  with pytest.raises(InputError, match=r"large: not found, expected .* small or drawn of the package"):
    seggpt_jax.load_model("large")


def test_a_folder_of_that_name_goes_before(tmp_path, monkeypatch):
  (tmp_path / "small").mkdir()
  monkeypatch.chdir(tmp_path)
  with pytest.raises(InputError, match="found no `params`"):
    seggpt_jax.load_model("small")


def test_packing_rounds_to_half_precision(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(packaged, "_folder", lambda: tmp_path / "packaged")
  config = VARIANTS["tiny"]
  _, shapes = parameters.abstract(config)
  generator = np.random.default_rng(0)
  params = {name: generator.standard_normal(shape.shape, np.float32) for name, shape in shapes.items()}
  weights.save_weights(tmp_path / "weights", params, config)
  main(str(tmp_path / "weights"), "mine")
  assert "mine.safetensors: 2." in capsys.readouterr().out
  assert packaged.names() == ["mine"]
  assert weights.load_config("mine") == config
  for name, value in weights.load_params("mine").items():
    np.testing.assert_array_equal(value, params[name].astype(np.float16))


def test_what_half_precision_cannot_hold_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"norm\.scale: found values beyond the range of float16"):
    write(tmp_path / "x.safetensors", {"norm.scale": np.array([1e6])}, VARIANTS["tiny"])
  assert not list(tmp_path.iterdir())
