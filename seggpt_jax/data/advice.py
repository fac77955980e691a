"""What a person should do about a dataset before training on it: an inspection in, sentences with keys to set out."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from seggpt_jax.data.inspection import Inspection, describe_format
from seggpt_jax.palette import IGNORE

# Of configs/base.py: the network sees squares of 448 pixels in patches of 16, cut out of samples resized to 1024.
_SQUARE, _PATCH = 448, 16
_FEW_TRAIN, _FEW_VAL = 10, 5
_LARGE = 4_000_000  # pixels
_RARE = 0.1  # of the samples
_SMALL_SHARE = 0.05  # of the pixels
_DARK = 65535 // 4


class Advice(NamedTuple):
  """One sentence, and the keys of the configuration's `data` that it sets; `fatal` if training would refuse."""

  text: str
  keys: Mapping[str, Any] = MappingProxyType({})
  fatal: bool = False


def advise(inspection: Inspection) -> list[Advice]:
  """All advice that the facts call for, what hinders training first."""
  found = [advice for rule in _RULES for advice in rule(inspection)]
  return sorted(found, key=lambda advice: not advice.fatal)


def train_line(inspection: Inspection, advice: list[Advice]) -> str:
  """The command that trains with everything set that was found."""
  keys = describe_format(inspection)
  for each in advice:
    keys |= each.keys
  values = " ".join(f"--config.data.{key}={shlex.quote(str(value))}" for key, value in keys.items())
  # The released weights have to be converted once; the small ones come with the package.
  config = "base" if Path("weights/vit_large").is_dir() or not Path("configs/small.py").is_file() else "small"
  return f"python train.py --config configs/{config}.py --workdir runs/mine {values}"


def _keys(keys: dict[str, Any]) -> str:
  return ", ".join(f"data.{key}={value}" for key, value in keys.items())


def _files(count: int, what: str = "file") -> str:
  return f"{count} {what}{'' if count == 1 else 's'}"


# -------------------------------------------------------------------------------------------------------------- files


def _usable(inspection: Inspection) -> Iterator[Advice]:
  train, val = inspection.train, inspection.val
  if train.num_usable < 2:
    yield Advice(
      f"{train.split} has {_files(train.num_usable, 'usable sample')}: training will refuse, a pair needs two",
      fatal=True,
    )
  elif train.num_usable < _FEW_TRAIN:
    yield Advice(
      f"{train.split} has only {train.num_usable} usable samples: try `infer.py` with them as prompts before training"
    )
  if val is None or val.num_usable >= _FEW_VAL:
    return
  if val.num_usable >= 2:
    yield Advice(f"{val.split} has only {val.num_usable} usable samples: its scores will jump, compare none closely")
    return
  text = f"{val.split} has {_files(val.num_usable, 'usable sample')}: training will refuse, it needs two to validate"
  if not val.num_samples and train.num_usable >= 4:
    text += f"; divide {train.split}: {_divide_line(inspection)}"
  yield Advice(text, fatal=True)


def _divide_line(inspection: Inspection) -> str:
  """The command that makes two parts of one, with the labels as they are read here."""
  dataset, label_format = inspection.dataset, inspection.dataset.label_format
  flags = {"kind": dataset.kind, "path": dataset.path, "split": inspection.train.split}
  flags |= {"num_classes": dataset.num_classes, "labels": label_format.mode}
  flags |= {"threshold": label_format.threshold} if label_format.threshold else {}
  for name in ("table", "ignore"):
    if getattr(label_format, name):
      flags[name] = ",".join(str(value).replace(" ", "") for value in getattr(label_format, name))
  flags |= {"class_names": ",".join(dataset.class_names)} if dataset.class_names else {}
  if inspection.groups is not None:
    flags["groups"] = inspection.groups.spec
  outdir = dataset.path.rstrip("/") + "_divided"
  flags |= {"val_share": 0.2, "format": "folder", "outdir": outdir}
  values = " ".join(f"--{name}={shlex.quote(str(value))}" for name, value in flags.items())
  return f"python -m seggpt_jax.data.prepare {values}"


