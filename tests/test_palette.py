"""Colors and labels: a palette that cannot be decoded, or is decoded wrongly, costs masks."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from seggpt_jax import palette


def distances(colors):
  colors = colors.astype(float)
  return [np.linalg.norm(a - b) for a, b in itertools.combinations(colors, 2)]


@pytest.mark.parametrize("mode", ["random", "black_background"])
@pytest.mark.parametrize("num_classes", [2, 3, 7, 20])
def test_sampled_colors_are_far_enough_apart_to_decode(mode, num_classes):
  generator = np.random.default_rng(0)
  for _ in range(30):
    colors = palette.sample_palette(generator, num_classes, mode)
    assert colors.shape == (num_classes, 3) and colors.dtype == np.uint8
    assert min(distances(colors)) >= palette.min_distance(num_classes)


def test_black_background_is_black_and_the_rest_random():
  drawn = np.array([palette.sample_palette(np.random.default_rng(s), 3, "black_background") for s in range(200)])
  assert (drawn[:, 0] == 0).all()
  assert len(np.unique(drawn[:, 1:].reshape(-1, 3), axis=0)) > 390


def test_random_palettes_use_the_whole_cube_for_every_class():
  drawn = np.array([palette.sample_palette(np.random.default_rng(s), 2, "random") for s in range(1000)]).astype(float)
  # A uniform color has mean 127.5 and deviation 74; keeping the two apart pushes both outwards a little.
  np.testing.assert_allclose(drawn.mean(axis=0), 127.5, atol=12)
  assert (drawn.std(axis=0) > 65).all()


def test_fixed_palette_is_black_and_white_first_and_always_the_same():
  colors = palette.fixed_palette(20)
  np.testing.assert_array_equal(colors[:2], [[0, 0, 0], [255, 255, 255]])
  np.testing.assert_array_equal(palette.fixed_palette(5), colors[:5])
  assert min(distances(colors)) > 60
  np.testing.assert_array_equal(palette.sample_palette(np.random.default_rng(3), 4, "fixed"), colors[:4])


def test_soft_edges_between_two_classes_decode_to_one_of_the_two():
  """Networks blur the seam of two colors, and so does resizing: no third class may appear along it."""
  colors = palette.fixed_palette(8)
  blends = np.linspace(0, 1, 21)[:, None]
  for first, second in itertools.combinations(range(8), 2):
    line = (1 - blends) * colors[first] + blends * colors[second]
    found = palette.decode(jnp.asarray(line, jnp.float32)[None, None], colors[None])
    nearest = np.linalg.norm(line - colors[found[0, 0]].astype(float), axis=1)
    ends = np.minimum(*(np.linalg.norm(line - colors[k].astype(float), axis=1) for k in (first, second)))
    np.testing.assert_allclose(nearest, ends, atol=1e-4)


def test_unknown_mode_is_refused():
  with pytest.raises(ValueError, match="'gray', expected one of random, black_background, fixed"):
    palette.sample_palette(np.random.default_rng(0), 2, "gray")


def obvious_decode(colors, palettes):
  """Distances of every pixel to every color in float64, then argmin, which takes the first of equals."""
  difference = colors[:, :, :, None].astype(float) - palettes[:, None, None].astype(float)
  return np.argmin(np.linalg.norm(difference, axis=-1), axis=-1)


@pytest.mark.parametrize("num_classes", [1, 2, 16])
def test_decode_is_the_nearest_color(num_classes):
  generator = np.random.default_rng(0)
  colors = generator.uniform(0, 255, (3, 17, 9, 3)).astype(np.float32)
  palettes = generator.integers(0, 256, (3, num_classes, 3), np.uint8)
  labels = palette.decode(jnp.asarray(colors), jnp.asarray(palettes))
  assert labels.dtype == jnp.int32
  np.testing.assert_array_equal(labels, obvious_decode(colors, palettes))


def test_decode_gives_ties_to_the_lower_index():
  palettes = np.array([[[0, 0, 0], [255, 255, 255], [0, 0, 0], [100, 0, 0]]], np.uint8)
  colors = np.array([[[[0, 0, 0], [50, 0, 0], [255, 255, 255]]]], np.float32)
  np.testing.assert_array_equal(palette.decode(jnp.asarray(colors), jnp.asarray(palettes)), [[[0, 0, 1]]])


def test_painting_then_decoding_gives_the_labels_back_even_through_noise():
  generator = np.random.default_rng(0)
  labels = generator.integers(0, 6, (4, 8, 8), np.uint8)
  palettes = np.stack([palette.sample_palette(generator, 6) for _ in range(4)])
  painted = palette.color_labels(jnp.asarray(labels), jnp.asarray(palettes))
  np.testing.assert_array_equal(painted[2], palettes[2][labels[2]])
  # Noise of less than half the least distance cannot change the nearest color.
  noise = generator.uniform(-1, 1, painted.shape) * (0.49 * palette.min_distance(6) / 3**0.5)
  np.testing.assert_array_equal(
    palette.decode(painted + jnp.asarray(noise, jnp.float32), jnp.asarray(palettes)), labels
  )
