"""Surfaces, flaws and photographs to pretrain on: what the pictures show is what the labels say."""

import numpy as np
import pytest
from PIL import Image

from pretraining import assets, photographs, surfaces, tasks
from seggpt_jax.errors import InputError

SIZE = 64


def generator(seed=0):
  return np.random.default_rng(seed)


def test_a_line_is_as_long_and_wide_as_it_says():
  cover = surfaces.line(SIZE, np.array([[8.0, 20.0], [56.0, 20.0]]), 3.0)
  assert cover.min() == 0 and cover.max() == 1
  rows, cols = np.nonzero(cover > 0.5)
  assert set(rows.tolist()) == {19, 20, 21} and cols.min() <= 9 and cols.max() >= 55
  for width in (1.0, 1.5, 2.0, 4.0):
    across = surfaces.line(SIZE, np.array([[8.0, 20.3], [56.0, 20.3]]), width)[:, 30].sum()
    assert across == pytest.approx(width, abs=0.3)


def test_a_blob_has_its_center_and_about_its_area():
  cover = surfaces.blob(generator(), SIZE, np.array([40.0, 24.0]), 10.0, ragged=0.0)
  rows, cols = np.nonzero(cover > 0.5)
  assert abs(cols.mean() - 40) < 1 and abs(rows.mean() - 24) < 1
  assert 0.55 * np.pi * 100 < len(rows) < 1.05 * np.pi * 100


@pytest.mark.parametrize("sort", surfaces.SORTS)
def test_a_flaw_changes_the_picture_where_it_says(sort):
  image = np.full((SIZE, SIZE, 3), 128.0, np.float32) + generator(1).normal(0, 6, (SIZE, SIZE, 1)).astype(np.float32)
  before = image.copy()
  flaw = surfaces.Flaw(sort, np.full(3, -60, np.float32), 1.0, 0.0)
  cover = flaw.draw(generator(3), image)
  assert cover.shape == (SIZE, SIZE) and 0 < (cover > 0.4).sum() < 0.9 * SIZE**2
  change = np.abs(image - before).max(axis=-1)
  assert change[cover > 0.4].mean() > 5 * change[cover == 0].mean()


@pytest.mark.parametrize("fault", range(6))
def test_a_fault_of_line_art_adds_or_removes_ink(fault):
  added = []
  for seed in range(12):
    art, runs = surfaces._line_art(generator(seed), SIZE, 4.0, 2.5, straight=True)
    changed = surfaces._fault(generator(seed), art, runs, fault, 4.0, 2.5)
    added.append(float((changed - art).sum()))
  # Gap, notch and hole remove; bridge, bump and island add.
  assert (min(added) >= 0 and max(added) > 0) if fault in (1, 3, 4) else (max(added) <= 0 and min(added) < 0)


def test_prompts_of_sparse_tasks_show_every_class_and_queries_may_be_faultless():
  empty = 0
  for seed in range(60):
    task = tasks.draw_task("flaws", generator(seed), SIZE)
    assert set(np.unique(task.query_labels).tolist()) <= {0, *range(1, 7)}
    assert task.prompt_labels.any()
    empty += not task.query_labels.any()
  assert 5 < empty < 45


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Assets packed by the command from pictures of two sorts."""
  source, out = tmp_path_factory.mktemp("pictures"), tmp_path_factory.mktemp("packed")
  y, x = np.mgrid[:128, :128]
  disc = ((y - 64) ** 2 + (x - 64) ** 2 < 50**2).astype(np.uint8)
  for name, color in (("red", (220, 20, 20)), ("blue", (20, 20, 220))):
    Image.fromarray(np.dstack([np.full((128, 128, 3), color, np.uint8), 255 * disc])).save(source / f"{name}.png")
  halves = np.zeros((400, 400, 3), np.uint8)
  halves[:, 200:] = 200
  Image.fromarray(halves).save(source / "halves.jpg", quality=95)
  Image.fromarray(halves[:100, :100]).save(source / "small.jpg")  # too small for a ground
  assets.main(str(source), str(out))
  return str(out)


def test_the_command_packs_things_photographs_and_regions(folder, tmp_path):
  grounds, regions, things = (np.load(f"{folder}/{name}.npy") for name in photographs.FILES)
  assert things.shape == (2, 96, 96, 4) and grounds.shape == (1, 384, 384, 3) and regions.shape == (1, 384, 384)
  # The thing fills its square.
  assert (things[..., 3] > 127).any(axis=(0, 1)).mean() > 0.97
  left, right = (np.bincount(part.ravel()) for part in (regions[0, :, :180], regions[0, :, 200:]))
  assert left.argmax() != right.argmax() and min(part.max() / part.sum() for part in (left, right)) > 0.9
  with pytest.raises(InputError, match="found 0 cut-outs, 0 grounds"):
    assets.main(str(tmp_path), str(tmp_path / "out"))
  with pytest.raises(InputError, match=r"found no grounds.npy"):
    photographs.families(str(tmp_path))


def test_cut_outs_and_views_are_where_their_labels_say(folder):
  draw = photographs.families(folder)
  for seed in range(10):
    scenes = draw["cutouts"](generator(seed), SIZE, 2, 0.5)
    for image, kinds in zip(scenes.images, scenes.kinds, strict=True):
      for kind in set(np.unique(kinds).tolist()) - {0}:
        color = image[kinds == kind].mean(axis=0)
        assert color.max() - color.min() > 100  # red, blue or, recolored, green
    scenes = draw["views"](generator(seed), SIZE, 2, 0.5)
    for image, kinds in zip(scenes.images, scenes.kinds, strict=True):
      means = {kind: image[kinds == kind].mean() for kind in np.unique(kinds).tolist() if (kinds == kind).mean() > 0.1}
      assert len(means) < 2 or abs(np.subtract(*list(means.values())[:2])) > 100


def test_tasks_draw_from_assets_only_where_there_are_some(folder):
  assert tasks.all_families(folder).keys() - tasks.all_families().keys() == {"cutouts", "views"}
  task = tasks.draw_task(tasks.all_families(folder)["cutouts"], generator(), SIZE, num_classes=4)
  assert task.prompt_labels.any() and task.query_image.shape == (SIZE, SIZE, 3)
