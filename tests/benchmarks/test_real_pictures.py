"""The benchmark on real pictures: if its columns are wrong, the network is compared with the wrong thing."""

import numpy as np
import pytest

from benchmarks import real_pictures


def striped(generator, left):
  """Returns an image with stripes in a square of class 3, and its labels."""
  image, labels = generator.integers(90, 130, (96, 128, 3)), np.zeros((96, 128), np.uint8)
  image[20:70, left : left + 50 : 4] = 250
  labels[20:70, left : left + 50] = 3
  return image.astype(np.uint8), labels


@pytest.mark.parametrize("answer", [real_pictures.forest, real_pictures.head_alone])
def test_answers_without_a_network_find_a_texture_elsewhere(answer):
  generator = np.random.default_rng(0)
  prompt, (image, truth) = striped(generator, 10), striped(generator, 60)
  found = answer(image, [prompt])
  assert set(np.unique(found)) <= {0, 3}
  assert np.sum((found == 3) & (truth == 3)) / np.sum((found == 3) | (truth == 3)) > 0.7
  assert np.mean(real_pictures.copied(image, [prompt]) == prompt[1]) == 1
