"""Advice on the files of a dataset: missing, damaged, of the wrong size, duplicated, or shared by two splits.

What advice is made of is here too: its wording, and the network that it is for.
"""

from __future__ import annotations

import collections
import itertools
import math
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from seggpt_jax.audit.findings import Findings
from seggpt_jax.audit.survey import Survey
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.formats.recognize import OUTLINES

_FEW_TRAIN, _FEW_VAL = 10, 5
_LARGE = 4_000_000  # pixels
_DARK = 65535 // 4
_WEIGHTS = Path("weights/vit_large")


class Advice(NamedTuple):
  """A sentence, the keys of `config.data` that it recommends, and whether training fails without it (`fatal`)."""

  text: str
  keys: Mapping[str, Any] = MappingProxyType({})
  fatal: bool = False


def key_text(keys: Mapping[str, Any]) -> str:
  """Returns keys with their values, as in a configuration: data.labels=index."""
  return ", ".join(f"data.{key}={value}" for key, value in keys.items())


def count_text(count: int, what: str = "file") -> str:
  """Returns a count with its noun: 1 file, 2 files."""
  return f"{count} {what}{'' if count == 1 else 's'}"


class Network(NamedTuple):
  """A network with its configurations in configs/."""

  config: str  # configuration that shows it whole images
  defects_config: str  # configuration that shows it tiles, at a scale at which small objects are as large as a patch
  square: int  # side in pixels of what it sees at once
  patch: int  # side of a patch in pixels, or of the smallest object that a trained head finds well
  remedy: str  # what to do about smaller objects


SMALL = Network("head", "head", 224, 4, "a larger config.data.resize shows them larger, and takes longer")
LARGE = Network(
  *("base", "defects", 448, 16),
  "--config defects trains on tiles at a scale that shows them, and `seggpt infer` then cuts in the same way",
)


def network() -> Network:
  """Returns the network that people have: the released one if it was converted here, else the packaged small one."""
  return LARGE if _WEIGHTS.is_dir() else SMALL


def region_sides(findings: Findings) -> dict[int, float]:
  """Returns the side in pixels of each class's regions where the network sees whole images."""
  regions, square = sorted(findings.train.regions.items()), network().square
  return {index: square * math.sqrt(found.median_of_pixels) for index, found in regions}


def needs_tiles(findings: Findings) -> bool:
  """Returns whether the regions of a class are smaller than a patch where the network sees whole images."""
  return min(region_sides(findings).values(), default=math.inf) < network().patch


def _usable(findings: Findings) -> Iterator[Advice]:
  train, val = findings.train, findings.val
  # Estimates for the whole split where only some samples were read. Labels read in the wrong format may still be good.
  num_train, num_val = (0 if each is None else _num_good(findings, each) for each in (train, val))
  if num_train < 2:
    yield Advice(
      f"{train.split} has {count_text(num_train, 'usable sample')}: training will refuse, since a pair needs two",
      {},
      True,
    )
  elif num_train < _FEW_TRAIN:
    yield Advice(
      f"{train.split} has only {num_train} usable samples: try `seggpt infer` with them as prompts, or label more"
    )
  if val is None:
    what = "the folder has one part only" if train.split == "." else f"only {train.split} was read"
    text = f"{what}; training also needs a validation split, data.val_split"
    yield Advice(text + _divide_text(findings, num_train), {}, not findings.others)
  elif 2 <= num_val < _FEW_VAL:
    yield Advice(
      f"{val.split} has only {num_val} usable samples: its scores are noisy; add images before you compare runs"
    )
  elif num_val < 2:
    text = f"{val.split} has {count_text(num_val, 'usable sample')}: training will refuse, since validation needs two"
    yield Advice(text + ("" if val.num_samples else _divide_text(findings, num_train)), {}, True)
  if findings.others:
    yield Advice(
      f"not read: {', '.join(findings.others)}; keep such a split to judge the finished network, or name it in --split"
    )


def _num_good(findings: Findings, survey: Survey) -> int:
  """Estimates how many samples are usable once their labels are read in the right format."""
  good = survey.num_usable if findings.guess is None else survey.num_intact
  return round(good * survey.num_samples / max(len(survey.samples), 1))


def _divide_text(findings: Findings, num_train: int) -> str:
  """Returns the advice to divide the training split, if it can be divided."""
  if num_train < 4 or findings.dataset.kind == "tfds":
    return ""
  divided = "it" if findings.train.split == "." else findings.train.split
  by_image = (
    "" if findings.groups else " (this command divides by image; set --groups if several images show the same object)"
  )
  # prefix:/ takes whole names, so every image is a group by itself.
  groups = findings.groups.spec if findings.groups is not None else "prefix:/"
  line = _prepare_line(findings, "divided", split=findings.train.split, groups=groups, val_share=0.2)
  return f"; divide {divided} and inspect the result{by_image}: {line}"


