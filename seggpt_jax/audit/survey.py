"""The survey of one split of a dataset: every file is read once, and small facts about it are kept.

A bad file stops nothing: it is counted and named, and the survey continues.

Near-duplicates are found by small prints of the images: a difference hash of 16 x 16 bits and a thumbnail of 48 x 48
grays. All hashes are compared with all others, since each takes only four words; thumbnails are compared only where
hashes are near. The hash alone cannot tell neighboring slices of a volume apart: slices 2 mm apart differ by 0 to 5
bits, as much as an image differs from a resized copy of it. The fine shapes of the thumbnails tell the two cases apart
(the tests cover both). Mirrored and rotated copies are not found.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import os
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8, UInt64
from tqdm import tqdm

from seggpt_jax.audit.label_values import SampleFiles, StoredValues, UnreadableError
from seggpt_jax.data.read_ahead import read_ahead
from seggpt_jax.errors import InputError
from seggpt_jax.formats.images import ORIENTATION, decode_image, load_upright, open_image
from seggpt_jax.formats.labels import LabelFormat, check_size
from seggpt_jax.formats.stored_labels import count_values
from seggpt_jax.palette import IGNORE

_BITS = 16
_SIDE = 48
_MARGIN = 0.2  # standard deviations, so that noise does not set bits where the image is flat
_NEAR_BITS = 16
# One minus the correlation of the fine shapes of two thumbnails. JPEG at quality 60, half the size, or brightness
# +-10 % give at most 0.020, all three at once 0.023. Neighboring slices give at least 0.038.
_SAME = 0.03
_FLAT = 0.25  # gray levels; thumbnails with less fine shape are not compared
_ROWS, _COLUMNS = 256, 8192
_MOST = 10_000


class Print(NamedTuple):
  """Print of an image: the bits of its hash, and its thumbnail."""

  bits: UInt64[np.ndarray, "4"]
  thumbnail: UInt8[np.ndarray, "48 48"]


class NearDuplicate(NamedTuple):
  """Two images that show the same: places in their lists, and a difference that is 0 for equal images."""

  first: int
  second: int
  difference: float


def print_image(image: UInt8[np.ndarray, "h w 3"]) -> Print:
  """Computes the print of an image."""
  gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
  small = cv2.resize(gray.astype(np.float32), (_BITS + 1, _BITS), interpolation=cv2.INTER_AREA)
  brighter = np.diff(small, axis=1) > _MARGIN * max(float(small.std()), 1e-3)
  thumbnail = cv2.resize(gray, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
  return Print(np.packbits(brighter).view(np.uint64), thumbnail)


def near_duplicates(first: list[Print], second: list[Print]) -> tuple[list[NearDuplicate], int]:
  """Finds pairs of images, one of each list, that show the same.

  Args:
    first: N prints.
    second: M prints.

  Returns:
    At most 10,000 pairs, most alike first, and the number of images of the second list that have a partner. Memory
    grows with N + M, not with N x M.
  """
  if not first or not second:
    return [], 0
  (hashes, thumbnails), (others, other_thumbnails) = (
    map(np.stack, zip(*((each.bits, each.thumbnail) for each in prints), strict=True)) for prints in (first, second)
  )
  found: list[NearDuplicate] = []
  copied = np.zeros(len(second), bool)
  for start in range(0, len(others), _ROWS):
    for column in range(0, len(hashes), _COLUMNS):
      own, theirs = others[start : start + _ROWS], hashes[column : column + _COLUMNS]
      # Counts the differing bits of all pairs.
      bits = sum(np.bitwise_count(own[:, None, w] ^ theirs[None, :, w]).astype(np.uint16) for w in range(4))
      rows, columns = np.nonzero(bits <= _NEAR_BITS)
      for part in range(0, len(rows), 4096):
        row, col = rows[part : part + 4096] + start, columns[part : part + 4096] + column
        (a, flat_a), (b, flat_b) = _fine(other_thumbnails[row]), _fine(thumbnails[col])
        # One minus the correlation of the fine shapes; 1 where an image has none.
        difference = np.where(flat_a | flat_b, 1, 1 - np.sum(a * b, axis=1)).astype(np.float32)
        same = np.flatnonzero(difference <= _SAME)
        copied[row[same]] = True
        found += [NearDuplicate(int(col[i]), int(row[i]), float(difference[i])) for i in same]
      if len(found) > 2 * _MOST:
        found = sorted(found, key=lambda pair: pair.difference)[:_MOST]
  return sorted(found, key=lambda pair: pair.difference)[:_MOST], int(copied.sum())


def _fine(thumbnails: UInt8[np.ndarray, "n 48 48"]) -> tuple[Float32[np.ndarray, "n 2304"], Bool[np.ndarray, "n"]]:
  """Subtracts a wide blur and normalizes to unit length; also returns where almost nothing remains."""
  values = thumbnails.astype(np.float32)
  fine = np.stack([each - cv2.GaussianBlur(each, (0, 0), 2) for each in values]) if len(values) else values
  fine = fine.reshape(len(fine), -1)
  fine -= fine.mean(axis=1, keepdims=True)
  length = np.linalg.norm(fine, axis=1)
  return fine / np.maximum(length, 1e-6)[:, None], length < _FLAT * _SIDE


PROBLEMS = {
  "unmatched": "without a partner, or out of place",
  "missing": "listed in the annotations and not there",
  "unreadable": "unreadable or cut off",
  "size": "label of another size than its image",
  "meaning": "label that cannot be read with these flags",
}
_THREADS = os.cpu_count() or 1
_NOT_FOUND = ": not found, expected a file"
_SIXTEEN_BIT = 65535
_STEPS = 16  # bins for each factor of two in area: a median is known to 2 %
_BINS = 32 * _STEPS
_SPECK = 3  # pixels


@dataclass
class ClassRegions:
  """Histogram of the areas of connected regions of one class in many images."""

  num_regions: int = 0
  smallest: float = 1.0  # area of the smallest region, relative to its image
  num_specks: int = 0  # regions of at most 3 pixels
  _speck_area: float = 0.0
  _counts: np.ndarray = field(default_factory=lambda: np.zeros(_BINS, np.int64))
  _areas: np.ndarray = field(default_factory=lambda: np.zeros(_BINS))

  def add(self, areas: Float32[np.ndarray, "n"], num_pixels: int) -> None:
    """Adds the regions of one image with this number of pixels."""
    if areas.size:
      self.num_regions += areas.size
      self.smallest = min(self.smallest, float(areas.min()))
      bins = np.minimum((-np.log2(areas) * _STEPS).astype(np.int64), _BINS - 1)
      np.add.at(self._counts, bins, 1)
      np.add.at(self._areas, bins, areas)
      specks = areas[areas * num_pixels < _SPECK + 0.5]
      self.num_specks += specks.size
      self._speck_area += float(specks.sum())

  @property
  def speck_share(self) -> float:
    """Share of the class's area that its specks hold, 0..1."""
    return self._speck_area / max(float(self._areas.sum()), 1e-12)

  @property
  def median(self) -> float:
    """Median area of a region, relative to its image; 0 without regions."""
    return max(_middle(self._counts), self.smallest) if self.num_regions else 0.0

  @property
  def median_of_pixels(self) -> float:
    """Area of the region that contains the median pixel, relative to its image; 0 without regions.

    Specks count for little. Images count as if all had the same size.
    """
    return _middle(self._areas)