def _unmatched(inspection: Inspection) -> Iterator[Advice]:
  for survey in inspection.surveys.values():
    problems = survey.problems["unmatched"]
    if problems and survey.num_samples:
      what = f"{_files(len(problems))} of {survey.split} without a partner or out of place: training will refuse"
      yield Advice(f"{what} until they are removed or their partners are there", fatal=True)
    elif problems and survey is inspection.train:
      yield Advice(f"{survey.split} cannot be used: {problems[0]}", fatal=True)


def _bad(inspection: Inspection) -> Iterator[Advice]:
  surveys = inspection.surveys.values()
  unreadable = sum(len(survey.problems["unreadable"]) for survey in surveys)
  if not unreadable:
    return
  share = max(len(survey.problems["unreadable"]) / max(len(survey.samples), 1) for survey in surveys)
  keys: dict[str, Any] = {"bad_files": "skip"}
  if share > 0.01:
    keys["bad_share"] = min(math.ceil(share * 100 + 1) / 100, 1.0)
  yield Advice(f"{_files(unreadable)} unreadable or cut off: remove or replace them, or set {_keys(keys)}", keys)


def _sizes(inspection: Inspection) -> Iterator[Advice]:
  problems = [each for survey in inspection.surveys.values() for each in survey.problems["size"]]
  turned = [each for each in problems if "EXIF" in each]
  if turned:
    yield Advice(
      f"{_files(len(turned), 'label')} with width and height of the image exchanged: the image is turned by an EXIF "
      "tag and its label is not; turn the labels, or save images upright and drop the tag",
      fatal=True,
    )
  if len(problems) > len(turned):
    count = _files(len(problems) - len(turned), "label")
    yield Advice(f"{count} of another size than the image: save them again in the image's size", fatal=True)


def _large(inspection: Inspection) -> Iterator[Advice]:
  sizes = {size: n for survey in inspection.surveys.values() for size, n in survey.sizes.items()}
  count = sum(sizes.values())
  large = sum(n for (h, w), n in sizes.items() if h * w > _LARGE)
  if large > 0.1 * count:
    scale = inspection.train.num_samples / max(len(inspection.train.samples), 1)
    pixels = scale * sum(n * h * w for (h, w), n in inspection.train.sizes.items())
    keys = {"cache_mb": math.ceil(4 * pixels / 2**20)}
    text = (
      f"{large} of {count} images have more than 4 million pixels and are slow to read: save smaller copies "
      f"(data.resize makes 1024 pixels of a side), or keep them decoded in memory if there is as much: {_keys(keys)}"
    )
    yield Advice(text, keys if keys["cache_mb"] <= 4096 else {})


def _dark(inspection: Inspection) -> Iterator[Advice]:
  peaks = [peak for survey in inspection.surveys.values() for peak in survey.peaks]
  if peaks and np.median(peaks) < _DARK:
    yield Advice(
      f"images of 16 bits reach only {max(peaks)} of 65535 (half of them {np.median(peaks):.0f}), which is read as "
      f"{max(peaks) / 257:.0f} of 255: nearly black; stretch their values to 0..65535 or save them with 8 bits"
    )


# ------------------------------------------------------------------------------------------------------------- labels


