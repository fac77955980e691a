"""Pictures next to the numbers of a benchmark."""

from __future__ import annotations

import numpy as np

from seggpt_jax.evaluation import parts


def test_a_panel_shows_the_whole_image_with_its_mask():
  image = np.full((50, 100, 3), 40, np.uint8)
  mask = np.zeros((50, 100), np.uint8)
  mask[:, 50:], mask[:10] = 1, 255
  plain, masked = parts.panel(image), parts.panel(image, mask)
  assert plain.shape == masked.shape == (144, 192, 3)
  framed = (plain == 40).all(axis=-1)
  assert framed.sum() == 96 * 192 and (plain[~framed] == 255).all()
  tinted = (masked != plain).any(axis=-1)
  # The right half without the ignored rows.
  assert not tinted[:, :96].any() and tinted[24 + 30 : 24 + 96, 96:].all() and not tinted[: 24 + 18].any()


def test_several_objects_have_their_own_colors():
  labels = np.repeat(np.arange(4, dtype=np.uint8), 12)[None].repeat(36, axis=0)
  panel = parts.panel(np.zeros((36, 48, 3), np.uint8), labels, 3)
  assert len(np.unique(panel.reshape(-1, 3), axis=0)) == 4


def test_rows_of_panels_have_titles_in_any_script():
  panels = [parts.panel(np.full((10, 10, 3), value, np.uint8)) for value in (10, 20, 30, 40)]
  sheet = parts.strip([panels[:2], panels[2:]], ["first", "鹿"])
  assert sheet.shape == (2 * 162, 2 * 196, 3)
  assert [sheet[162 * row + 80, 196 * column + 90, 0] for row in (0, 1) for column in (0, 1)] == [10, 20, 30, 40]
  assert (sheet[:14] < 128).any()
