"""Advice on a dataset before training: findings in, sentences with config keys out.

The advice on labels is here: how to read them, and classes that are rare, small or missing.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from seggpt_jax.audit import file_advice
from seggpt_jax.audit.file_advice import Advice, count_text, key_text, needs_tiles, network, region_sides
from seggpt_jax.audit.findings import Findings, describe_format
from seggpt_jax.audit.label_guess import conflict_text, made_up
from seggpt_jax.palette import IGNORE


def advise(findings: Findings) -> list[Advice]:
  """Returns all advice that the findings call for, problems that stop training first."""
  found = [advice for rule in (*file_advice.RULES, *_RULES) for advice in rule(findings)]
  return sorted(found, key=lambda advice: not advice.fatal)


def train_line(findings: Findings, advice: list[Advice]) -> str:
  """Returns the training command with all keys set that the audit found."""
  keys = describe_format(findings)
  for each in advice:
    keys |= each.keys
  values = " ".join(f"--config.data.{key}={shlex.quote(str(value))}" for key, value in keys.items())
  named = network()
  config = named.defects_config if needs_tiles(findings) else named.config
  if config == "head" and findings.dataset.kind == "class_folders":
    config = "small"  # a class means another thing in each folder, so only prompts tell which
  return f"seggpt train --config {config} --workdir runs/mine {values}"


_RARE = 0.1  # share of the samples
_SMALL_SHARE = 0.05  # share of the pixels
_FEW_BORDERS = 100  # pixels
_RAMPS = 0.15  # share of the pixels at borders; 0.1 at most without interpolation, also in crowded scenes
_RAMPS_OF_THREE = 0.5  # the same where there are only three values
_FEW_SPECKS = 20
_SPECK_SHARE = 0.3  # share of the class's area


def _meaning(findings: Findings) -> Iterator[Advice]:
  """Advises on the label format."""
  dataset, guess, given = findings.dataset, findings.guess, "labels" in findings.given
  refused = [each for survey in findings.surveys.values() for each in survey.problems["meaning"]]
  if guess is None:
    return  # `file_advice` reports labels that cannot be read
  keys = _format_keys(findings)
  if not given:
    plain = guess.label_format.mode == "index" and not guess.label_format.ignore
    doubt = f" ({guess.doubt})" if guess.doubt else ""
    if not plain or doubt:
      yield Advice(f"{guess.reason}; set {key_text(keys)}{doubt}", keys)
    if refused:
      yield Advice(
        f"{count_text(len(refused), 'label')} cannot be read in this format, the first: {refused[0]}", fatal=True
      )
  elif refused or (guess.label_format.mode == "binary" and dataset.label_format.mode == "index"):
    yield Advice(
      f"{guess.reason}, which data.labels={dataset.label_format.mode} does not fit; set {key_text(keys)}", keys
    )


def _mask_names(findings: Findings) -> Iterator[Advice]:
  names = findings.dataset.class_names
  if findings.dataset.kind == "masks" and names and "class_names" not in findings.given:
    keys = {"class_names": names, "num_classes": 1 + len(names)}
    yield Advice(
      f"names of masks begin with {', '.join(names)}: these are read as classes; set {key_text(keys)}, or give all of "
      "them the same beginning if they are one class",
      keys,
    )


def _format_keys(findings: Findings) -> dict[str, Any]:
  guess = findings.guess
  label_format = guess.label_format
  keys: dict[str, Any] = {"labels": label_format.mode}
  keys |= {
    k: getattr(label_format, k) for k in ("threshold", "table", "ignore") if getattr(label_format, k) not in (None, ())
  }
  masks = findings.dataset.kind == "masks" and "labels" not in findings.given
  keys["num_classes"] = findings.dataset.num_classes if masks else guess.num_classes
  return keys if "num_classes" not in findings.given else {k: v for k, v in keys.items() if k != "num_classes"}


def _palette_files(findings: Findings) -> Iterator[Advice]:
  stored, by_color = findings.stored, findings.dataset.label_format.colors
  if stored.palette_conflict() is not None and not by_color:
    yield Advice(
      f"the palettes of the labels differ: {conflict_text(stored)}, so an index is not one class: read the colors with "
      "data.labels=table, or save the labels without palettes if the indices are right",
      fatal=findings.dataset.label_format.mode != "binary",
    )
  elif stored.num_palettes and not by_color:
    yield Advice(
      f"{count_text(stored.num_palettes, 'label')} with a color palette: the indices into the palette are read, not "
      "its colors"
    )


def _interpolated(findings: Findings) -> Iterator[Advice]:
  """Advises on values that resizing or smoothing made up along borders."""
  stored, label_format = findings.stored, findings.dataset.label_format
  if stored.num_lossy or stored.colors or label_format.mode == "binary":
    return
  values = [value for value in made_up(stored.facts()) if value not in label_format.ignore]
  # One class may really lie between two others, as gray matter does around white matter (0.43 of its borders).
  least = _RAMPS if len(stored.facts()) > 3 else _RAMPS_OF_THREE
  ramps = stored.steep >= _FEW_BORDERS and stored.soft > least * stored.steep
  if values or ramps:
    named = ", ".join(map(str, sorted(values)[:5])) + (", ..." if len(values) > 5 else "")
    what = f"value {named} only occurs" if len(values) == 1 else f"values {named} only occur"
    what = f"{what} along borders between lower and higher values" if values else "borders run through values between"
    yield Advice(
      f"{what}, as if labels were resized with interpolation, smoothed or compressed with loss, which makes up classes "
      "there: resize labels with nearest neighbor, without antialiasing; fine if these rims are real"
    )


def _too_many_classes(findings: Findings) -> Iterator[Advice]:
  found, expected = findings.num_found, findings.dataset.num_classes
  if found > expected:
    keys = {"num_classes": found}
    text = f"labels hold class {found - 1}, beyond num_classes={expected}: set {key_text(keys)}"
    if 255 not in findings.dataset.label_format.ignore and found > 200:
      text += ", or set data.ignore if that value marks pixels to ignore"
    yield Advice(text, keys, fatal=True)


def _foreground(findings: Findings) -> Iterator[Advice]:
  train = findings.train
  if not train.num_labels:
    return
  if train.num_empty == train.num_labels:
    text = f"no label of {train.split} shows any foreground, read as {findings.dataset.label_format}"
    if train.pixels[IGNORE]:
      text += ", and all that is marked is ignored (crowd regions, or data.ignore)"
    yield Advice(f"{text}: training stops", fatal=True)
  elif train.num_empty > 0.5 * train.num_labels:
    yield Advice(
      f"{train.num_empty / train.num_labels:.0%} of {train.split} have no foreground: fine if the network should "
      "see such images; to train mostly on the others, take some of these out"
    )
  val = findings.val
  if val is not None and val.num_labels and val.num_empty == val.num_labels:
    yield Advice(f"no label of {val.split} shows any foreground: its scores mean nothing; add images with foreground")


def _specks(findings: Findings) -> Iterator[Advice]:
  """Advises on regions of a few pixels in addition to the real objects."""
  noisy = []
  for class_index in sorted({c for survey in findings.surveys.values() for c in survey.regions}):
    regions = [survey.regions[class_index] for survey in findings.surveys.values() if class_index in survey.regions]
    total, specks = sum(each.num_regions for each in regions), sum(each.num_specks for each in regions)
    if specks > max(_FEW_SPECKS, 0.5 * total) and max(each.speck_share for each in regions) < _SPECK_SHARE:
      noisy.append(f"{specks} of the {total} regions of class {findings.class_label(class_index)}")
  if noisy:
    yield Advice(
      f"{', '.join(noisy[:5])} have at most 3 pixels, and most of its area is in the others: specks, such as noise "
      "or stray strokes; numbers and sizes of regions mean little before they are removed"
    )


def _unseen(findings: Findings) -> Iterator[Advice]:
  """Advises on classes without a pixel in any split."""
  unseen = [c for c in range(1, findings.dataset.num_classes) if not findings.pixels[c]]
  if unseen and findings.train.num_labels and findings.train.num_empty < findings.train.num_labels:
    named = ", ".join(findings.class_label(c) for c in unseen[:8]) + (", ..." if len(unseen) > 8 else "")
    some = " among those read" if findings.max_images else ""
    what = f"class {named} is" if len(unseen) == 1 else f"classes {named} are"
    yield Advice(f"{what} in no label{some}: add labels that show them, or leave them out")


def _rare(findings: Findings) -> Iterator[Advice]:
  train = findings.train
  if train.num_empty > 0.5 * train.num_labels:
    return  # `_foreground` reports it
  shares = train.holding[1:IGNORE] / max(train.num_labels, 1)
  rare = (np.flatnonzero((shares > 0) & (shares < _RARE) & (shares < 0.25 * shares.max())) + 1).tolist()
  if rare:
    named = ", ".join(f"{findings.class_label(c)} in {shares[c - 1]:.1%}" for c in rare[:5])
    yield Advice(f"rare classes ({named} of the samples): label more images that show them")


def _missing_classes(findings: Findings) -> Iterator[Advice]:
  train, val = findings.train, findings.val
  if val is None or not train.num_labels or not val.num_labels:
    return
  for first, second, what in ((train, val, "are not scored"), (val, train, "are scored and never learned")):
    only = np.flatnonzero((first.holding[1:IGNORE] > 0) & (second.holding[1:IGNORE] == 0)) + 1
    if only.size and second.num_empty < second.num_labels:
      named = ", ".join(findings.class_label(int(c)) for c in only[:8])
      yield Advice(f"classes only in {first.split}, not in {second.split}: {named}; they {what}")


def _small(findings: Findings) -> Iterator[Advice]:
  train, named = findings.train, network()
  tiled = needs_tiles(findings)
  foreground = train.pixels[1:IGNORE].sum() / max(train.pixels.sum(), 1)
  filled = max(1 - train.num_empty / max(train.num_labels, 1), 1e-6)
  if train.regions and foreground / filled < _SMALL_SHARE and named.defects_config != named.config and not tiled:
    keys = {"foreground_crop": 0.5}
    yield Advice(
      f"foreground is {foreground / filled:.2%} of the samples that show any: most random crops miss it; set "
      f"{key_text(keys)}",
      keys,
    )
  if tiled:
    small = {c: side for c, side in region_sides(findings).items() if side < named.patch}
    shown = ", ".join(f"class {findings.class_label(c)}: {side:.0f}" for c, side in list(small.items())[:5])
    yield Advice(
      f"regions are small: their sides in pixels, where the network sees a whole image as {named.square} pixels, "
      f"are {shown}; {named.remedy}"
    )


def _ignored(findings: Findings) -> Iterator[Advice]:
  pixels = findings.pixels
  share = pixels[IGNORE] / max(pixels.sum(), 1)
  if share > 0.5:
    yield Advice(f"{share:.0%} of the pixels are ignored: only the rest is trained on and scored; check data.ignore")


_RULES: tuple[Callable[[Findings], Iterator[Advice]], ...] = (
  *(_meaning, _mask_names, _palette_files, _interpolated, _too_many_classes, _foreground, _specks),
  *(_unseen, _rare, _missing_classes, _small, _ignored),
)