def _meaning(inspection: Inspection) -> Iterator[Advice]:
  """How labels are to be read."""
  dataset, guess, given = inspection.dataset, inspection.guess, "labels" in inspection.given
  refused = [each for survey in inspection.surveys.values() for each in survey.problems["meaning"]]
  if guess is None:
    if refused:
      yield Advice(f"{_files(len(refused), 'label')} cannot be read, the first: {refused[0]}", fatal=True)
    return
  keys = _format_keys(inspection)
  if not given:
    plain = guess.label_format.mode == "index" and not guess.label_format.ignore
    doubt = f" ({guess.doubt})" if guess.doubt else ""
    if not plain or doubt:
      yield Advice(f"{guess.reason}; set {_keys(keys)}{doubt}", keys)
    if refused:
      yield Advice(f"{_files(len(refused), 'label')} cannot be read like the others, as {refused[0]}", fatal=True)
  elif refused or (guess.label_format.mode == "binary" and dataset.label_format.mode == "index"):
    yield Advice(f"{guess.reason}, which data.labels={dataset.label_format.mode} does not fit; set {_keys(keys)}", keys)


def _format_keys(inspection: Inspection) -> dict[str, Any]:
  guess = inspection.guess
  label_format = guess.label_format
  keys: dict[str, Any] = {"labels": label_format.mode}
  keys |= {k: getattr(label_format, k) for k in ("threshold", "table", "ignore") if getattr(label_format, k)}
  masks = inspection.dataset.kind == "masks" and "labels" not in inspection.given
  keys["num_classes"] = inspection.dataset.num_classes if masks else guess.num_classes
  return keys if "num_classes" not in inspection.given else {k: v for k, v in keys.items() if k != "num_classes"}


def _palette_files(inspection: Inspection) -> Iterator[Advice]:
  count = sum(n for name, n in inspection.stored.formats.items() if name.split()[-1] == "P")
  if count:
    yield Advice(
      f"{_files(count, 'label')} with a colour palette: what is read are the indices into it, the colours are not"
    )


def _too_many_classes(inspection: Inspection) -> Iterator[Advice]:
  found, expected = inspection.num_found, inspection.dataset.num_classes
  if found > expected:
    keys = {"num_classes": found}
    text = f"labels hold class {found - 1}, beyond num_classes={expected}: set {_keys(keys)}"
    if 255 not in inspection.dataset.label_format.ignore and found > 200:
      text += ", or data.ignore if that value marks pixels to ignore"
    yield Advice(text, keys, fatal=True)


def _foreground(inspection: Inspection) -> Iterator[Advice]:
  train = inspection.train
  if not train.num_labels:
    return
  if train.num_empty == train.num_labels:
    text = f"no label of {train.split} holds any foreground, read as {inspection.dataset.label_format}"
    yield Advice(f"{text}: training will refuse", fatal=True)
  elif train.num_empty > 0.5 * train.num_labels:
    keys = {"balanced": True, "negative": 0.1}
    yield Advice(
      f"{train.num_empty / train.num_labels:.0%} of {train.split} are without foreground: fine if such images are what "
      f"the network is to see; to train mostly on the others, set {_keys(keys)}",
      keys,
    )
  val = inspection.val
  if val is not None and val.num_labels and val.num_empty == val.num_labels:
    yield Advice(f"no label of {val.split} holds any foreground: its scores will say nothing")


def _rare(inspection: Inspection) -> Iterator[Advice]:
  train = inspection.train
  if train.num_empty > 0.5 * train.num_labels:
    return  # said already
  shares = train.holding[1:IGNORE] / max(train.num_labels, 1)
  rare = [c + 1 for c in np.flatnonzero((shares > 0) & (shares < _RARE) & (shares < 0.25 * shares.max()))]
  if rare:
    keys = {"balanced": True}
    named = ", ".join(f"{class_label(inspection, c)} in {shares[c - 1]:.1%}" for c in rare[:5])
    yield Advice(f"rare classes ({named} of the samples): set {_keys(keys)} to draw all equally often", keys)


def _missing_classes(inspection: Inspection) -> Iterator[Advice]:
  train, val = inspection.train, inspection.val
  if val is None or not train.num_labels or not val.num_labels:
    return
  for first, second, what in ((train, val, "are not scored"), (val, train, "are scored and never learnt")):
    only = np.flatnonzero((first.holding[1:IGNORE] > 0) & (second.holding[1:IGNORE] == 0)) + 1
    if only.size and second.num_empty < second.num_labels:
      named = ", ".join(class_label(inspection, int(c)) for c in only[:8])
      yield Advice(f"classes only in {first.split}, not in {second.split}: {named}; they {what}")


