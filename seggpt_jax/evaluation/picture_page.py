"""Makes a web page in one file: a summary, charts, and pictures of single images, the worst first.

In: texts, numbers and pictures. Out: HTML that contains its pictures and needs neither scripts nor a network. All texts
are escaped here.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Template

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from seggpt_jax.inference import pictures, tiling
from seggpt_jax.palette import display_palette

_PALETTE = display_palette(256)
# Tinted pictures need the higher quality and a strong tint: otherwise the color of a single pixel is almost lost.
_QUALITY, _QUALITY_TINTED = 80, 90
_OPACITY = 0.8
_CHART = 480, 110  # width and height of the bars in pixels

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1400px; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .2rem 1.5rem .2rem 0; }
td { font-variant-numeric: tabular-nums; } tr { border-bottom: 1px solid #ddd; }
.note { color: #666; } .bad { color: #b00020; font-weight: 600; }
.row { border-top: 1px solid #ddd; padding: .6rem 0; break-inside: avoid; }
.row p { margin: 0 0 .3rem; overflow-wrap: anywhere; }
.pictures { display: grid; grid-template-columns: repeat(4, 1fr); gap: .5rem; }
figure { margin: 0; } figure img { width: 100%; height: auto; display: block; }
figcaption { color: #666; font-size: .85rem; }
svg text { font: 11px system-ui, sans-serif; fill: #666; }
</style>
</head>
<body>
<h1>$title</h1>
<table>
$summary
</table>
$sections
</body>
</html>
""")


@dataclass(frozen=True)
class Row:
  """The pictures of one image."""

  name: str  # name of the image
  score: str  # its score in words
  mark: str  # mistake in words, such as "missed"; empty if there is no mistake
  pictures: Sequence[tuple[str, bytes]]  # titles, each with a JPEG from `thumbnail`


@dataclass(frozen=True)
class Section:
  """A section of the page, with one score for every image."""

  title: str  # heading
  note: str  # explanation for the reader
  chart: str  # SVG from `bars`
  rows: Sequence[Row]  # images with pictures, the worst first
  scores: Sequence[tuple[str, str, str]]  # name, score and mark of every image, the worst first


def page(title: str, summary: Mapping[str, str], sections: Sequence[Section]) -> str:
  """Returns the page.

  Args:
    title: heading.
    summary: names and values of the table at the top.
    sections: sections below the table.
  """
  lines = (f"<tr><th>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>" for key, value in summary.items())
  return _PAGE.substitute(
    title=html.escape(title), summary="\n".join(lines), sections="\n".join(_section(section) for section in sections)
  )


def thumbnail(
  image: UInt8[np.ndarray, "h w 3"], labels: Integer[np.ndarray, "h w"] | None = None, side: int = 256
) -> bytes:
  """Returns a small picture as JPEG, tinted where there are labels.

  Every region stays visible in at least one pixel, however small it is: defects are easily lost when pictures shrink.

  Args:
    image: image of any size; small ones are not enlarged.
    labels: class indices 0..254 to draw over the image.
    side: maximum of the result's height and width, in pixels.
  """
  height, width = image.shape[:2]
  scale = min(side / max(height, width), 1.0)
  size = max(round(height * scale), 1), max(round(width * scale), 1)
  small = tiling.resize_image(image, size)
  if labels is not None:
    shown = np.zeros(size, np.int32)
    for index in np.unique(labels[labels > 0]):
      mask = Image.fromarray((labels == index).astype(np.float32)).resize(size[::-1], Image.Resampling.BOX)
      shown[np.asarray(mask) > 0] = index
    small = pictures.overlay(small, shown, _PALETTE, _OPACITY)
  file = io.BytesIO()
  # Colors at full resolution: at half, which is the default, the tint of a single pixel would be lost.
  Image.fromarray(small).save(file, "jpeg", quality=_QUALITY if labels is None else _QUALITY_TINTED, subsampling=0)
  return file.getvalue()


def bars(good: Sequence[int], bad: Sequence[int], ticks: Mapping[float | int, str], limit: float | int) -> str:
  """Returns a histogram as SVG, with the counts of bad images in red on top of the counts of good ones.

  Args:
    good: number of good images in each bin.
    bad: number of bad images in each bin.
    ticks: labels below the axis, by their position in bins from the left.
    limit: position of a dashed line, in bins from the left.
  """
  (width, height), most = _CHART, max(*(g + b for g, b in zip(good, bad, strict=True)), 1)
  step, unit, bottom = width / len(good), height / most, height + 16
  parts = []
  for index, (num_good, num_bad) in enumerate(zip(good, bad, strict=True)):
    left, top = index * step + 1, bottom - (num_good + num_bad) * unit
    for y, count, color in ((top, num_bad, "#d0455a"), (top + num_bad * unit, num_good, "#4a86c5")):
      place = f'x="{left:.1f}" y="{y:.1f}" width="{step - 2:.1f}" height="{count * unit:.1f}"'
      parts.append(f'<rect {place} fill="{color}"></rect>')
    if num_good + num_bad:
      middle = f'x="{left + step / 2 - 1:.1f}" y="{top - 4:.1f}" text-anchor="middle"'
      parts.append(f"<text {middle}>{num_good + num_bad}</text>")
  line = f'x1="{limit * step:.1f}" x2="{limit * step:.1f}" y1="10" y2="{bottom}"'
  parts.append(f'<line {line} stroke="#222" stroke-dasharray="3 3"></line>')
  for index, tick in ticks.items():
    parts.append(f'<text x="{index * step:.1f}" y="{bottom + 14}" text-anchor="middle">{html.escape(tick)}</text>')
  box = f'viewBox="-20 0 {width + 40} {height + 36}" width="{width + 40}" height="{height + 36}"'
  return f"<svg {box}>{''.join(parts)}</svg>"


def _section(section: Section) -> str:
  left_out = len(section.scores) - len(section.rows)
  shown = f"Pictures of the {len(section.rows)} worst of {len(section.scores)} images"
  more = f"; the other {left_out} are only in the table." if left_out else "."
  table = "\n".join(
    f"<tr><td>{html.escape(name)}</td><td>{html.escape(score)}</td><td>{_mark(mark)}</td></tr>"
    for name, score, mark in section.scores
  )
  return "\n".join(
    [
      f"<h2>{html.escape(section.title)}</h2>",
      f"<p>{html.escape(section.note)}</p>",
      section.chart,
      f"<details><summary>Table of all {len(section.scores)} images</summary>",
      f"<table>{table}</table></details>",
      f'<p class="note">{shown}{more}</p>',
      *map(_row, section.rows),
    ]
  )


def _row(row: Row) -> str:
  figures = "".join(
    f'<figure><img loading="lazy" alt="{html.escape(title)}" '
    f'src="data:image/jpeg;base64,{base64.b64encode(picture).decode()}">'
    f"<figcaption>{html.escape(title)}</figcaption></figure>"
    for title, picture in row.pictures
  )
  words = f"<b>{html.escape(row.name)}</b> {html.escape(row.score)} {_mark(row.mark)}"
  return f'<div class="row"><p>{words}</p><div class="pictures">{figures}</div></div>'


def _mark(mark: str) -> str:
  return f'<span class="bad">{html.escape(mark)}</span>' if mark else ""