def _middle(weights: np.ndarray) -> float:
  total = weights.sum()
  if not total:
    return 0.0
  middle = int(np.searchsorted(np.cumsum(weights), total / 2))
  return float(2 ** (-(middle + 0.5) / _STEPS))


class ImageFacts(NamedTuple):
  """Facts about one image file; `peak` is the largest value of a 16-bit image, else None."""

  name: str  # of its sample
  kind: str  # format and mode, such as "JPEG RGB"
  size: tuple[int, int]  # height, width, upright
  num_bytes: int
  turned: bool
  peak: int | None
  print: Print
  digest: bytes  # hash of its pixels


class SampleFacts(NamedTuple):
  """Facts about one sample; parts that could not be read are None."""

  index: int
  name: str
  image: ImageFacts | None
  pixels: Int64[np.ndarray, "256"] | None  # of each class in the label
  regions: list[tuple[int, np.ndarray]]  # classes, each with the areas of its connected regions
  values: StoredValues
  problems: list[tuple[str, str]]  # (key of PROBLEMS, message)
  num_boxes: int


class Surveyed(NamedTuple):
  """Record of one sample; `problem` is its first problem or "", and `kind` is the key of that problem in `PROBLEMS`."""

  index: int
  name: str
  classes: tuple[int, ...] | None
  problem: str
  kind: str


@dataclass
class Survey:
  """Counts over one split."""

  split: str
  num_samples: int = 0  # including samples that were not read
  images: list[ImageFacts] = field(default_factory=list)  # of the images that were read
  num_boxes: int = 0  # objects whose outline is only a rectangle
  problems: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in PROBLEMS})  # messages
  values: StoredValues = field(default_factory=StoredValues)  # values stored in the label files
  pixels: np.ndarray = field(default_factory=lambda: np.zeros(IGNORE + 1, np.int64))  # of each class
  regions: dict[int, ClassRegions] = field(default_factory=dict)  # sizes of the regions of each class
  holding: np.ndarray = field(default_factory=lambda: np.zeros(IGNORE + 1, np.int64))  # samples that show each class
  num_labels: int = 0  # labels that were read
  num_empty: int = 0  # of these, those without foreground
  samples: list[Surveyed] = field(default_factory=list)

  def add(self, facts: SampleFacts) -> None:
    """Adds the facts about one sample."""
    for kind, what in facts.problems:
      self.problems[kind].append(what)
    self.values.add(facts.values)
    self.num_boxes += facts.num_boxes
    if facts.image is not None:
      self.images.append(facts.image)
    classes = None
    if facts.pixels is not None:
      classes = tuple((np.flatnonzero(facts.pixels[1:IGNORE]) + 1).tolist())
      self.num_labels += 1
      self.num_empty += not classes
      self.pixels += facts.pixels
      self.holding += facts.pixels > 0
      for class_index, areas in facts.regions:
        self.regions.setdefault(class_index, ClassRegions()).add(areas, int(facts.pixels.sum()))
    kind, problem = facts.problems[0] if facts.problems else ("", "")
    self.samples.append(Surveyed(facts.index, facts.name, classes, problem, kind))

  @property
  def turned(self) -> list[str]:
    """Names of samples whose image an EXIF tag rotates."""
    return [image.name for image in self.images if image.turned]

  @property
  def num_usable(self) -> int:
    """Number of samples without a known problem."""
    return sum(not sample.problem for sample in self.samples)

  @property
  def num_intact(self) -> int:
    """Number of samples that are usable, or would be with another label format."""
    return sum(sample.kind in ("", "meaning") for sample in self.samples)

  def copies(self) -> list[list[str]]:
    """Returns groups of sample names whose images are identical, pixel for pixel."""
    names = collections.defaultdict(list)
    for image in self.images:
      names[image.digest].append(image.name)
    return [each for each in names.values() if len(each) > 1]


