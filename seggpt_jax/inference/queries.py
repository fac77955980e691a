"""What a run of infer.py reads: which images, which prompts serve each, and how label files are read.

In: paths, and a mapping if there is one. Out: a `Query` for each image, all of whose files are known to be there,
before anything is read or computed. Files belong together by their name without ending.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

from seggpt_jax.data.images import list_images
from seggpt_jax.data.labels import LABEL_MODES, LabelFormat, LabelMode, Value
from seggpt_jax.errors import InputError, naming
from seggpt_jax.model.weights import find_adapter, find_weights


@dataclasses.dataclass(frozen=True)
class PromptFiles:
  """A prompt on disk."""

  image: Path
  labels: Path


@dataclasses.dataclass(frozen=True)
class Query:
  """An image to segment: its files, and its prompts, best first."""

  name: str
  image: Path
  truth: Path | None
  prompts: tuple[PromptFiles, ...]


def list_queries(
  dataset: str | os.PathLike | Sequence[str],
  prompt_img_dir: str | os.PathLike | None = None,
  prompt_label_dir: str | os.PathLike | None = None,
  mapping: str | os.PathLike | None = None,
  top_k: int = 1,
  bad: dict[str, str] | None = None,
  *,
  prompts: Sequence[PromptFiles] = (),
  mapped_only: bool = False,
) -> list[Query]:
  """Finds all files of a run and checks that they are there, before anything is read or computed.

  Args:
    dataset: a folder with images/ and perhaps labels/, a folder of images, or image files.
    prompt_img_dir: images of the prompts; None where they are given one by one, or where a learned prompt serves.
    prompt_label_dir: their label maps.
    mapping: JSON file {query file: [prompt files, best first]}; without it the first prompts by name serve every query.
    top_k: the most prompts that a query gets.
    bad: where given, queries whose prompts are missing are left out, and told here by name with the reason.
    prompts: as of `given_prompts`, for every query; in place of the folders.
    mapped_only: whether the mapping says which images are queries; without it, it has to know all of them.

  Returns:
    One for each image of the dataset, or of the mapping, by name.

  Raises:
    InputError: a folder or file is missing, or the mapping does not fit the files; names it.
  """
  images, truths = _dataset(dataset)
  if prompt_img_dir is None or prompt_label_dir is None:
    return [Query(stem, path, truths.get(stem), tuple(prompts)) for stem, path in images.items()]
  known = {"image": _list(prompt_img_dir), "label": _list(prompt_label_dir)}
  folders = {"image": prompt_img_dir, "label": prompt_label_dir}
  chosen = None if mapping is None else read_mapping(mapping)
  if mapped_only and chosen is not None:
    unknown = [stem for stem in chosen if stem not in images]
    if unknown or not chosen:
      found = f"key {unknown[0]!r}" if unknown else "no keys"
      raise InputError(f"{mapping}: found {found}, expected names of images in {dataset}")
    images = {stem: path for stem, path in images.items() if stem in chosen}

  def find(stem: str, said_by: str) -> PromptFiles:
    for kind, files in known.items():
      if stem not in files:
        raise InputError(f"{said_by}: found no prompt {kind} for it, expected {Path(folders[kind]) / stem}.*")
    return PromptFiles(known["image"][stem], known["label"][stem])

  def prompts_of(stem: str, path: Path) -> tuple[PromptFiles, ...]:
    if chosen is None:
      return tuple(find(name, str(file)) for name, file in list(known["image"].items())[:top_k])
    if stem not in chosen:
      raise InputError(f"{mapping}: found no key {path.name!r}, expected one for every image of {dataset}")
    return tuple(find(Path(file).stem, f"{mapping}: {path.name}: {file}") for file in chosen[stem][:top_k])

  queries = []
  for stem, path in images.items():
    try:
      queries.append(Query(stem, path, truths.get(stem), prompts_of(stem, path)))
    except InputError as error:
      if bad is None:
        raise
      bad[stem] = str(error)
  if not queries:
    raise InputError(f"{dataset}: none of {len(images)} images has its prompts, the first: {next(iter(bad.values()))}")
  return queries


def given_prompts(images: Sequence[str], labels: Sequence[str]) -> tuple[PromptFiles, ...]:
  """Prompts named one by one, best first.

  Raises:
    InputError: a file is missing, or the numbers differ.
  """
  if len(images) != len(labels):
    raise InputError(f"--prompt-label: found {len(labels)} files, expected {len(images)}, one for each --prompt-image")
  return tuple(
    PromptFiles(_file("--prompt-image", image), _file("--prompt-label", label))
    for image, label in zip(images, labels, strict=True)
  )


def _file(flag: str, path: str) -> Path:
  if not Path(path).is_file():
    raise InputError(f"{flag}: {path}: {'is a folder' if Path(path).is_dir() else 'not found'}, expected an image file")
  return Path(path)


def _list(directory: str | os.PathLike) -> dict[str, Path]:
  return {name: Path(path) for name, path in list_images(directory).items()}


def _dataset(dataset: str | os.PathLike | Sequence[str]) -> tuple[dict[str, Path], dict[str, Path]]:
  """Images and label maps by name without ending."""
  if not isinstance(dataset, str | os.PathLike):
    files: dict[str, Path] = {}
    for path in (_file("--image", image) for image in dataset):
      if path.stem in files:
        raise InputError(f"--image: found {path} beside {files[path.stem]}, expected names that differ")
      files[path.stem] = path
    return files, {}
  directory = Path(dataset)
  if not (directory / "images").is_dir():
    return _list(directory), {}
  labels = directory / "labels"
  return _list(directory / "images"), _list(labels) if labels.is_dir() else {}


def label_format(
  model_path: str | os.PathLike,
  labels: LabelMode | None = None,
  threshold: int | None = None,
  table: tuple[Value, ...] | None = None,
  ignore: tuple[Value, ...] | None = None,
) -> LabelFormat:
  """How label files are read: as asked for, else as the run that the weights come from read them, else as indices.

  Args:
    model_path: weights or a training run, also one of an adapter.
    labels: what was asked for, if anything.
    threshold: likewise.
    table: likewise.
    ignore: likewise.

  Raises:
    InputError: no weights there, values that do not fit the mode, or a run whose config.json cannot be read.
  """
  found = find_adapter(Path(model_path)) or find_weights(model_path)
  configs = (folder / "config.json" for folder in (Path(model_path), *found.absolute().parents[:2]))
  trained = next((_trained_format(path) for path in configs if path.is_file()), LabelFormat())
  mode = labels or trained.mode
  if mode != "binary" and threshold is not None:
    raise InputError(f"--threshold: found with {mode} labels, expected only with --labels=binary")
  same = mode == trained.mode
  if table is None:
    table = trained.table if same else ()
  if ignore is None:
    ignore = trained.ignore if same else ()
  return LabelFormat(mode, trained.threshold if threshold is None else threshold, table, ignore)


def _trained_format(path: Path) -> LabelFormat:
  """How the run of this config.json reads labels.

  Raises:
    InputError: it is none of train.py; names it.
  """
  try:
    stored = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise InputError(f"{path}: cannot be read as JSON ({error}), expected the run's configuration") from error
  data = stored.get("data", {}) if isinstance(stored, dict) else None
  if not isinstance(data, dict):
    raise InputError(f"{path}: found no object with an object `data` in it, expected the run's configuration")
  mode, threshold = data.get("labels", "index"), data.get("threshold", 0)
  if mode not in LABEL_MODES:
    raise InputError(f"{path}: data.labels: found {mode!r}, expected one of {', '.join(LABEL_MODES)}")
  if not (isinstance(threshold, int) and 0 <= threshold <= 255):
    raise InputError(f"{path}: data.threshold: found {threshold!r}, expected 0..255")
  values: dict[str, tuple[Value, ...]] = {}
  for key in ("table", "ignore"):
    stored = data.get(key, [])
    # JSON has no tuples: colors are lists.
    entries = stored if isinstance(stored, list) else [None]
    if not all(isinstance(part, int) for entry in entries for part in (entry if isinstance(entry, list) else [entry])):
      raise InputError(f"{path}: data.{key}: found {stored!r}, expected a list of values or colors")
    values[key] = tuple(tuple(entry) if isinstance(entry, list) else entry for entry in stored)
  with naming(f"{path}: data"):
    return LabelFormat(mode, threshold, **values)


def read_mapping(path: str | os.PathLike) -> dict[str, list[str]]:
  """Which prompts serve which query.

  Args:
    path: JSON file {query file: [prompt files, best first]}.

  Returns:
    The prompt files of each query, under the query's name without ending.

  Raises:
    InputError: the file is missing, no JSON, or of another form.
  """
  try:
    mapping = json.loads(Path(path).read_text())
  except FileNotFoundError as error:
    raise InputError(f"{path}: not found, expected a JSON file {{query file: [prompt files, best first]}}") from error
  except (OSError, ValueError) as error:
    raise InputError(f"{path}: cannot be read as JSON: {error}") from error
  if not isinstance(mapping, dict):
    raise InputError(f"{path}: found {type(mapping).__name__}, expected an object {{query file: [prompt files]}}")
  for key, files in mapping.items():
    if not isinstance(files, list) or not files or not all(isinstance(file, str) for file in files):
      raise InputError(f"{path}: {key}: found {json.dumps(files)}, expected a list of prompt file names")
  return {Path(key).stem: files for key, files in mapping.items()}
