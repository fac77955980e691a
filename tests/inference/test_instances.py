"""Objects of a prediction with their polygons: what a labeling tool shows must be what the network found."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as mask_module

import seggpt_jax
from seggpt_jax.errors import InputError
from seggpt_jax.inference.instances import LEAST_IOU, fill_centers, fill_corners
from seggpt_jax.inference.prediction import Prediction
from seggpt_jax.palette import fixed_palette


def predicted(labels):
  """Returns a prediction whose colors are exactly those of its labels."""
  palette = fixed_palette(4)
  labels = np.asarray(labels, np.uint8)
  return Prediction(labels, palette[labels], palette, tuple(range(len(palette))))


def fill_as_coco(polygon, size):
  return mask_module.decode(mask_module.merge(mask_module.frPyObjects([polygon.ravel().tolist()], *size))) > 0


def fill_as_labelme(polygon, size):
  picture = Image.new("L", size[::-1])
  ImageDraw.Draw(picture).polygon([tuple(corner) for corner in polygon], outline=1, fill=1)
  return np.asarray(picture) > 0


def fill_as_ultralytics(polygon, size):
  return cv2.fillPoly(np.zeros(size, np.uint8), [np.asarray(polygon, np.int32)], color=1) > 0


def fill_as_checked(polygon, size):
  """Returns what the two readers that polygons are checked with agree on."""
  centers, corners = fill_centers([polygon], size), fill_corners([polygon], size)
  return centers & corners


READERS = (fill_as_coco, fill_as_labelme, fill_as_ultralytics, fill_as_checked)


def noise(seed, coarseness, share=0.5, size=(70, 90)):
  """Returns a random mask of ragged objects with holes, islands in holes, and pixels that touch at corners only."""
  values = cv2.GaussianBlur(np.random.default_rng(seed).random(size), (0, 0), coarseness)
  return values > np.quantile(values, share)


def iou(first, second):
  return (first & second).sum() / (first | second).sum()


def drawn(found, read, size):
  filled = [read(instance.polygon, size) for instance in found]
  return np.any(filled, axis=0) if filled else np.zeros(size, bool)


def test_instances_are_the_connected_parts_of_each_class():
  labels = np.zeros((12, 16), np.uint8)
  labels[1:4, 2:7] = 1
  labels[4, 7] = 1  # touches the first at a corner: one object
  labels[1:4, 7:9] = 2  # touches it along an edge, but is of another class
  labels[8:11, 1:12] = 1
  labels[9, 4:6] = 0
  found = seggpt_jax.instances(predicted(labels))
  assert [(each.class_index, each.area, each.box) for each in found] == [
    (1, 16, (2, 1, 6, 4)),
    (1, 31, (1, 8, 11, 3)),
    (2, 6, (7, 1, 2, 3)),
  ]
  assert [len(each.holes) for each in found] == [0, 1, 0]
  assert all(each.confidence == 1 for each in found)


def test_confidence_is_the_mean_over_the_pixels_of_the_instance():
  prediction = predicted([[1, 1, 0, 1], [0, 0, 0, 1]])
  prediction.colors[0, 0] = prediction.palette[[0, 1]].mean(axis=0)  # halfway to the background
  found = seggpt_jax.instances(prediction)
  confidence = prediction.confidence()
  np.testing.assert_allclose([each.confidence for each in found], [confidence[0, :2].mean(), 1], rtol=1e-6)
  assert found[0].confidence < 0.6


def test_small_objects_are_left_out_by_their_area():
  labels = np.zeros((9, 9), np.uint8)
  labels[0, 0] = labels[2, 2:4] = labels[5:7, 5:8] = 1
  areas = {least: [each.area for each in seggpt_jax.instances(predicted(labels), least)] for least in (0, 1, 2, 3, 7)}
  assert areas == {0: [1, 2, 6], 1: [1, 2, 6], 2: [2, 6], 3: [6], 7: []}


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("coarseness", [0.6, 1.5, 4.0])
def test_without_tolerance_every_reader_gets_the_same_pixels_back(read, coarseness):
  """A contour through centers of pixels would lose half a pixel on each side in COCO, or gain one in labelme."""
  for seed in range(4):
    mask = noise(seed, coarseness)
    found = seggpt_jax.instances(predicted(mask), tolerance=0)
    np.testing.assert_array_equal(drawn(found, read, mask.shape), mask)


@pytest.mark.parametrize("shape", ["pixel", "diagonal", "line", "frame", "whole", "corner", "two holes", "island"])
@pytest.mark.parametrize("tolerance", [0, 1.0, 5.0])
def test_small_thin_and_hollow_objects_survive_any_tolerance(shape, tolerance):
  mask = np.zeros((14, 17), bool)
  if shape == "pixel":
    mask[5, 6] = True
  elif shape == "diagonal":
    mask[np.arange(3, 11), np.arange(3, 11)] = True
  elif shape == "line":
    mask[7, 1:16] = True
  elif shape == "frame":
    mask[2:9, 3:12] = True
    mask[3:8, 4:11] = False
  elif shape == "whole":
    mask[:] = True
  elif shape == "corner":
    mask[:4, :3] = mask[10:, 14:] = True
  elif shape == "two holes":
    mask[1:12, 1:15] = True
    mask[4:6, 3:5] = mask[4:8, 9:12] = False
  else:
    mask[0:13, 0:15] = True
    mask[2:11, 2:13] = False
    mask[5:8, 5:10] = True
  found = seggpt_jax.instances(predicted(mask), tolerance=tolerance)
  assert len(found) == cv2.connectedComponents(mask.astype(np.uint8))[0] - 1
  for read in READERS:
    assert iou(drawn(found, read, mask.shape), mask) >= LEAST_IOU, read.__name__
  assert all(len(each.polygon) >= 4 for each in found)
  inside = [(each.polygon >= 0).all() and (each.polygon <= [17, 14]).all() for each in found]
  assert all(inside)


def test_simplified_polygons_have_fewer_corners_and_stay_within_the_tolerance():
  rows, columns = np.mgrid[:200, :240]
  mask = ((rows - 100) / 80) ** 2 + ((columns - 120) / 100) ** 2 < 1
  mask &= ~(((rows - 110) / 25) ** 2 + ((columns - 100) / 30) ** 2 < 1)
  exact, simple = (seggpt_jax.instances(predicted(mask), tolerance=tolerance)[0] for tolerance in (0, 1.0))
  assert len(simple.polygon) < len(exact.polygon) / 10
  for ring, original in zip((simple.outline, *simple.holes), (exact.outline, *exact.holes), strict=True):
    contour = ring.astype(np.float32)[:, None]
    away = [abs(cv2.pointPolygonTest(contour, tuple(corner), measureDist=True)) for corner in original.tolist()]
    assert max(away) <= 1.01
  for read in READERS:
    assert iou(read(simple.polygon, mask.shape), mask) > 0.985


def test_ragged_predictions_keep_their_pixels_at_the_default_tolerance():
  for seed in range(4):
    for coarseness in (0.6, 1.5, 4.0):
      mask = noise(seed, coarseness)
      found = seggpt_jax.instances(predicted(mask))
      for read in READERS:
        assert iou(drawn(found, read, mask.shape), mask) > 0.95, (seed, coarseness, read.__name__)


def test_a_cut_to_a_hole_stays_inside_the_object():
  """Readers that draw the edges of a polygon would otherwise draw the cut over the background, or over another hole."""
  mask = np.zeros((20, 40), bool)
  mask[1:19, 1:39] = True
  for left in range(3, 36, 4):  # holes in a row, each to the left of the next
    mask[8:11, left : left + 2] = False
  found = seggpt_jax.instances(predicted(mask))
  assert len(found[0].holes) == 9
  np.testing.assert_array_equal(fill_as_labelme(found[0].polygon, mask.shape), mask)


def test_wrong_numbers_are_named():
  for options, words in (
    ({"tolerance": -1}, "polygon_tolerance: found -1, expected a number of pixels, or 0"),
    ({"tolerance": float("nan")}, "polygon_tolerance: found nan"),
    ({"least_area": -5}, "least_area: found -5"),
  ):
    with pytest.raises(InputError, match=words):
      seggpt_jax.instances(predicted(np.zeros((3, 3))), **options)
