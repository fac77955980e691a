"""Limits: what they let pass is what the network would do, and nothing is decoded to find out."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from seggpt_jax.app.limits import Budget, BusyError, Limits, TooLargeError, count_canvases
from seggpt_jax.data.scale import Scale
from seggpt_jax.errors import InputError
from seggpt_jax.inference.options import InferenceOptions
from tests.app.conftest import noise, prompt_of
from tests.app.test_engine import OPTIONS


def png_header(width: int, height: int) -> bytes:
  """A PNG file of any stated size, with no pixels in it."""

  def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

  header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def png(pixels: np.ndarray) -> bytes:
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "png")
  return file.getvalue()


@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
@pytest.mark.parametrize("shape", [(40, 50), (200, 31), (7, 9)])
def test_canvases_are_counted_as_the_predictor_makes_them(predictor, options, shape):
  prompts = [prompt_of(1), prompt_of(2)]
  pending = predictor._start(noise(0, *shape), prompts, None, options)
  made = sum(sum(map(len, view.tiled.rounds_left)) * len(view.tiled.prompts) for view in pending.views)
  counted = count_canvases(options, shape, len(prompts), predictor.tile_size)
  assert made == counted if not options.foreground_tiles else made <= counted


def test_huge_options_are_counted_without_making_windows():
  options = InferenceOptions(zoom=1000, overlap=0.9, flips="both")
  assert count_canvases(options, (20_000, 20_000), 1, (448, 448)) > 10**9


def test_a_file_that_states_many_pixels_is_refused_by_its_header():
  limits = Limits(pixels=10_000, memory_bytes=2**30)
  with pytest.raises(TooLargeError, match="images\\[0\\]: found 20000 x 5000 pixels"):
    limits.check_pixels([("images[0]", png_header(20_000, 5_000))])
  assert limits.check_pixels([("images[0]", png_header(50, 40))]) == [(40, 50)], "its pixels are missing, unnoticed"


def test_the_images_of_a_request_count_together_and_at_their_zoom():
  limits, file = Limits(pixels=10_000), png(noise(0))
  assert limits.check_pixels([("a", file)] * 5) == [(40, 50)] * 5
  with pytest.raises(TooLargeError, match="b: found 50 x 40 pixels, 12000"):
    limits.check_pixels([("a", file)] * 5 + [("b", file)])
  assert limits.check_zoom([(40, 50)], Scale(2)) == 8000 and limits.check_zoom([(10**6, 10**6)], Scale()) == 0
  with pytest.raises(TooLargeError, match="zoom: found 3, which makes 18000 pixels"):
    limits.check_zoom([(40, 50)], Scale(3))


def test_limits_that_contradict_each_other():
  with pytest.raises(InputError, match="memory_bytes: found"):
    Limits(memory_bytes=2**20)
  with pytest.raises(InputError, match="queue: found 4"):
    Limits(queue=4)


def test_a_budget_refuses_what_does_not_fit_and_frees_what_was_reserved():
  budget = Budget(100)
  with budget.reserve(60):
    with pytest.raises(BusyError), budget.reserve(50):
      pass
    with budget.reserve(40):
      assert budget.used == 100
  assert budget.used == 0
