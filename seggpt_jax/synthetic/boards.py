"""Synthetic printed-circuit boards with labeled defects, drawn with NumPy and Pillow.

In: a seed (or a NumPy generator) and the size of the picture. Out: a color picture of a bare
board, uint8 [size, size, 3], and its label, uint8 [size, size], which is 0 where the copper is as
designed and the class of the defect where copper is missing or in excess.

The layout of the copper comes from board_layout, the defects from board_defects. Here the board
is colored, and offered as a data source and as files.
"""

import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageFilter
from tqdm import tqdm

from seggpt_jax.errors import InputError
from seggpt_jax.files import writing
from seggpt_jax.synthetic.board_defects import DEFECTS, place_defects
from seggpt_jax.synthetic.board_layout import FINE, draw_layout, middle

SPLITS: tuple[str, ...] = ("train", "val")
LABELINGS: dict[str, tuple[str, ...]] = {
  "defect": ("board", "defect"),
  "etched": ("board", "copper"),
  "copper": ("board", "copper", "defect"),
  "kinds": ("board", *DEFECTS),
}

_REDRAWS = 300  # Boards drawn before it is decided that the defects do not fit.


class Board(NamedTuple):
  """A picture of a board, its label and the copper before and after the defects."""

  image: UInt8[np.ndarray, "size size 3"]
  labels: UInt8[np.ndarray, "size size"]  # 0 as designed, else 1 + DEFECTS.index(kind).
  design: Bool[np.ndarray, "size size"]  # Copper as designed.
  copper: Bool[np.ndarray, "size size"]  # Copper as made; differs where labels > 0.


def generate_board(
  generator: np.random.Generator,
  size: int = 256,
  defects: Sequence[str] | None = None,
  count: tuple[int, int] = (1, 3),
  scale: float = 1.0,
) -> Board:
  """Draws one random board with defects.

  Args:
    generator: Source of all randomness.
    size: Side of the picture in pixels, at least 32 * scale.
    defects: Kinds to draw from, out of DEFECTS. None means all of them.
    count: Fewest and most defects on the board, both included. (0, 0) gives flawless boards.
    scale: Magnification of the camera, at least 1. Traces, spacings and defects all grow with
      it, so the same picture shows a smaller part of the board. At scale 1 traces are 4 to 8
      pixels wide and defects span about 4 to 14 pixels.

  Returns:
    The board, which carries count[0] to count[1] defects.

  Raises:
    ValueError: An argument is out of its range.
    RuntimeError: The defects asked for do not fit on a board of this size.
  """
  defects = DEFECTS if defects is None else tuple(defects)
  _check_arguments(size, defects, count, scale)
  # Kinds are drawn before the board: were they drawn after, the kinds that are hard to place
  # would become rare.
  kinds = [str(k) for k in generator.choice(defects, generator.integers(count[0], count[1] + 1))]
  for _ in range(_REDRAWS):
    layout = draw_layout(generator, size, scale)
    made = place_defects(generator, layout, kinds, scale)
    if made is not None:
      copper, labels = made
      image = _render(generator, copper, layout.pads, layout.drills)
      return Board(image, labels, layout.design, middle(copper))
  raise RuntimeError(
    f"could not place {len(kinds)} defects on a board of size {size} at scale {scale:g} "
    f"in {_REDRAWS} boards; ask for fewer defects, a larger size or a smaller scale"
  )


def _check_arguments(size: int, defects: tuple[str, ...], count: tuple[int, int], scale: float) -> None:
  if not defects or not set(defects) <= set(DEFECTS):
    raise ValueError(f"defects: found {defects}, expected one or more of {DEFECTS}")
  if len(count) != 2 or not 0 <= count[0] <= count[1]:
    raise ValueError(f"count: found {count}, expected (fewest, most), 0 <= fewest <= most")
  if not scale >= 1:
    raise ValueError(f"scale: found {scale}, expected a number of at least 1")
  if size < 32 * scale:
    raise ValueError(f"size: found {size}, expected at least 32 * scale = {32 * scale:g}")