def _prepare_line(findings: Findings, outdir: str, **changes: Any) -> str:
  """Returns the command that converts this dataset, with labels read as in the audit."""
  dataset = findings.dataset
  flags: dict[str, Any] = {"kind": dataset.kind, "path": dataset.path, "num_classes": dataset.num_classes}
  flags |= {} if dataset.kind in OUTLINES else _label_flags(dataset.label_format)
  flags |= {"class_names": ",".join(dataset.class_names)} if dataset.class_names else {}
  bad = any(
    survey.num_usable < len(survey.samples) or survey.problems["unmatched"] for survey in findings.surveys.values()
  )
  flags |= {"bad_files": "skip"} if bad else {}
  flags |= {**changes, "format": "folder", "outdir": f"{dataset.path.rstrip('/')}_{outdir}"}
  return _line("prepare", flags)


def _line(command: str, flags: dict[str, Any]) -> str:
  return " ".join([f"seggpt {command}", *(f"--{name}={shlex.quote(str(value))}" for name, value in flags.items())])


def _label_flags(read: LabelFormat) -> dict[str, str]:
  """Returns the flags that read labels as in the audit."""
  table, ignore = (",".join(str(value).replace(" ", "") for value in values) for values in (read.table, read.ignore))
  more = str(read.threshold) if read.threshold is not None else table
  return {"labels": f"{read.mode}:{more}" if more else read.mode} | ({"ignore": ignore} if ignore else {})


def segment_line(findings: Findings) -> str:
  """Returns the command that segments the last split by the first one's examples; "" if these are no label maps."""
  folders = [files.folders for files in findings.files.values() if files.folders]
  if findings.dataset.kind != "folder" or not folders or len(folders[0]) < 2:
    return ""
  queries = folders[-1][0]
  flags = {"model-path": "small", "outdir": "segmented"}
  flags["dataset-dir"] = os.path.dirname(queries) if os.path.basename(queries) == "images" else queries
  flags |= dict(zip(("prompt-img-dir", "prompt-label-dir"), folders[0], strict=False))
  return _line("infer", flags | _label_flags(findings.dataset.label_format))


def _unmatched(findings: Findings) -> Iterator[Advice]:
  for survey in findings.surveys.values():
    problems = survey.problems["unmatched"]
    if problems and survey.num_samples:
      what = (
        f"{count_text(len(problems))} of {survey.split} without a partner or out of place, the first: {problems[0]}"
      )
      yield _skippable(findings, f"{what}; remove them, add their partners")
    elif problems and survey is findings.train:
      yield Advice(f"{survey.split} is unusable: {problems[0]}", fatal=True)


def _bad(findings: Findings) -> Iterator[Advice]:
  surveys = findings.surveys.values()
  unreadable = [each for survey in surveys for each in survey.problems["unreadable"]]
  if unreadable:
    yield _skippable(findings, f"{count_text(len(unreadable))} unreadable or cut off: remove or replace them")
  wrong = [each for survey in surveys for each in survey.problems["meaning"]] if findings.guess is None else []
  if wrong:
    text = f"{count_text(len(wrong), 'label')} cannot be read, the first: {wrong[0]}; correct them"
    yield _skippable(findings, text) if any(survey.num_usable for survey in surveys) else Advice(text, fatal=True)


def _notes(findings: Findings) -> Iterator[Advice]:
  yield from (Advice(f"{split}: {note}") for split, files in findings.files.items() for note in files.notes)


def _missing(findings: Findings) -> Iterator[Advice]:
  for survey in findings.surveys.values():
    problems = survey.problems["missing"]
    if not problems:
      continue
    if len(problems) == len(survey.samples):
      yield Advice(
        f"none of the {len(problems)} images that the annotations of {survey.split} list was found, the first: "
        f"{problems[0]}; put the images into this folder, or correct their names in the annotations (file_name)",
        fatal=True,
      )
    else:
      text = f"{count_text(len(problems), 'image')} of {survey.split} are listed and not there, the first: "
      yield _skippable(findings, f"{text}{problems[0]}; add them")


def _skippable(findings: Findings, text: str) -> Advice:
  """Returns advice with the keys that leave out all files that cannot be used."""
  share = 0.0
  for survey in findings.surveys.values():
    left_out, num_read = len(survey.problems["unmatched"]), max(len(survey.samples), 1)
    unusable = len(survey.problems["unreadable"]) + len(survey.problems["missing"])
    unusable += len(survey.problems["meaning"]) if findings.guess is None else 0
    share = max(share, left_out / (survey.num_samples + left_out or 1), unusable / num_read)
  keys = {"bad_share": min(math.ceil(share * 100 + 1) / 100, 1.0) if share > 0.01 else 0.01}
  return Advice(f"{text}, or set {key_text(keys)}", keys)


def _turned(findings: Findings) -> Iterator[Advice]:
  turned = [f"{survey.split} {name}" for survey in findings.surveys.values() for name in survey.turned]
  if turned:
    yield Advice(
      f"{count_text(len(turned), 'image')} turned by a tag (EXIF orientation), the first: {turned[0]}: labels must fit "
      "the upright picture; look at these on the sheet, inspect.png, and rotate the labels if they were drawn on the "
      "pixels as stored"
    )


