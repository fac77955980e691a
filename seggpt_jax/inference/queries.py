"""The files of an inference run: the images to segment, the prompts of each, and the format of label files.

In: paths, and perhaps a mapping. Out: a `Query` for each image. All of its files exist, which is checked before any
image is read. Files belong together if their names without ending are the same.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

from seggpt_jax.data.bad_files import BadFiles
from seggpt_jax.data.images import list_images
from seggpt_jax.data.labels import LABEL_MODES, LabelFormat, LabelMode, Value
from seggpt_jax.errors import InputError, naming
from seggpt_jax.inference.trained import run_config, run_data


@dataclasses.dataclass(frozen=True)
class PromptFiles:
  """The files of a prompt: its image and its label map."""

  image: Path
  labels: Path


@dataclasses.dataclass(frozen=True)
class Query:
  """An image to segment.

  Attributes:
    name: file name without ending.
    image: image file.
    truth: file of the true label map; None if there is none.
    prompts: files of its prompts, best first.
  """

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
  bad: BadFiles | None = None,
  *,
  prompts: Sequence[PromptFiles] = (),
  mapped_only: bool = False,
) -> list[Query]:
  """Finds all files of a run and checks that they exist.

  Args:
    dataset: a folder with images/ and perhaps labels/, a folder of images, or image files.
    prompt_img_dir: folder with the prompts' images; None with `prompts` or with a learned prompt.
    prompt_label_dir: folder with the prompts' label maps.
    mapping: JSON file {query file: [prompt files, best first]}. Without it, the first prompts by name serve every
      query.
    top_k: largest number of prompts for each query.
    bad: if given, queries whose prompts are missing are left out and added here.
    prompts: prompts for every query, from `given_prompts`, in place of the folders.
    mapped_only: segments only the images that the mapping names. Otherwise the mapping must name all images.

  Returns:
    The queries, in the order of their names.

  Raises:
    InputError: a folder or file is missing, or the mapping does not fit the files.
  """
  images, truths = _list_dataset(dataset)
  if prompt_img_dir is None or prompt_label_dir is None:
    return [Query(stem, path, truths.get(stem), tuple(prompts)) for stem, path in images.items()]
  chosen = None if mapping is None else read_mapping(mapping)
  if mapped_only and chosen is not None:
    unknown = [stem for stem in chosen if stem not in images]
    if unknown or not chosen:
      found = f"key {unknown[0]!r}" if unknown else "no keys"
      raise InputError(f"{mapping}: found {found}, expected names of images in {dataset}")
    images = {stem: path for stem, path in images.items() if stem in chosen}
  folders = _PromptFolders(prompt_img_dir, prompt_label_dir)
  queries = []
  for stem, path in images.items():
    try:
      if chosen is None:
        files = folders.first(top_k)
      elif stem in chosen:
        files = tuple(folders.find(Path(file).stem, f"{mapping}: {path.name}: {file}") for file in chosen[stem][:top_k])
      else:
        raise InputError(f"{mapping}: found no key {path.name!r}, expected one for every image of {dataset}")
      queries.append(Query(stem, path, truths.get(stem), files))
    except InputError as error:
      if bad is None:
        raise
      bad.add(stem, str(error))
  if not queries:
    raise InputError(f"{dataset}: none of {len(images)} images has its prompts, the first: {next(iter(bad)).reason}")
  return queries


class _PromptFolders:
  """A folder of prompt images and one of their label maps.

  Raises:
    InputError: a folder is missing or empty.
  """

  def __init__(self, images: str | os.PathLike, labels: str | os.PathLike):
    self._folders = {"image": Path(images).expanduser(), "label": Path(labels).expanduser()}
    self._files = {kind: _list_files(folder) for kind, folder in self._folders.items()}

  def find(self, stem: str, where: str) -> PromptFiles:
    """Returns the files of a prompt.

    Args:
      stem: name of the prompt without ending.
      where: origin of the name, for error messages.

    Raises:
      InputError: a file is missing.
    """
    for kind, files in self._files.items():
      if stem not in files:
        raise InputError(f"{where}: found no prompt {kind} for it, expected {self._folders[kind] / stem}.*")
    return PromptFiles(self._files["image"][stem], self._files["label"][stem])

  def first(self, count: int) -> tuple[PromptFiles, ...]:
    """Returns the first prompts by name.

    Raises:
      InputError: a label file is missing.
    """
    return tuple(self.find(stem, str(file)) for stem, file in list(self._files["image"].items())[:count])


def given_prompts(images: Sequence[str], labels: Sequence[str]) -> tuple[PromptFiles, ...]:
  """Pairs the image files and label files of `--prompt-image` and `--prompt-label`.

  Args:
    images: image files, best first.
    labels: a label file for each.

  Raises:
    InputError: a file is missing, or the numbers differ.
  """
  if len(images) != len(labels):
    raise InputError(f"--prompt-label: found {len(labels)} files, expected {len(images)}, one for each --prompt-image")
  return tuple(
    PromptFiles(_check_file("--prompt-image", image), _check_file("--prompt-label", label))
    for image, label in zip(images, labels, strict=True)
  )


def _check_file(flag: str, name: str) -> Path:
  path = Path(name).expanduser()
  if not path.is_file():
    raise InputError(f"{flag}: {path}: {'is a folder' if path.is_dir() else 'not found'}, expected an image file")
  return path


def _list_files(directory: str | os.PathLike) -> dict[str, Path]:
  return {name: Path(path) for name, path in list_images(directory).items()}


def _list_dataset(dataset: str | os.PathLike | Sequence[str]) -> tuple[dict[str, Path], dict[str, Path]]:
  """Returns the images and the label maps of a dataset, by name without ending."""
  if not isinstance(dataset, str | os.PathLike):
    files: dict[str, Path] = {}
    for path in (_check_file("--image", image) for image in dataset):
      if path.stem in files:
        raise InputError(f"--image: found {path} beside {files[path.stem]}, expected names that differ")
      files[path.stem] = path
    return files, {}
  directory = Path(dataset).expanduser()
  if not (directory / "images").is_dir():
    return _list_files(directory), {}
  labels = directory / "labels"
  return _list_files(directory / "images"), _list_files(labels) if labels.is_dir() else {}


def label_format(
  model_path: str | os.PathLike,
  labels: LabelMode | None = None,
  threshold: int | None = None,
  table: tuple[Value, ...] | None = None,
  ignore: tuple[Value, ...] | None = None,
) -> LabelFormat:
  """Returns the format of label files: from flags, or else from the training run of the weights, or else indices.

  Args:
    model_path: weights or a training run; also the run of an adapter.
    labels: value of `--labels`, if given.
    threshold: value of `--threshold`, if given.
    table: value of `--table`, if given.
    ignore: value of `--ignore`, if given.

  Raises:
    InputError: there are no weights, the values do not fit the mode, or the run's config.json cannot be read.
  """
  path = run_config(model_path)
  trained = LabelFormat() if path is None else _trained_format(path)
  mode = labels or trained.mode
  if mode != "binary" and threshold is not None:
    raise InputError(f"--threshold: found with {mode} labels, expected only with --labels=binary")
  same = mode == trained.mode
  if table is None:
    table = trained.table if same else ()
  if ignore is None:
    ignore = trained.ignore if same else ()
  if threshold is None:
    threshold = trained.threshold if same else None
  return LabelFormat(mode, threshold, table, ignore)


def _trained_format(path: Path) -> LabelFormat:
  """Reads the label format from the config.json of a training run.

  Raises:
    InputError: the file was not written by training.
  """
  data = run_data(path)
  mode, threshold = data.get("labels", "index"), data.get("threshold", -1)
  if mode not in LABEL_MODES:
    raise InputError(f"{path}: data.labels: found {mode!r}, expected one of {', '.join(LABEL_MODES)}")
  if not (isinstance(threshold, int) and -1 <= threshold <= 255):
    raise InputError(f"{path}: data.threshold: found {threshold!r}, expected 0..255, or -1 for none")
  values: dict[str, tuple[Value, ...]] = {}
  for key in ("table", "ignore"):
    stored = data.get(key, [])
    # Colors are lists, because JSON has no tuples.
    entries = stored if isinstance(stored, list) else [None]
    if not all(isinstance(part, int) for entry in entries for part in (entry if isinstance(entry, list) else [entry])):
      raise InputError(f"{path}: data.{key}: found {stored!r}, expected a list of values or colors")
    values[key] = tuple(tuple(entry) if isinstance(entry, list) else entry for entry in stored)
  with naming(f"{path}: data"):
    # Older runs stored 0 with every mode.
    return LabelFormat(mode, threshold if mode == "binary" and threshold >= 0 else None, **values)


def read_mapping(path: str | os.PathLike) -> dict[str, list[str]]:
  """Reads the prompts of each query from a mapping.

  Args:
    path: JSON file {query file: [prompt files, best first]}.

  Returns:
    The prompt files of each query, by name of the query without ending.

  Raises:
    InputError: the file is missing, is not JSON, or has another form.
  """
  path = Path(path).expanduser()
  try:
    mapping = json.loads(path.read_text())
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