_MASKS = ((18, 84, 44), (16, 44, 104), (122, 22, 28), (30, 30, 34), (66, 26, 92), (30, 96, 100))
_METALS = ((196, 112, 66), (188, 190, 186), (214, 174, 84))  # Copper, tin, gold.
_LAMINATES = ((96, 92, 52), (58, 48, 34), (24, 62, 40), (28, 40, 66))


def _random_colors(generator: np.random.Generator) -> np.ndarray:
  """Returns the colors of substrate, trace, pad and drill, float32 [4, 3], about 0 to 255."""
  style = generator.choice(("mask", "bare", "bright", "dark"), p=(0.45, 0.3, 0.15, 0.1))
  metal = np.array(_METALS[generator.integers(3)], float)
  if style == "mask":  # Solder mask covers the traces, which shine through; pads are bare.
    board = np.array(_MASKS[generator.integers(len(_MASKS))], float)
    trace = board * generator.uniform(1.3, 1.6) + generator.uniform(32, 46)
  elif style == "bare":
    board = np.array(_LAMINATES[generator.integers(len(_LAMINATES))], float)
    trace = metal
  else:  # Gray as in optical inspection: bright copper on dark, or the inverse.
    low, high = np.full(3, generator.uniform(25, 70)), np.full(3, generator.uniform(165, 225))
    board, trace = (low, high) if style == "bright" else (high, low)
  if style in ("bright", "dark"):
    return np.stack((board, trace, trace, board)).astype(np.float32)
  drill = np.full(3, generator.uniform(5, 25))
  colors = np.stack((board, trace, metal, drill)) + generator.uniform(-10, 10, (4, 3))
  return colors.astype(np.float32)


def _coverage(fine: np.ndarray) -> np.ndarray:
  """Returns which part of each pixel a fine mask covers, float32 in [0, 1]."""
  image = Image.fromarray(fine.astype(np.uint8) * 255).reduce(FINE)
  return np.asarray(image, np.float32) / 255


def _random_texture(generator: np.random.Generator, size: int, cells: int) -> np.ndarray:
  """Returns smooth noise with about that many cells per side, float32 [size, size]."""
  cells = generator.standard_normal((cells, cells), np.float32)
  return np.asarray(Image.fromarray(cells).resize((size, size), Image.Resampling.BICUBIC))


