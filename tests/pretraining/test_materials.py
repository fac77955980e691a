"""Materials and shapes: what a recipe promises holds for what is painted."""

import numpy as np
import pytest

from pretraining import materials, shapes


@pytest.mark.parametrize("pattern", materials.PATTERNS)
def test_paintings_of_a_material_share_colors_and_no_pixels(pattern):
  colors = np.array([[40, 60, 80], [80, 100, 120]], np.float32)
  material = materials.Material(pattern, colors, frequency=6.0, angle=0.3, sharpness=0.5, roughness=2.0)
  first, second = (material.paint(np.random.default_rng(seed), 64) for seed in (0, 1))
  assert first.shape == (64, 64, 3) and first.dtype == np.float32
  assert not np.array_equal(first, second)
  # Between its two colors, but for the roughness.
  assert first.min() > 40 - 12 and first.max() < 120 + 12
  assert np.abs(first.mean(axis=(0, 1)) - second.mean(axis=(0, 1))).max() < 25


def test_smooth_noise_has_unit_variance_and_no_mean():
  fields = np.stack([materials.smooth_noise(np.random.default_rng(seed), 32, 4.0) for seed in range(400)])
  np.testing.assert_allclose(fields.std(axis=0), 1.0, atol=0.15)
  np.testing.assert_allclose(fields.mean(axis=0), 0.0, atol=0.2)


def test_materials_drawn_together_differ_in_color():
  distances = []
  for seed in range(100):
    first, second = materials.random_materials(np.random.default_rng(seed), 2)
    distances.append(np.linalg.norm(first.color - second.color))
  assert np.quantile(distances, 0.05) > 60


def test_a_retextured_material_differs_in_its_pattern_alone():
  generator = np.random.default_rng(0)
  material = materials.random_material(generator)
  other = materials.retextured(material, generator)
  assert other.pattern != material.pattern
  np.testing.assert_array_equal(other.colors, material.colors)


def test_varying_by_nothing_changes_nothing():
  material = materials.random_material(np.random.default_rng(0))
  assert materials.vary(material, np.random.default_rng(1), 0.0) is material


def test_a_disc_covers_its_area_and_a_hole_takes_some_away():
  angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
  points = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
  disc = shapes.fill(shapes.Outline(points), 64, (32.0, 32.0), 20.0)
  assert disc.sum() == pytest.approx(np.pi * 20**2, rel=0.06)
  ring = shapes.fill(shapes.Outline(points, hole=0.5), 64, (32.0, 32.0), 20.0)
  assert ring.sum() == pytest.approx(0.75 * np.pi * 20**2, rel=0.08)
  assert not ring[32, 32]


def test_outlines_stay_within_the_unit_disc():
  for seed in range(100):
    points = shapes.random_outline(np.random.default_rng(seed)).points
    assert np.linalg.norm(points, axis=1).max() < 1.01


def test_dilation_grows_in_four_directions():
  mask = np.zeros((5, 5), bool)
  mask[2, 2] = True
  assert shapes.dilate(mask).sum() == 5
  assert shapes.dilate(mask, 2).sum() == 13