def survey_split(survey: Survey, files: SampleFiles, label_format: LabelFormat, max_images: int = 0) -> None:
  """Reads the samples of a split into its survey.

  Args:
    survey: survey to which the facts are added.
    files: access to the samples.
    label_format: format of the label files.
    max_images: number of samples to read, evenly spread; 0 is all.
  """
  survey.num_samples = len(files)
  chosen = spread(len(files), max_images)
  read = functools.partial(_read_sample, files, label_format)
  results = read_ahead(read, chosen, threads=_THREADS, ahead=16 * _THREADS)
  bar = tqdm(results, f"reading {survey.split}", len(chosen), unit="image", delay=1.0)
  for _, facts in bar:
    survey.add(facts.result())


def spread(count: int, most: int) -> list[int]:
  """Returns at most `most` of the numbers 0..count-1, evenly spread; all of them if `most` is 0."""
  if not most or most >= count:
    return list(range(count))
  return np.linspace(0, count - 1, most).round().astype(int).tolist()


def read_values(files: SampleFiles, most: int) -> StoredValues:
  """Reads the stored values of at most `most` labels, evenly spread."""
  stored = StoredValues()
  for index in spread(len(files), most):
    _read_label(files, index, None, LabelFormat("binary"), stored, [])
  return stored


def _read_sample(files: SampleFiles, label_format: LabelFormat, index: int) -> SampleFacts:
  problems: list[tuple[str, str]] = []
  image, values = None, StoredValues()
  try:
    image = _image_facts(files.name(index), *files.encoded_image(index))
  except InputError as error:
    problems.append(("missing" if str(error).endswith(_NOT_FOUND) else "unreadable", str(error)))
  label = _read_label(files, index, None if image is None else image.size, label_format, values, problems)
  pixels = None if label is None else count_values(label)
  regions = [] if label is None else _region_areas(label, pixels)
  return SampleFacts(index, files.name(index), image, pixels, regions, values, problems, files.num_boxes(index))


def _read_label(files, index, size, label_format, values, problems):
  """Reads a label; None if it is bad. Adds the values of its files to `values`, and what is wrong to `problems`."""
  try:
    label = files.read_label(index, size, label_format, values)
    check_size(label, size, files.name(index))
    return label
  except InputError as error:
    unreadable = isinstance(error, UnreadableError) or "cannot be read" in str(error)
    kind = "unreadable" if unreadable else "size" if "as its image has" in str(error) else "meaning"
    problems.append((kind, str(error)))
    return None


def _image_facts(name: str, data: bytes, where: str) -> ImageFacts:
  """Decodes an image file; raises InputError if it is unreadable."""
  header = open_image(data, where)
  pixels = decode_image(data, where)
  transparent = "transparency" in header.info and header.mode != "RGBA"
  turned = header.getexif().get(ORIENTATION, 1) not in (0, 1)
  deep = header.mode.startswith("I")
  return ImageFacts(
    name,
    kind=f"{header.format} {header.mode}{' with transparency' if transparent else ''}",
    size=pixels.shape[:2],
    num_bytes=len(data),
    turned=turned,
    peak=min(int(np.asarray(load_upright(header, where)).max(initial=0)), _SIXTEEN_BIT) if deep else None,
    print=print_image(pixels),
    digest=hashlib.blake2b(np.ascontiguousarray(pixels), digest_size=12, key=repr(pixels.shape).encode()).digest(),
  )


def _region_areas(
  label: UInt8[np.ndarray, "h w"], pixels: Int64[np.ndarray, "256"]
) -> list[tuple[int, Float32[np.ndarray, "n"]]]:
  """Returns each class but the background, and the areas of its connected regions relative to the image."""
  found = []
  for class_index in np.flatnonzero(pixels[1:IGNORE]) + 1:
    mask = cv2.inRange(label, int(class_index), int(class_index))
    x, y, width, height = cv2.boundingRect(mask)
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask[y : y + height, x : x + width])
    found.append((int(class_index), (stats[1:, cv2.CC_STAT_AREA] / label.size).astype(np.float32)))
  return found