def _render(generator: np.random.Generator, copper: np.ndarray, pads: np.ndarray, drills: np.ndarray) -> np.ndarray:
  """Paints the materials, then lights, blurs and adds the noise of a camera."""
  colors = _random_colors(generator)
  metal, bare, hole = _coverage(copper), _coverage(copper & pads), _coverage(drills)
  size = len(metal)
  parts = np.stack((1 - metal - hole, metal - bare, bare, hole), -1)
  image = parts @ colors
  y, x = np.mgrid[-0.5 : 0.5 : size * 1j, -0.5 : 0.5 : size * 1j].astype(np.float32)
  slope = generator.uniform(-0.3, 0.3, 2).astype(np.float32)
  light = generator.uniform(0.85, 1.12) + slope[0] * x + slope[1] * y
  light += generator.uniform(0.01, 0.05) * _random_texture(generator, size, 2 + size // 40)
  grain = generator.uniform(0.01, 0.06) * _random_texture(generator, size, size // 2)
  light += grain * (1 - 0.6 * metal)
  # Etched copper stands above the board: its edges catch the light on one side.
  edge = metal - np.roll(metal, generator.choice((-1, 1), 2), (0, 1))
  light += generator.uniform(0, 0.12) * edge
  image *= light[..., None]
  noise = generator.standard_normal((size, size, 3), np.float32)
  blurred = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).filter(
    ImageFilter.GaussianBlur(generator.uniform(0.2, 0.8))
  )
  image = np.asarray(blurred, np.float32) + noise * generator.uniform(1, 6)
  return np.clip(image, 0, 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class BoardSource:
  """Random-access source of boards that are drawn when asked for.

  Item i depends only on the fields and i, so any number of workers may read it.

  For `labels`, "defect" gives all kinds label 1. "etched" gives copper label 1 as it lies on the board, defects
  included. "copper" gives copper label 1 and all kinds label 2. With "kinds" a kind keeps its label
  1 + DEFECTS.index(kind).

  Raises:
    ValueError: A field is out of its range.
  """

  num_boards: int  # At least 1.
  seed: int  # Of all boards, at least 0.
  size: int = 256  # Side of a board in pixels.
  count: tuple[int, int] = (1, 3)  # Fewest and most defects on a board, both included.
  scale: float = 1.0  # Magnification; see generate_board.
  labels: str = "defect"
  one_kind: bool = False  # Board i carries one kind only, the one at i modulo the number of kinds.
  split: str = "train"  # Or "val"; the boards of the two are independent of each other.

  def __post_init__(self):
    _check_arguments(self.size, DEFECTS, self.count, self.scale)
    if self.num_boards < 1:
      raise ValueError(f"num_boards: found {self.num_boards}, expected at least 1")
    if self.seed < 0:
      raise ValueError(f"seed: found {self.seed}, expected at least 0")
    if self.labels not in LABELINGS:
      raise ValueError(f"labels: found {self.labels!r}, expected one of {tuple(LABELINGS)}")
    if self.split not in SPLITS:
      raise ValueError(f"split: found {self.split!r}, expected one of {SPLITS}")

  @property
  def classes(self) -> tuple[str, ...]:
    """Names of the labels; the label is the position."""
    return LABELINGS[self.labels]

  def __len__(self) -> int:
    return self.num_boards

  def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
    """Returns "image" uint8 [size, size, 3], "label" uint8 [size, size] and "name" str."""
    if not 0 <= index < self.num_boards:
      raise IndexError(f"index: found {index}, expected 0 to {self.num_boards - 1}")
    key = (SPLITS.index(self.split), index)
    generator = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))
    kinds, prefix = DEFECTS, "board"
    if self.one_kind:
      prefix = kinds[index % len(kinds)]
      kinds = (prefix,)
    board = generate_board(generator, self.size, kinds, self.count, self.scale)
    label = board.labels
    if self.labels == "etched":
      label = board.copper.astype(np.uint8)
    elif self.labels != "kinds":
      plain = board.copper if self.labels == "copper" else np.zeros_like(board.copper)
      label = np.where(label > 0, len(self.classes) - 1, plain).astype(np.uint8)
    return {"image": board.image, "label": label, "name": f"{prefix}_{index:05d}"}


def write_boards(directory: str | os.PathLike[str], num_train: int, num_val: int, seed: int, **options) -> None:
  """Writes boards as PNG files {train,val}/{images,labels}/NAME.png.

  Labels are gray-scale files that hold class indices. The directory appears only once all
  files are written.

  Args:
    directory: Where to write; it must not exist or be empty.
    num_train: Number of boards for training, at least 1.
    num_val: Number of boards for validation, at least 1.
    seed: Seed of all boards, at least 0.
    **options: size, count, scale, labels and one_kind of BoardSource.

  Raises:
    InputError: The directory holds something, or is a file.
    ValueError: An argument is out of its range.
  """
  directory = pathlib.Path(directory)
  if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
    raise InputError(f"{directory}: already exists and is not empty; choose a new path")
  sources = [
    BoardSource(number, seed, split=split, **options)
    for split, number in zip(SPLITS, (num_train, num_val), strict=True)
  ]
  with writing(directory):
    directory.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=directory.parent) as temporary:
    whole = pathlib.Path(temporary) / "boards"
    for source in sources:
      folders = {"image": whole / source.split / "images", "label": whole / source.split / "labels"}
      for folder in folders.values():
        folder.mkdir(parents=True)
      for index in tqdm(range(len(source)), desc=f"{source.split} boards", unit="board"):
        item = source[index]
        for key, folder in folders.items():
          Image.fromarray(item[key]).save(folder / f"{item['name']}.png")
    os.replace(whole, directory)