def _boxes(findings: Findings) -> Iterator[Advice]:
  boxes = sum(survey.num_boxes for survey in findings.surveys.values())
  if boxes:
    yield Advice(
      f"{count_text(boxes, 'object')} of the labels are rectangles, which are filled: boxes drawn around objects teach "
      "the network boxes; outline the objects if these are no rectangles"
    )


def _sizes(findings: Findings) -> Iterator[Advice]:
  problems = [each for survey in findings.surveys.values() for each in survey.problems["size"]]
  turned = [each for each in problems if "EXIF" in each]
  if turned:
    yield Advice(
      f"{count_text(len(turned), 'label')} with width and height exchanged: an EXIF tag rotates the image but not "
      "its label; rotate the labels, or save the images upright without the tag",
      fatal=True,
    )
  if len(problems) > len(turned):
    count = count_text(len(problems) - len(turned), "label")
    yield Advice(f"{count} of another size than their image: save them again at the size of the image", fatal=True)


def _large(findings: Findings) -> Iterator[Advice]:
  areas = [math.prod(image.size) for survey in findings.surveys.values() for image in survey.images]
  large = sum(area > _LARGE for area in areas)
  if large > 0.1 * len(areas):
    scale = findings.train.num_samples / max(len(findings.train.samples), 1)
    pixels = scale * sum(math.prod(image.size) for image in findings.train.images)
    keys = {"cache_mb": math.ceil(4 * pixels / 2**20)}
    line = _prepare_line(findings, "1024", split=",".join(findings.surveys), shorter_side=1024)
    text = (
      f"{large} of {len(areas)} images have more than 4 million pixels and are slow to read: keep them decoded in "
      f"memory if there is enough, {key_text(keys)}, or make smaller copies: {line}"
    )
    yield Advice(text, keys if keys["cache_mb"] <= 4096 else {})


def _dark(findings: Findings) -> Iterator[Advice]:
  images = itertools.chain(*(survey.images for survey in findings.surveys.values()))
  peaks = [image.peak for image in images if image.peak is not None]
  if not peaks or np.median(peaks) >= _DARK:
    return
  found = f"images of 16 bits reach only {max(peaks)} of 65535 (half of them {np.median(peaks):.0f})"
  if max(peaks) <= 4095:
    white = 255 if max(peaks) <= 255 else 4095
    yield Advice(f"{found} and are read with {white} as white; save them with 8 bits if they have another depth")
  else:
    yield Advice(
      f"{found}, which is {max(peaks) / 257:.0f} of 255 and nearly black; stretch their values to 0..65535 or save "
      "them with 8 bits"
    )


def _leaks(findings: Findings) -> Iterator[Advice]:
  groups = findings.groups
  if groups is None:
    sizes = collections.Counter(each.name.rpartition("/")[2].rpartition("_")[0] for each in findings.train.samples)
    if 1 < len(sizes) <= len(findings.train.samples) / 2 and min(sizes.values()) > 1 and "" not in sizes:
      yield Advice(
        f"names look like {len(sizes)} groups, such as {sizes.most_common(1)[0][0]}: if each is a task of its own, or "
        "one object, inspect with --groups=prefix:_ and train with data.groups=prefix:_: prompts are then of its group"
      )
    return
  for problem in groups.problems[:3]:
    yield Advice(f"groups cannot be determined: {problem}; set another --groups")
  if len({group for sizes in groups.sizes.values() for group in sizes}) == 1:
    yield Advice(f"--groups={shlex.quote(groups.spec)} puts all samples into one group; choose another rule")
  elif groups.shared:
    named = ", ".join(groups.shared[:5])
    yield Advice(
      f"{count_text(len(groups.shared), 'group')} in more than one split ({named}): scores will look better than they "
      f"are; move each to one split, or put all samples in {findings.train.split} and divide them with "
      f"`seggpt prepare` and --groups={shlex.quote(groups.spec)}"
    )


def _copies(findings: Findings) -> Iterator[Advice]:
  for copies in findings.copies:
    if copies.num_copied:
      first, second, _ = copies.pairs[0]
      yield Advice(
        f"{copies.num_copied} of {copies.num_compared} images of {copies.second} are also in {copies.first}, or "
        f"nearly the same ({second} is {first}): remove them from one, or scores will look better than they are"
      )
  for survey in findings.surveys.values():
    same = survey.copies()
    if same:
      yield Advice(
        f"{count_text(sum(len(each) - 1 for each in same), 'image')} of {survey.split} occur more than once "
        f"({' = '.join(same[0][:3])}): remove the copies, or merge their labels if they show different objects"
      )


RULES: tuple[Callable[[Findings], Iterator[Advice]], ...] = (
  *(_usable, _unmatched, _missing, _bad, _notes, _sizes),
  *(_turned, _boxes, _leaks, _copies, _dark, _large),
)
