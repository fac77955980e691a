"""A head that is fitted to the prompts finds by texture what they mark, with every network."""

from __future__ import annotations

import numpy as np

from seggpt_jax.inference import heads
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.video import segment_frames


def drawn(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns noise with a striped and a bright square, classes 1 and 2."""
  generator = np.random.default_rng(seed)
  image = generator.normal(110, 15, (height, width, 3))
  labels = np.zeros((height, width), np.uint8)
  side = height // 3
  for index in (1, 2):
    top = generator.integers(0, height - side)
    left = (index - 1) * width // 2 + generator.integers(0, width // 2 - side)
    labels[top : top + side, left : left + side] = index
  image[labels == 2] += 60
  image += 60 * ((labels == 1) * np.sign(np.sin(np.arange(width) * np.pi / 3)))[..., None]
  return image.clip(0, 255).astype(np.uint8), labels


def iou(found: np.ndarray, truth: np.ndarray) -> float:
  return float((found & truth).sum() / (found | truth).sum())


def found_by(head: heads.Head, image: np.ndarray) -> np.ndarray:
  return head.logits(heads.describe(image)) > 0


def test_it_finds_what_prompts_of_different_sizes_mark_and_ignores_255():
  """Wrongly labeled pixels that are marked as ignored teach nothing."""
  first, second = drawn(0, 96, 144), drawn(1, 120, 120)
  second[1][second[1] == 2] = 255
  head = heads.fit([first, second])
  image, truth = drawn(2, 150, 200)
  found = found_by(head, image)
  assert head.classes == (1, 2) and found.shape == (150, 200, 2)
  for place, index in enumerate(head.classes):
    assert iou(found[..., place], truth == index) > 0.8


def test_a_few_pixels_or_no_background_are_enough():
  image, labels = drawn(0, 96, 144)
  spot = np.zeros_like(labels)
  spot[tuple(np.argwhere(labels == 2)[:4].T)] = 2
  assert np.isfinite(heads.fit([(image, spot)]).logits(heads.describe(image))).all()
  full = np.where(labels == 1, 1, 2).astype(np.uint8)
  found = found_by(heads.fit([(image, full)]), image)
  assert iou(found[..., 0], labels == 1) > 0.8
  one = found_by(heads.fit([(image, np.ones_like(labels))]), image)
  assert one.mean() > 0.9


def test_there_is_none_without_a_class_or_with_too_many():
  image, labels = drawn(0, 96, 144)
  assert heads.fit([(image, np.where(labels > 0, 255, 0))]) is None
  many = np.arange(labels.size).reshape(labels.shape) % (heads.MOST_CLASSES + 2)
  assert heads.fit([(image, many)]) is None


def test_a_huge_prompt_takes_bounded_memory():
  image, labels = np.zeros((3000, 1000, 3), np.uint8), np.zeros((3000, 1000), np.uint16)
  small, known = heads.shrunk(image, labels)
  assert small.shape[:2] == known.shape and max(known.shape) <= 640


def test_a_predictor_uses_it_if_asked_and_fits_it_once(model, monkeypatch):
  """The tiny network answers nonsense: what is found comes from the head, prepared prompts included."""
  predictor = Predictor(model)
  prompt, (image, _) = drawn(0, 96, 144), drawn(2, 96, 144)
  fits = []
  fit = heads.fit
  monkeypatch.setattr(heads, "fit", lambda prompts: fits.append(1) or fit(prompts))
  plain = predictor.predict(image, [prompt])
  off, on = (predictor.predict(image, [prompt], head=choice) for choice in ("off", "on"))
  np.testing.assert_array_equal(plain.colors, off.colors)
  assert (on.colors != off.colors).any() and len(fits) == 1
  prepared = predictor.prepare_prompt(*prompt)
  again, other = predictor.predict_many([(image, [prepared]), (image[::-1], [prompt])], InferenceOptions(head="on"))
  np.testing.assert_array_equal(again.labels, on.labels)
  assert len(fits) == 1 and other.labels.any()


def test_ignored_pixels_of_a_prompt_do_not_count_in_videos_either(model):
  predictor, (image, labels) = Predictor(model), drawn(0, 96, 144)
  labels[:, 60:84] = 255
  options = InferenceOptions(head="on")
  expected = predictor.predict(drawn(2, 96, 144)[0], [(image, labels)], options=options)
  (found,) = segment_frames(predictor, [drawn(2, 96, 144)[0]], [(image, labels)], options)
  np.testing.assert_array_equal(found.labels, expected.labels)


def test_it_is_on_by_default_for_packaged_weights_alone(weights_directory, monkeypatch):
  """A network that was trained on the task at hand keeps its answers."""
  prompt, asked = drawn(0, 96, 144), []
  monkeypatch.setattr(heads, "fit", lambda prompts: asked.append(len(prompts)))
  for name, expected in (("small", [1]), (weights_directory, [])):
    asked.clear()
    Predictor.from_checkpoint(name)._start(prompt[0], [prompt], None, InferenceOptions())
    assert asked == expected
