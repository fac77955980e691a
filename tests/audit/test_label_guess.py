"""Guessing label formats: a wrong guess trains on other classes than were drawn, so each doubt has to be said."""

import io
import re

import cv2
import numpy as np
import pytest
from PIL import Image

from seggpt_jax.audit.label_guess import guess_format, made_up
from seggpt_jax.audit.label_values import StoredValues, file_values
from seggpt_jax.formats.images import open_image
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.formats.stored_labels import read_stored

BLACK, RED, BLUE, WHITE, PINK = (0, 0, 0), (255, 0, 0), (0, 0, 255), (255, 255, 255), (250, 50, 83)


def scene(seed, size=96, values=(1, 2)):
  """A label with four discs in these values."""
  generator, label = np.random.default_rng(seed), np.zeros((size, size), np.uint8)
  for i in range(4):
    row, col = generator.integers(size // 6, size - size // 6, 2).tolist()
    cv2.circle(label, (row, col), size // 8, int(values[i % len(values)]), -1)
  return label


def outlined(label, value):
  """The label with borders 4 pixels wide in this value."""
  kernel = np.ones((5, 5), np.uint8)
  return np.where(cv2.dilate(label, kernel) != cv2.erode(label, kernel), np.uint8(value), label)


def shrunk(pixels):
  return cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def colored(label, *colors):
  return np.array(colors, np.uint8)[label]


def with_palette(indices, *colors):
  image = Image.fromarray(indices)
  image.putpalette([channel for color in colors for channel in color])
  return image


def stored_values(make, count=6, file_format="PNG"):
  stored = StoredValues()
  for i in range(count):
    stream = io.BytesIO()
    image = make(i)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, file_format)
    stored.add(file_values(read_stored(open_image(stream.getvalue(), f"{i}.png"), f"{i}.png"), f"{i}.png"))
  return stored


def table(*values):
  return LabelFormat("table", table=values)


@pytest.mark.parametrize(
  ("make", "expected", "doubt"),
  [
    # 255 is a class among gray levels, and the value to ignore among class indices.
    (lambda i: scene(i, values=(128, 255)), table(0, 128, 255), "255 is taken as a class.*data.ignore=.255,"),
    (lambda i: scene(i, values=(85, 170, 255)), table(0, 85, 170, 255), "255 is taken as a class"),
    (lambda i: scene(i, values=(60, 255, 255, 255)), table(0, 60, 255), "255 is taken as a class"),
    (lambda i: outlined(scene(i, 400), 255), LabelFormat(ignore=(255,)), ""),
    (
      lambda i: scene(i, values=(1, 255)),
      LabelFormat(ignore=(255,)),
      "255 is taken as pixels to ignore.*if it is a class",
    ),
    (
      lambda i: outlined(scene(i, 400, (5, 15)), 255),
      LabelFormat("table", table=(0, 5, 15), ignore=(255,)),
      "255 is taken as pixels to ignore",
    ),
    # Labels of 16 bits may have larger values than 255.
    (
      lambda i: np.array([0, 500, 1000, 255], np.uint16)[outlined(scene(i, 400), 3)],
      LabelFormat("table", table=(0, 500, 1000), ignore=(255,)),
      "255 is taken as pixels to ignore",
    ),
    (lambda i: outlined(scene(i, 96, (255,)), 128), table(0, 128, 255), "128 is only a rim.*data.threshold=127"),
    # The background may be the brighter one, or a color.
    (lambda i: 255 - scene(i, values=(255,)), LabelFormat("binary"), r"255 fills 8.% .*data.table=\(255, 0\)"),
    (lambda i: 1 - scene(i, values=(1,)), LabelFormat(), r"1 fills 8.% .*data.table=\(1, 0\)"),
    (
      lambda i: colored(scene(i), PINK, BLUE, BLACK),
      table(PINK, BLACK, BLUE),
      ".250, 50, 83. is taken as the background",
    ),
    (lambda i: colored(scene(i), BLACK, BLUE, RED), table(BLACK, BLUE, RED), ""),
    (lambda i: colored(scene(i)[:60], RED, BLUE, BLACK), table(RED, BLACK, BLUE), "is taken as the background"),
    (lambda i: colored(scene(i), WHITE, BLUE, RED), table(WHITE, BLUE, RED), "is it"),
    # Palettes: grays are what they show; the order of colors decides.
    (lambda i: with_palette(1 - scene(i, values=(1,)), WHITE, BLACK), LabelFormat("binary"), ""),
    (lambda i: with_palette(1 - scene(i, values=(1,)), RED, BLACK), table(BLACK, RED), ""),
    (lambda i: with_palette(scene(i), BLACK, RED, BLUE), LabelFormat(), ""),
    (lambda i: Image.fromarray(colored(scene(i), BLACK, RED, BLUE)).quantize(3), table(BLACK, BLUE, RED), ""),
    # Smooth edges.
    (lambda i: shrunk(scene(i, 192, (255,))), LabelFormat("binary", 127), ""),
    (lambda i: shrunk(scene(i, 192, (128, 255))), LabelFormat("binary", 127), "classes cannot be got back"),
    (lambda i: shrunk(colored(scene(i, 192), BLACK, RED, BLUE)), table(BLACK, BLUE, RED), "antialias"),
    (lambda i: shrunk(colored(scene(i, 192, (1,)), BLACK, RED)), table(BLACK, RED), "antialias"),
  ],
)
def test_the_format_is_guessed_and_what_else_it_could_be_is_said(make, expected, doubt):
  guess = guess_format(stored_values(make))
  assert guess.label_format == expected
  assert bool(guess.doubt) == bool(doubt)
  assert re.search(doubt, guess.doubt)


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP"])
def test_labels_compressed_with_loss_are_masks_or_lost(file_format):
  def guess(*values):
    return guess_format(
      stored_values(lambda i: Image.fromarray(scene(i, values=values)).convert("RGB"), 6, file_format)
    )

  assert guess(255).label_format == LabelFormat("binary", 127) and not guess(255).doubt
  assert "cannot be got back" in guess(1, 2).doubt
  assert "have a gray between, away from edges" in guess(255, 255, 255, 128).doubt
  assert "compressed with loss" in guess(255).reason


def test_palettes_in_another_order_are_read_by_color_and_two_files_are_named():
  orders = ((BLACK, RED, BLUE), (BLUE, BLACK, RED), (RED, BLUE, BLACK))
  places = ((0, 1, 2), (1, 2, 0), (2, 0, 1))

  def make(i):
    return with_palette(np.array(places[i % 3], np.uint8)[scene(i)], *orders[i % 3])

  guess = guess_format(stored_values(make))
  assert guess.label_format == table(BLACK, BLUE, RED)
  assert "palettes differ: index 0 is (0, 0, 0) in 0.png and (0, 0, 255) in 1.png" in guess.reason
  # Entries that no pixel uses do not count.
  unused = stored_values(lambda i: with_palette(scene(i), BLACK, RED, BLUE, *([PINK] if i % 2 else [])))
  assert unused.palette_conflict() is None


@pytest.mark.parametrize("scale", [0.6, 1.5, 2, 4])
def test_values_made_up_by_interpolation_are_told_from_classes(scale):
  def ratio(make):
    stored = stored_values(make)
    return stored.soft / max(stored.steep, 1)

  def resized(interpolation):
    return lambda i: cv2.resize(scene(i, values=(1, 2, 3)), None, fx=scale, fy=scale, interpolation=interpolation)

  assert ratio(resized(cv2.INTER_LINEAR)) > 0.15 > ratio(resized(cv2.INTER_NEAREST))
  between = stored_values(lambda i: cv2.resize(scene(i, values=(9,)), None, fx=scale, fy=scale))
  assert len(made_up(between.facts())) >= 5 and not {0, 9} & set(made_up(between.facts()))


def test_nested_classes_are_not_made_up():
  def rings(i):
    label = np.zeros((200, 200), np.uint8)
    for radius, value in ((60 + i, 1), (40, 2)):
      cv2.circle(label, (100, 100), radius, value, -1)
    return label

  stored = stored_values(rings)
  assert not made_up(stored.facts()) and stored.soft == 0
