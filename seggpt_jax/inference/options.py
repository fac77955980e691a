"""Options of inference: tiles, overlap, stitched seams, mirrored copies."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

from seggpt_jax.data.scale import Scale
from seggpt_jax.errors import InputError
from seggpt_jax.model.seggpt import SegType
from seggpt_jax.palette import IGNORE

Flips = Literal["none", "horizontal", "vertical", "both"]
# Axes to mirror, for each copy of an image.
MIRRORED_AXES: dict[Flips, tuple[tuple[int, ...], ...]] = {
  "none": ((),),
  "horizontal": ((), (-2,)),
  "vertical": ((), (-3,)),
  "both": ((), (-2,), (-3,), (-3, -2)),
}
Heads = Literal["auto", "on", "off"]
# Largest values: a hundred tiles along a side are a hundred million passes for each prompt.
MOST_SPLITS, MOST_AREA = 100, 2**31 - 1


@dataclasses.dataclass(frozen=True, repr=False)
class InferenceOptions:
  """Options for how the network is shown an image.

  Examples:
    >>> options = seggpt_jax.InferenceOptions(flips="horizontal", least_area=20)
    >>> prediction = predictor.predict("query.jpg", prompts, options=options)

  Attributes:
    split: cuts the query and every prompt into `split x split` tiles, so that small objects appear larger. Each tile of
      each prompt is a prompt for each tile of the query, which is `split**4` times the work. With several splits, the
      predicted colors are averaged before they are decoded: the whole image finds large objects, tiles find small ones.
    overlap: smallest share of a tile's side, 0..0.9, by which neighboring tiles of the query overlap. Their colors are
      blended. The prompts' tiles do not overlap.
    stitch_width: predicts the seams between tiles again, in windows across the seams, in bands of this many patches on
      each side; 0 leaves the seams as they are. Not allowed with `overlap`, which leaves no seams.
    flips: averages predictions over mirrored copies. "horizontal" and "vertical" double the work, "both" is four times
      as much.
    foreground_tiles: leaves out tiles of prompts without foreground, except tiles that fill up to 1, 2, 4, ... tiles.
    seg_type: "semantic" or "instance".
    zoom: in place of `split`, the factor from an image's pixels to the network's, as in training with data.zoom: images
      are cut into as many windows as that takes, and prompts become cells around their objects; 0 is off.
    prompt_grid: cells along a side of each prompt, with `zoom`. The given prompts fill the cells in their order, again
      from the first if there are too few, each with the class that was shown least so far.
    sensitivity: divisors of the distances of predicted colors to the colors of classes 1, 2, ..., above 0; the
      background and further classes have 1. With more than 1, more pixels become that class.
    least_area: foreground objects (8-connected, of any classes) with fewer pixels of the image become background.
    head: also fits a classifier to the prompts (`heads.fit`) and averages its probabilities with the network's where it
      is the better one. "auto" does so with the packaged networks only, for which it was measured.

  Raises:
    InputError: a value is not one of these, or is not allowed with another.
  """

  split: int | Sequence[int] = 1
  overlap: float | int = 0
  stitch_width: int = 0
  flips: Flips = "none"
  foreground_tiles: bool = False
  seg_type: SegType = "semantic"
  zoom: float | int = 0
  prompt_grid: int = 1
  sensitivity: tuple[float, ...] = ()
  least_area: int = 0
  head: Heads = "auto"

  def __post_init__(self):
    splits = self._splits
    whole = all(isinstance(n, int) and 1 <= n <= MOST_SPLITS for n in splits)
    if not splits or len(set(splits)) < len(splits) or not whole:
      raise InputError(
        f"split: found {self.split}, expected an integer of at least 1, or several that differ, none above "
        f"{MOST_SPLITS}"
      )
    for name, kinds in (("seg_type", get_args(SegType)), ("flips", get_args(Flips)), ("head", get_args(Heads))):
      if getattr(self, name) not in kinds:
        raise InputError(f"{name}: found {getattr(self, name)!r}, expected one of {', '.join(kinds)}")
    wrong = {
      "overlap": (not 0 <= self.overlap <= 0.9, "0 to 0.9, a share of a tile's side"),
      "stitch_width": (not 0 <= self.stitch_width <= 1000, "a number of patches up to 1000, or 0"),
      "sensitivity": (
        len(self.sensitivity) > IGNORE or not all(0 < value <= 1e6 for value in self.sensitivity),
        "numbers above 0, one for each class from 1",
      ),
      "least_area": (not 0 <= self.least_area <= MOST_AREA, "a number of pixels, or 0"),
      "zoom": (not 0 <= self.zoom <= 1000, "a positive number or 0"),
      "prompt_grid": (not 1 <= self.prompt_grid <= (16 if self.zoom else 1), "1 to 16 with a zoom, else 1"),
    }
    for name, (is_wrong, expected) in wrong.items():
      if is_wrong:
        raise InputError(f"{name}: found {getattr(self, name)}, expected {expected}")
    if self.overlap and self.stitch_width:
      raise InputError(f"overlap: {self.overlap} cannot be combined with stitch_width {self.stitch_width}")
    if self.zoom:
      for name in ("split", "stitch_width", "foreground_tiles"):
        found = max(splits) if name == "split" else getattr(self, name)
        if found > (name == "split"):
          raise InputError(f"{name}: {found} cannot be combined with zoom {self.zoom}")
      return
    for name in ("overlap", "stitch_width", "foreground_tiles"):
      if getattr(self, name) and max(splits) == 1:
        raise InputError(f"{name}: found {getattr(self, name)} with split 1, expected a split of at least 2")

  def __repr__(self) -> str:
    changed = [field for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
    return f"InferenceOptions({', '.join(f'{field.name}={getattr(self, field.name)!r}' for field in changed)})"

  @property
  def _splits(self) -> tuple[int, ...]:
    return (self.split,) if isinstance(self.split, int) else tuple(self.split)

  @property
  def scales(self) -> tuple[Scale, ...]:
    """The scales at which an image is shown: one, or several splits."""
    if self.zoom:
      return (Scale(self.zoom, self.prompt_grid),)
    return tuple(Scale(split=split) for split in self._splits)

  @property
  def scale(self) -> Scale:
    """The scale at which prompts are kept: the largest."""
    return max(self.scales, key=lambda scale: scale.split)
