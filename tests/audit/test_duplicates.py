"""Copies are found, and what only looks alike is not called a copy."""

import time

import cv2
import numpy as np
import pytest

from seggpt_jax.audit.survey import Print, near_duplicates, print_image
from seggpt_jax.synthetic.boards import BoardSource

CHANGES = {
  "same": lambda image: image,
  "jpeg": lambda image: cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_COLOR),
  "half": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
  "half, cubic": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_CUBIC),
  "darker": lambda image: np.clip(image * 0.9, 0, 255).astype(np.uint8),
  "brighter": lambda image: np.clip(image * 1.1, 0, 255).astype(np.uint8),
}


def slice_of_volume(depth):
  """A slice of a smooth volume, 233 pixels a side: folds that change little from one slice to the next."""
  y, x = np.mgrid[-1:1:233j, -1:1:233j]
  radius = np.hypot(x, y) / np.sqrt(max(1 - depth**2, 0.05))
  waves = np.random.default_rng(0).uniform(-1, 1, (40, 4)) * (40, 40, 22, 6)
  folds = sum(np.sin(a * x + b * y + c * depth + phase) for a, b, c, phase in waves) / 5
  gray = np.where(radius < 0.9, 130 + 45 * folds, 0)
  return np.repeat(np.clip(cv2.GaussianBlur(gray, (0, 0), 1), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


@pytest.fixture(scope="module")
def images():
  """Boards of any style, and every second slice of a volume."""
  source = BoardSource(24, seed=0)
  return [source[i]["image"] for i in range(24)] + [slice_of_volume(depth) for depth in np.linspace(-0.9, 0.9, 61)]


@pytest.mark.parametrize("change", CHANGES)
def test_every_copy_is_found_and_nothing_else(images, change):
  originals, copies = ([print_image(f(image)) for image in images] for f in (lambda image: image, CHANGES[change]))
  pairs, count = near_duplicates(originals, copies)
  assert {(pair.first, pair.second) for pair in pairs} == {(i, i) for i in range(len(images))}
  assert count == len(images)
  if change == "same":
    assert all(pair.difference < 1e-6 for pair in pairs)


def test_blank_images_are_no_copies_of_one_another():
  blank = [print_image(np.full((40, 50, 3), gray, np.uint8)) for gray in (0, 0, 90)]
  assert near_duplicates(blank, blank) == ([], 0)
  assert near_duplicates([], blank) == ([], 0)


def test_many_images_are_compared_in_blocks():
  """1/50 of 100,000 x 10,000: that would take a minute if this took more than a second."""
  bits = np.random.default_rng(0).integers(0, 2**63, (20_000, 4)).astype(np.uint64)
  thumbnail = np.random.default_rng(1).integers(0, 256, (48, 48), np.uint8)
  prints = [Print(each, thumbnail) for each in bits]
  start = time.perf_counter()
  pairs, count = near_duplicates(prints, prints[5000:6000])
  assert time.perf_counter() - start < 6
  assert count == 1000 and [pair.first for pair in sorted(pairs)] == list(range(5000, 6000))
