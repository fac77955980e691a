"""Palettes: colors that cannot be told apart, by the decoder or by a person, make masks useless."""

import itertools

import cv2
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
  # A uniform color has mean 127.5 and deviation 74. The least distance moves both colors outwards a little.
  np.testing.assert_allclose(drawn.mean(axis=0), 127.5, atol=12)
  assert (drawn.std(axis=0) > 65).all()


def test_fixed_palette_is_black_and_white_first_and_always_the_same():
  colors = palette.fixed_palette(20)
  np.testing.assert_array_equal(colors[:2], [[0, 0, 0], [255, 255, 255]])
  np.testing.assert_array_equal(palette.fixed_palette(5), colors[:5])
  assert min(distances(colors)) > 60
  np.testing.assert_array_equal(palette.sample_palette(np.random.default_rng(3), 4, "fixed"), colors[:4])


def test_soft_edges_between_two_classes_decode_to_one_of_the_two():
  """Networks and resizing blur the seam between two colors. No third class may appear along it."""
  colors = palette.fixed_palette(8)
  blends = np.linspace(0, 1, 21)[:, None]
  for first, second in itertools.combinations(range(8), 2):
    line = (1 - blends) * colors[first] + blends * colors[second]
    found = palette.decode(jnp.asarray(line, jnp.float32)[None, None], colors[None])
    nearest = np.linalg.norm(line - colors[found[0, 0]].astype(float), axis=1)
    ends = np.minimum(*(np.linalg.norm(line - colors[k].astype(float), axis=1) for k in (first, second)))
    np.testing.assert_allclose(nearest, ends, atol=1e-4)


def seen_by(colors):
  """Returns CIELAB values of colors for normal vision and for people without red, green or blue cones.

  The matrices are Machado et al.'s for severity 1.0 ("A Physiologically-based Model for Simulation of Color Vision
  Deficiency", 2009), applied to linear RGB.
  """
  values = np.asarray(colors) / 255.0
  linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
  vision = np.array(
    [
      np.eye(3),
      [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
      [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
      [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ]
  )
  seen = np.clip(np.einsum("vij,nj->vni", vision, linear), 0, 1).astype(np.float32)
  return np.stack([cv2.cvtColor(rgb[None], cv2.COLOR_LRGB2LAB)[0] for rgb in seen])


def test_the_first_eight_display_colors_are_distinct_also_for_color_blind_people():
  """A CIELAB distance of 2.3 is just noticeable; these are at least 25 apart, and 50 for normal vision."""
  lab = seen_by(palette.display_palette(9)[1:])
  for values, least in zip(lab, (50, 25, 25, 25), strict=True):
    assert min(distances(values)) > least
  assert min(distances(palette.display_palette(9))) > 100


def test_display_colors_are_distinct_and_visible_on_black_and_on_white():
  """Class 1 was white and invisible on pale images. Contrast ratios as WCAG 2 defines them."""
  colors = palette.display_palette(256)
  assert colors.shape == (256, 3) and colors.dtype == np.uint8
  assert len(np.unique(colors, axis=0)) == 256
  np.testing.assert_array_equal(colors[0], 0)
  luminance = palette.relative_luminance(colors[1:])
  on_white, on_black = 1.05 / (luminance + 0.05), (luminance + 0.05) / 0.05
  assert on_white.min() > 1.5 and on_black.min() > 1.5
  assert on_white[0] > 3 and on_black[0] > 3


@pytest.mark.parametrize("num_classes", [1, 2, 9, 30])
def test_a_smaller_display_palette_is_the_start_of_a_larger_one(num_classes):
  np.testing.assert_array_equal(palette.display_palette(num_classes), palette.display_palette(256)[:num_classes])


def test_unknown_mode_is_refused():
  with pytest.raises(ValueError, match="'gray', expected one of random, black_background, fixed"):
    palette.sample_palette(np.random.default_rng(0), 2, "gray")


def obvious_decode(colors, palettes):
  """Decodes with the distances of all pixels to all colors in float64 and argmin, which takes the first of equals."""
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


def test_coloring_then_decoding_gives_the_labels_back_even_through_noise():
  generator = np.random.default_rng(0)
  labels = generator.integers(0, 6, (4, 8, 8), np.uint8)
  palettes = np.stack([palette.sample_palette(generator, 6) for _ in range(4)])
  colored = palette.color_labels(jnp.asarray(labels), jnp.asarray(palettes))
  np.testing.assert_array_equal(colored[2], palettes[2][labels[2]])
  # Noise of less than half the least distance cannot change the nearest color.
  noise = generator.uniform(-1, 1, colored.shape) * (0.49 * palette.min_distance(6) / 3**0.5)
  np.testing.assert_array_equal(
    palette.decode(colored + jnp.asarray(noise, jnp.float32), jnp.asarray(palettes)), labels
  )