def _small(inspection: Inspection) -> Iterator[Advice]:
  train = inspection.train
  sides = {c: _SQUARE * math.sqrt(regions.median_of_pixels) for c, regions in sorted(train.regions.items())}
  small = {c: side for c, side in sides.items() if side < _PATCH}
  foreground = train.pixels[1:IGNORE].sum() / max(train.pixels.sum(), 1)
  filled = max(1 - train.num_empty / max(train.num_labels, 1), 1e-6)
  if train.regions and foreground / filled < _SMALL_SHARE:
    keys = {"foreground_crop": 0.5}
    yield Advice(
      f"foreground is {foreground / filled:.2%} of the samples that have some: most random crops would miss it; set "
      f"{_keys(keys)}",
      keys,
    )
  if small:
    named = ", ".join(f"class {class_label(inspection, c)}: {side:.0f}" for c, side in list(small.items())[:5])
    tiles = min(max(math.ceil(_PATCH / min(small.values())), 2), 4)
    yield Advice(
      f"regions are small: of the {_SQUARE} pixels of a side that the network sees at once they take some {named}, and "
      f"a patch has {_PATCH}; segment in tiles, `infer.py --split={tiles}`, and keep data.resize at 1024 or more"
    )


def _ignored(inspection: Inspection) -> Iterator[Advice]:
  pixels = inspection.pixels
  share = pixels[IGNORE] / max(pixels.sum(), 1)
  if share > 0.5:
    yield Advice(f"{share:.0%} of the pixels are ignored: only the rest teaches and is scored")


# ------------------------------------------------------------------------------------------------------------- splits


def _leaks(inspection: Inspection) -> Iterator[Advice]:
  groups = inspection.groups
  if groups is None:
    return
  for problem in groups.problems[:3]:
    yield Advice(f"groups cannot be told: {problem}")
  if len({group for sizes in groups.sizes.values() for group in sizes}) == 1:
    yield Advice(f"--groups={shlex.quote(groups.spec)} makes one group of all samples: it says nothing")
  elif groups.shared:
    named = ", ".join(groups.shared[:5])
    yield Advice(
      f"{_files(len(groups.shared), 'group')} in more than one split ({named}): scores will look better than they are; "
      f"move each to one, or put all samples in {inspection.train.split} and let `python -m seggpt_jax.data.prepare` "
      f"divide by --groups={shlex.quote(groups.spec)}"
    )


def _copies(inspection: Inspection) -> Iterator[Advice]:
  for copies in inspection.copies:
    if copies.num_copied:
      first, second, _ = copies.pairs[0]
      yield Advice(
        f"{copies.num_copied} of {copies.num_compared} images of {copies.second} are in {copies.first} too, or nearly "
        f"({second} is {first}): remove them from one, or scores will look better than they are"
      )
  for survey in inspection.surveys.values():
    same = survey.copies()
    if same:
      yield Advice(
        f"{_files(sum(len(each) - 1 for each in same), 'image')} of {survey.split} there more than once "
        f"({' = '.join(same[0][:3])}): remove the copies, or are their labels to be joined?"
      )


def class_label(inspection: Inspection, class_index: int) -> str:
  """A class as people know it."""
  names = inspection.class_names
  return f"{class_index} {names[class_index - 1]}" if 0 < class_index <= len(names) else str(class_index)


_RULES: tuple[Callable[[Inspection], Iterator[Advice]], ...] = (
  _usable,
  _unmatched,
  _bad,
  _sizes,
  _meaning,
  _palette_files,
  _too_many_classes,
  _foreground,
  _rare,
  _missing_classes,
  _small,
  _ignored,
  _leaks,
  _copies,
  _dark,
  _large,
)
