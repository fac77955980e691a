"""The contact sheet of a dataset: samples of each split next to the same samples with labels drawn over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from seggpt_jax.audit.findings import Findings
from seggpt_jax.audit.label_values import StoredValues
from seggpt_jax.audit.report import percent, split_title
from seggpt_jax.audit.survey import Survey, spread
from seggpt_jax.errors import InputError
from seggpt_jax.formats.images import decode_image
from seggpt_jax.palette import IGNORE, display_palette

_COLUMNS, _PER_SPLIT, _MOST_PROBLEMS, _MOST_TURNED = 4, 12, 4, 2
_SIDE, _GAP, _LINE, _MARGIN = 228, 4, 17, 14
_CELL = (2 * _SIDE + _GAP, _SIDE + 2 * _LINE + 12)  # width, height
_WIDTH = _MARGIN + _COLUMNS * (_CELL[0] + _MARGIN)
_PAPER, _INK, _FAINT, _RED = (250, 250, 250), (20, 20, 20), (110, 110, 110), (220, 20, 30)
_BLEND = 0.5
_SHADE = 0.45
_SPECK, _MOST_CIRCLES = 9, 12  # pixels of the picture; more circles than that hide it
_LEGEND_WIDTH = 460


class Cell(NamedTuple):
  """One sample on the sheet; image and label are None if they cannot be read."""

  image: UInt8[np.ndarray, "h w 3"] | None
  label: UInt8[np.ndarray, "h2 w2"] | None
  name: str
  below: str
  problem: bool


def draw_samples(findings: Findings) -> Image.Image:
  """Draws the sheet: a legend of the classes, then up to 12 samples of each split."""
  palette = display_palette(256)
  title = f"{findings.dataset.path}: labels read as {findings.dataset.label_format}"
  legend = _legend(findings, palette)
  blocks = [_heading(title, 20), *([_grid(legend, 0)] if legend else [])]
  for survey in findings.surveys.values():
    cells = [_draw_cell(_read_cell(findings, survey, place), palette) for place in _choose_samples(survey)]
    blocks.append(_heading(f"{split_title(survey.split)}: {len(cells)} of {survey.num_samples} samples", 18))
    blocks.append(_grid(cells or [Image.new("RGB", _CELL, _PAPER)], _MARGIN))
  return Image.fromarray(np.concatenate([np.asarray(block) for block in blocks]))


def _heading(text: str, size: int) -> Image.Image:
  heading = Image.new("RGB", (_WIDTH, 40), _PAPER)
  _write(heading, (_MARGIN, 9), text, size)
  return heading


def _grid(pictures: Sequence[Image.Image], gap: int) -> Image.Image:
  """Puts pictures of one size in rows, with a gap to the right of each and below it."""
  width, height = pictures[0].width + gap, pictures[0].height + gap
  columns = (_WIDTH - _MARGIN) // width
  grid = Image.new("RGB", (_WIDTH, -(-len(pictures) // columns) * height), _PAPER)
  for place, picture in enumerate(pictures):
    grid.paste(picture, (_MARGIN + place % columns * width, place // columns * height))
  return grid


# ------------------------------------------------------------------------------------------------------------ samples


def _choose_samples(survey: Survey, most: int = _PER_SPLIT) -> list[int]:
  """Returns positions of samples that represent a split: with problems, turned by a tag, every class, evenly spread."""
  everyone = range(len(survey.samples))
  wrong = [i for i in everyone if survey.samples[i].problem]
  chosen = [wrong[i] for i in spread(len(wrong), min(_MOST_PROBLEMS, most))]
  named = set(survey.turned[:_MOST_TURNED])
  turned = [i for i in everyone if survey.samples[i].name in named and i not in chosen]
  chosen += turned[: max(most - len(chosen), 0)]
  # The rarest class first, since its samples often show other classes too.
  present = [int(c) + 1 for c in np.flatnonzero(survey.holding[1:IGNORE])]
  for class_index in sorted(present, key=lambda c: survey.holding[c]):
    holders = [i for i in everyone if class_index in (survey.samples[i].classes or ())]
    if len(chosen) < most and not set(holders) & set(chosen):
      chosen.append(holders[len(holders) // 2])
  for candidates in ([i for i in everyone if survey.samples[i].classes], list(everyone)):
    left = [i for i in candidates if i not in set(chosen)]
    free = most - len(chosen)
    chosen += [left[i] for i in spread(len(left), free)] if free else []
  return sorted(chosen)


def _read_cell(findings: Findings, survey: Survey, position: int) -> Cell:
  files, sample = findings.files[survey.split], survey.samples[position]
  image = label = None
  problem = ""
  try:
    image = decode_image(*files.encoded_image(sample.index))
  except InputError as error:
    problem = _short(error)
  try:
    size = None if image is None else image.shape[:2]
    label = files.read_label(sample.index, size, findings.dataset.label_format, StoredValues())
  except InputError as error:
    problem = problem or _short(error)
  if image is not None and label is not None and image.shape[:2] != label.shape:
    problem = f"image {image.shape[1]} x {image.shape[0]}, label {label.shape[1]} x {label.shape[0]}"
  named = ", ".join(findings.class_label(c) for c in sample.classes or ())
  below = problem or (f"classes {named}" if named else "no foreground")
  return Cell(image, label, sample.name, below, bool(problem))


def _short(error: InputError) -> str:
  """Returns the message without the file name, which the cell shows anyway."""
  return str(error).partition(": ")[2] or str(error)


# ------------------------------------------------------------------------------------------------------------ drawing


def draw_label(
  image: UInt8[np.ndarray, "h w 3"], label: UInt8[np.ndarray, "h w"], palette: UInt8[np.ndarray, "256 3"], side: int
) -> UInt8[np.ndarray, "h2 w2 3"]:
  """Draws a label over its image, resized so that the longer side has `side` pixels.

  Regions are half transparent and outlined, and regions too small to see are circled. Ignored pixels are hatched.
  """
  shown = _fit(image, side).astype(np.float32)
  size = shown.shape[1::-1]
  outlines = np.zeros((*shown.shape[:2], 3), np.float32)
  ringed, filled = np.zeros((2, *shown.shape[:2]), bool)
  for class_index in np.unique(label).tolist():
    if class_index == 0:
      continue
    mask = (label == class_index).astype(np.float32)
    enlarged = size[0] >= label.shape[1]
    cover = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST if enlarged else cv2.INTER_AREA)
    if class_index == IGNORE:
      hatched = _hatches(shown.shape[:2]) & (cover >= 0.5)
      shown[hatched] = 150
      continue
    color = palette[class_index].astype(np.float32)
    inside = cover >= 0.5
    filled |= inside
    shown[inside] = (1 - _BLEND) * shown[inside] + _BLEND * color
    # Regions that vanish when the image shrinks still get an outline.
    ring = _ring((cover > 0).astype(np.uint8)) & ~inside
    outlines[ring] = color
    ringed |= ring
  # A dark border makes outlines visible on any image.
  shown[(cv2.dilate(ringed.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0) & ~ringed & ~filled] *= _SHADE
  return np.where(ringed[..., None], outlines, shown).astype(np.uint8)


def _ring(present: UInt8[np.ndarray, "h w"]) -> np.ndarray:
  """Outlines each region, and circles the regions if all are too small to see."""
  ring = cv2.dilate(present, np.ones((3, 3), np.uint8))
  _, _, stats, centers = cv2.connectedComponentsWithStats(present)
  sides = stats[1:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].max(axis=1)
  for center in centers[1 : 1 + _MOST_CIRCLES] if sides.max(initial=0) < 2 * _SPECK else ():
    x, y = np.rint(center).astype(int).tolist()
    cv2.circle(ring, (x, y), _SPECK, 1, 1)
  return ring > 0


def _hatches(shape: tuple[int, ...]) -> np.ndarray:
  y, x = np.indices(shape)
  return (x + y) // 3 % 2 == 0


def _fit(image: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "h2 w2 3"]:
  scale = side / max(image.shape[:2])
  size = tuple(max(1, round(length * scale)) for length in image.shape[1::-1])
  return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)


def _draw_cell(cell: Cell, palette: UInt8[np.ndarray, "256 3"]) -> Image.Image:
  picture = Image.new("RGB", _CELL, _PAPER)
  draw = ImageDraw.Draw(picture)
  shown = [None if cell.image is None else _fit(cell.image, _SIDE), None]
  if cell.label is not None:
    fits = cell.image is not None and cell.image.shape[:2] == cell.label.shape
    image = cell.image if fits else np.full((*cell.label.shape, 3), 60, np.uint8)  # shows the label alone
    shown[1] = draw_label(image, cell.label, palette, _SIDE)
  for left, pixels, missing in zip((0, _SIDE + _GAP), shown, ("no image", "no label"), strict=True):
    right, bottom = left + _SIDE - 1, _SIDE - 1
    draw.rectangle((left, 0, right, bottom), (228, 228, 228))
    if pixels is None:
      draw.line((left, 0, right, bottom), (190, 190, 190), 2)
      draw.line((left, bottom, right, 0), (190, 190, 190), 2)
      _write(picture, (left + 8, 8), missing, 14, _FAINT)
    else:
      place = left + (_SIDE - pixels.shape[1]) // 2, (_SIDE - pixels.shape[0]) // 2
      picture.paste(Image.fromarray(pixels), place)
  _write(picture, (4, _SIDE + 4), cell.name, 14, keep_end=True)
  _write(picture, (4, _SIDE + 4 + _LINE), cell.below, 13, _RED if cell.problem else _FAINT)
  if cell.problem:
    draw.rectangle((0, 0, _CELL[0] - 1, _CELL[1] - 1), None, _RED, 4)
  return picture


def _legend(findings: Findings, palette: UInt8[np.ndarray, "256 3"]) -> list[Image.Image]:
  """Draws the color and the shares of each class in the labels."""
  pixels = findings.pixels
  surveys = [survey for survey in findings.surveys.values() if survey.num_labels]
  entries = []
  for class_index in np.flatnonzero(pixels[:IGNORE]).tolist():
    each = (f"{split_title(s.split)} {percent(s.pixels[class_index] / max(s.pixels.sum(), 1))}" for s in surveys)
    name = "0 background" if class_index == 0 else findings.class_label(class_index)
    entries.append(_legend_entry(f"{name}: {', '.join(each)} of pixels", tuple(palette[class_index].tolist())))
  if pixels[IGNORE]:
    entries.append(_legend_entry(f"ignored: {percent(pixels[IGNORE] / pixels.sum())} of pixels", None))
  return entries


def _legend_entry(text: str, color: tuple[int, ...] | None) -> Image.Image:
  """Draws one line of the legend; hatched without a color."""
  entry = Image.new("RGB", (_LEGEND_WIDTH, 24), _PAPER)
  if color is None:
    hatched = np.where(_hatches((16, 20))[..., None], 150, 228).repeat(3, axis=2).astype(np.uint8)
    entry.paste(Image.fromarray(hatched), (0, 1))
  ImageDraw.Draw(entry).rectangle((0, 1, 20, 17), color, _FAINT)
  _write(entry, (28, 0), text, 15)
  return entry


def _write(
  picture: Image.Image,
  place: tuple[int, int],
  text: str,
  size: int,
  color: tuple[int, int, int] = _INK,
  keep_end: bool = False,
) -> None:
  """Writes text into a picture. Text that is too wide loses its end, or its start if the end is kept."""
  font, width = ImageFont.load_default(size), picture.width - 2 * place[0]
  # No character is narrower than a pixel. A name of a damaged file may have any length.
  short = text[-width:] if keep_end else text[:width]
  if len(short) < len(text) or font.getlength(text) > width:
    while short and font.getlength(short + "...") > width:
      short = short[1:] if keep_end else short[:-1]
    short = f"...{short}" if keep_end else f"{short}..."
  ImageDraw.Draw(picture).text(place, short, color, font)
