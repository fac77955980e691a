"""Tests of seggpt_jax.synthetic.boards: what the pictures and labels of boards promise."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from seggpt_jax.errors import InputError
from seggpt_jax.synthetic import boards

EIGHT = np.ones((3, 3))
SIZE = 96


def _board(kind, seed, count=(1, 1), size=SIZE, scale=1.0):
  return boards.generate_board(np.random.default_rng(seed), size, (kind,), count, scale)


def _parts(mask):
  return ndimage.label(mask, EIGHT)[1]


def _touched(board):
  """Numbers of the designed conductors that the changed pixels lie in or next to."""
  near = ndimage.binary_dilation(board.labels > 0, EIGHT)
  return set(np.unique(ndimage.label(board.design, EIGHT)[0][near])) - {0}


@pytest.mark.parametrize("size, scale", [(32, 1.0), (64, 1.5), (128, 1.0)])
def test_board_has_the_promised_arrays(size, scale):
  board = boards.generate_board(np.random.default_rng(0), size, count=(1, 1), scale=scale)
  assert board.image.shape == (size, size, 3) and board.image.dtype == np.uint8
  assert board.labels.shape == (size, size) and board.labels.dtype == np.uint8
  assert board.design.dtype == board.copper.dtype == bool
  assert 0.05 < board.design.mean() < 0.95


@pytest.mark.parametrize("kind", boards.DEFECTS)
def test_label_is_where_copper_differs_from_design(kind):
  for seed in range(8):
    board = _board(kind, seed, count=(2, 3), size=128)
    changed = board.design != board.copper
    np.testing.assert_array_equal(board.labels > 0, changed)
    assert set(np.unique(board.labels)) == {0, 1 + boards.DEFECTS.index(kind)}
    removes = kind in ("open", "mouse_bite", "pinhole")
    assert (board.design[changed] == removes).all()
    assert ndimage.label(changed, EIGHT)[1] >= 2


@pytest.mark.parametrize("kind", boards.DEFECTS)
@pytest.mark.parametrize("size, scale", [(96, 1.0), (64, 1.5)])
def test_defect_means_what_its_name_says(kind, size, scale):
  # Change in the number of conductors, of holes in the copper, and conductors touched.
  # A short may also close a loop, so its holes are not counted.
  expected = {
    "open": (1, None, 1),
    "short": (-1, None, 2),
    "mouse_bite": (0, 0, 1),
    "spur": (0, 0, 1),
    "spurious_copper": (1, None, 0),
    "pinhole": (0, 1, 1),
  }
  conductors, holes, touched = expected[kind]
  for seed in range(25):
    board = _board(kind, seed, size=size, scale=scale)
    assert (board.labels > 0).sum() >= 9 * scale**2
    assert _parts(board.copper) - _parts(board.design) == conductors, seed
    assert len(_touched(board)) == touched, seed
    if holes is not None:
      assert _parts(~board.copper) - _parts(~board.design) == holes, seed


def test_defect_is_visible_in_the_image():
  # The changed pixels must stand out from the ring of pixels they should look like.
  for seed in range(30):
    board = _board(boards.DEFECTS[seed % 6], seed)
    changed = ndimage.binary_erosion(board.labels > 0)
    near = ndimage.binary_dilation(board.labels > 0, EIGHT, iterations=6)
    same = near & ~ndimage.binary_dilation(board.labels > 0, EIGHT, iterations=2)
    as_designed = same & (board.design == board.design[board.labels > 0][0])
    if changed.any() and as_designed.any():
      difference = board.image[changed].mean(0) - board.image[as_designed].mean(0)
      assert np.abs(difference).max() > 12, seed


def test_every_kind_is_drawn_and_about_equally_often():
  source = boards.BoardSource(120, seed=0, size=64, count=(1, 1), labels="kinds")
  kinds = [source[i]["label"].max() for i in range(len(source))]
  share = np.bincount(kinds, minlength=7)[1:] / len(source)
  assert share.min() > 0.07


def test_flawless_boards_on_request():
  board = boards.generate_board(np.random.default_rng(0), SIZE, count=(0, 0))
  assert not board.labels.any()
  np.testing.assert_array_equal(board.design, board.copper)


def test_source_depends_on_seed_and_index_only():
  source = boards.BoardSource(5, seed=3, size=64)
  backwards = [source[i] for i in reversed(range(5))][::-1]
  longer = boards.BoardSource(50, seed=3, size=64)
  for i in range(5):
    np.testing.assert_array_equal(backwards[i]["image"], longer[i]["image"])
    np.testing.assert_array_equal(backwards[i]["label"], longer[i]["label"])
  other = boards.BoardSource(5, seed=4, size=64)
  assert (source[0]["image"] != other[0]["image"]).any()


def test_boards_and_splits_differ():
  items = [boards.BoardSource(12, seed=0, size=64, split=split) for split in boards.SPLITS]
  # Compared without color and light, which could differ on boards of the same layout.
  images = [source[i]["image"].mean(-1) for source in items for i in range(12)]
  images = np.stack([((i - i.mean()) / i.std()).ravel() for i in images])
  alike = images @ images.T / images.shape[1]
  np.fill_diagonal(alike, 0)
  assert alike.max() < 0.8
  assert np.abs(alike).mean() < 0.25


def test_source_merges_kinds_and_separates_boards():
  merged = boards.BoardSource(6, seed=0, size=64, one_kind=True)
  apart = boards.BoardSource(6, seed=0, size=64, one_kind=True, labels="kinds")
  copper = boards.BoardSource(6, seed=0, size=64, one_kind=True, labels="copper")
  etched = boards.BoardSource(6, seed=0, size=64, one_kind=True, labels="etched")
  assert merged.classes == ("board", "defect")
  assert copper.classes == ("board", "copper", "defect")
  assert etched.classes == ("board", "copper")
  assert apart.classes == ("board", *boards.DEFECTS)
  assert len({merged[i]["name"] for i in range(6)}) == 6
  for i in range(6):
    assert set(np.unique(apart[i]["label"])) == {0, i + 1}
    np.testing.assert_array_equal(merged[i]["label"], apart[i]["label"] > 0)
    np.testing.assert_array_equal(copper[i]["label"] == 2, apart[i]["label"] > 0)
    assert 0.05 < (copper[i]["label"] == 1).mean() < 0.95
    sound = copper[i]["label"] != 2
    np.testing.assert_array_equal(etched[i]["label"][sound], copper[i]["label"][sound])
  with pytest.raises(IndexError, match="6"):
    merged[6]


def test_subset_of_kinds_keeps_their_labels():
  drawn = [boards.generate_board(np.random.default_rng(i), 64, ("short", "spur")) for i in range(8)]
  assert {int(value) for board in drawn for value in np.unique(board.labels)} == {0, 2, 4}


def test_scale_magnifies():
  areas = [np.mean([(_board("spur", s, scale=scale).labels > 0).sum() for s in range(10)]) for scale in (1.0, 2.0)]
  assert areas[1] > 2 * areas[0]


def test_written_files_hold_the_boards(tmp_path):
  directory = tmp_path / "new" / "boards"
  boards.write_boards(directory, 3, 2, seed=1, size=64, labels="kinds")
  for split, number in (("train", 3), ("val", 2)):
    source = boards.BoardSource(number, 1, size=64, labels="kinds", split=split)
    assert len(list((directory / split / "images").iterdir())) == number
    for i in range(number):
      file = f"{source[i]['name']}.png"
      image = Image.open(directory / split / "images" / file)
      label = Image.open(directory / split / "labels" / file)
      np.testing.assert_array_equal(np.asarray(image), source[i]["image"])
      np.testing.assert_array_equal(np.asarray(label), source[i]["label"])
  assert [p.name for p in directory.parent.iterdir()] == ["boards"]


def test_writing_leaves_what_is_there_and_nothing_half_done(tmp_path, monkeypatch):
  (tmp_path / "kept").mkdir()
  (tmp_path / "kept" / "notes.txt").write_text("mine")
  with pytest.raises(InputError, match="kept"):
    boards.write_boards(tmp_path / "kept", 1, 1, seed=0, size=64)

  def fail(*args):
    raise OSError("disk full")

  monkeypatch.setattr(boards, "generate_board", fail)
  with pytest.raises(OSError, match="disk full"):
    boards.write_boards(tmp_path / "new", 1, 1, seed=0, size=64)
  assert [p.name for p in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize(
  "arguments, name",
  [
    ({"size": 31}, "size"),
    ({"size": 64, "scale": 3.0}, "size"),
    ({"count": (2, 1)}, "count"),
    ({"scale": 0.5}, "scale"),
    ({"num_boards": 0}, "num_boards"),
    ({"seed": -1}, "seed"),
    ({"split": "test"}, "split"),
  ],
)
def test_wrong_arguments_are_named(arguments, name):
  with pytest.raises(ValueError, match=f"^{name}: found"):
    boards.BoardSource(**{"num_boards": 1, "seed": 0, **arguments})


@pytest.mark.parametrize("defects", [("scratch",), ()])
def test_unknown_kinds_are_refused(defects):
  with pytest.raises(ValueError, match=r"^defects: found"):
    boards.generate_board(np.random.default_rng(0), 64, defects)


def test_too_many_defects_are_refused():
  with pytest.raises(RuntimeError, match="size 32"):
    boards.generate_board(np.random.default_rng(0), 32, count=(30, 30))
