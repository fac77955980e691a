"""The files of an inference run: the images to segment, and the prompts of each.

In: paths, and perhaps a mapping. Out: a `Query` for each image. All of its files exist, which is checked before any
image is read. Files belong together if their names are the same: the path below the folder, without ending.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from seggpt_jax.data.bad_files import BadFiles
from seggpt_jax.errors import InputError, warn_once
from seggpt_jax.files import decode_text, expand, parse_json, plain_name
from seggpt_jax.formats.folders import list_images
from seggpt_jax.formats.images import image_endings, without_ending

_LABEL_FOLDERS = frozenset({"label", "labels", "mask", "masks"})  # their files are no images to segment


@dataclasses.dataclass(frozen=True)
class PromptFiles:
  """The files of a prompt: its image and its label map."""

  image: Path  # image file
  labels: Path  # file of its label map
  name: str = ""  # path below the folder of prompts, without ending; "" for the file name

  @property
  def written(self) -> str:
    """Returns the name with ending, as a mapping has it."""
    return f"{self.name or self.image.stem}{self.image.suffix}"


@dataclasses.dataclass(frozen=True)
class Query:
  """An image to segment."""

  name: str  # path below the folder of images, without ending
  image: Path  # image file
  truth: Path | None  # file of the true label map; None if it is missing
  prompts: tuple[PromptFiles, ...]  # files of its prompts, best first

  @property
  def written(self) -> str:
    """Returns the name with ending, as a mapping has it."""
    return f"{self.name}{self.image.suffix}"


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
  apart: Sequence[str | os.PathLike] = (),
) -> list[Query]:
  """Finds all files of a run and checks that they exist.

  Args:
    dataset: a folder with images/ and perhaps labels/, a folder of images, or image files. Folders may hold folders.
    prompt_img_dir: folder with the prompts' images; None with `prompts` or with a learned prompt.
    prompt_label_dir: folder with the prompts' label maps.
    mapping: JSON file {query file: [prompt files, best first]}; without it the first prompts by name serve all.
    top_k: largest number of prompts for each query.
    bad: if given, queries whose prompts are missing are left out and added here.
    prompts: prompts for every query, from `given_prompts`, in place of the folders.
    mapped_only: segments only the images that the mapping names. Otherwise the mapping must name all images.
    apart: folders that hold no queries even if they are below `dataset`, such as the folder of the results.

  Returns:
    The queries, in the order of their names.

  Raises:
    InputError: a folder or file is missing, or the mapping does not fit the files.
  """
  prompt_dirs = [folder for folder in (prompt_img_dir, prompt_label_dir) if folder is not None]
  images, truths = _list_dataset(dataset, [*apart, *prompt_dirs])
  if prompt_img_dir is None or prompt_label_dir is None:
    return [Query(name, path, truths.get(name), tuple(prompts)) for name, path in images.items()]
  folders = _PromptFolders(prompt_img_dir, prompt_label_dir)
  chosen = None if mapping is None else _match_keys(mapping, images, str(dataset), mapped_only)
  if mapped_only and chosen is not None:
    images = {name: path for name, path in images.items() if name in chosen}
  queries = []
  for name, path in images.items():
    query = Query(name, path, truths.get(name), ())
    try:
      if chosen is None:
        files = folders.first(top_k)
      elif name in chosen:
        files = tuple(folders.find(file, f"{mapping}: {query.written}") for file in chosen[name][:top_k])
      else:
        raise InputError(f"{mapping}: found no key {query.written!r}, expected one for every image of {dataset}")
      queries.append(dataclasses.replace(query, prompts=files))
    except InputError as error:
      if bad is None:
        raise
      bad.add(name, str(error))
  if not queries:
    raise InputError(f"{dataset}: none of {len(images)} images has its prompts, the first: {next(iter(bad)).reason}")
  return queries


def files_of(queries: Iterable[Query]) -> set[Path]:
  """Returns all files that queries and their prompts are read from."""
  found = {file for query in queries for file in (query.image, query.truth) if file is not None}
  prompts = {prompt for query in queries for prompt in query.prompts}
  return found | {file for prompt in prompts for file in (prompt.image, prompt.labels)}


class NameFinder:
  """Finds files by written names, with the slashes and accents of any system, and with any image ending or none.

  A name means the file whose relative path it is; or else the file that it ends with, as `photos/cam1/001.jpg` ends
  with `cam1/001`; or else the only file that ends with it, as `cam1/001` ends with `001`.
  """

  def __init__(self, names: Iterable[str], folder: str):
    self._names, self._folder = set(names), folder
    self._by_last: dict[str, list[str]] = {}
    for name in sorted(self._names):
      self._by_last.setdefault(name.rpartition("/")[2], []).append(name)
    self._meant: dict[str, str] = {}

  def find(self, written: str, where: str) -> str | None:
    """Returns the name of the file that is meant, or None.

    Args:
      written: the name.
      where: the place where it is written, for error messages.

    Raises:
      InputError: several files are meant, or another name that was asked for before means the same file.
    """
    forms = [_relative(written), without_ending(_relative(written))]
    found = next((form for form in forms if form in self._names), None)
    if found is None:
      tails = (form.split("/", cut)[cut] for cut in range(1, forms[0].count("/") + 1) for form in forms)
      found = next((tail for tail in tails if tail in self._names), None)
    if found is None:
      longer = [name for form in forms for name in self._by_last.get(form.rpartition("/")[2], ()) if _ends(name, form)]
      if len(longer) > 1:
        both = " and ".join(repr(name) for name in longer[:2])
        raise InputError(f"{where}: found {written!r}, which may be {both} in {self._folder}, expected its folder too")
      found = longer[0] if longer else None
    if found is not None:
      self._check_meaning(found, written, where)
    return found

  def _check_meaning(self, name: str, written: str, where: str) -> None:
    """Raises InputError if a name in another folder meant the same file: then one of the two means another file."""
    earlier = self._meant.setdefault(name, written)
    one, other = (without_ending(_relative(each)) for each in (earlier, written))
    if not (_ends(one, other) or _ends(other, one)):
      raise InputError(
        f"{where}: found {earlier!r} and {written!r}, which both mean {name!r} in {self._folder}, expected one of "
        "them; if they are two files, give the folder that holds both"
      )


def _relative(written: str) -> str:
  """Returns a written name as `list_images` has it: with slashes, and without ./ in front."""
  return os.path.normpath(plain_name(written)).lstrip("/")


def _ends(path: str, tail: str) -> bool:
  return path == tail or path.endswith(f"/{tail}")


def _match_keys(
  mapping: str | os.PathLike, images: Mapping[str, Path], dataset: str, mapped_only: bool
) -> dict[str, list[str]]:
  """Reads a mapping and returns the prompt files by the name of the query."""
  finder, keys, unknown = NameFinder(images, dataset), dict[str, str](), list[str]()
  chosen: dict[str, list[str]] = {}
  for key, files in read_mapping(mapping).items():
    name = finder.find(key, str(mapping))
    if name is None:
      unknown.append(key)
      continue
    if name in chosen:
      raise InputError(
        f"{mapping}: found keys {keys[name]!r} and {key!r}, which both mean {name!r}, expected one of them"
      )
    keys[name], chosen[name] = key, files
  if mapped_only and (unknown or not chosen):
    found = f"key {unknown[0]!r}" if unknown else "no keys"
    raise InputError(f"{mapping}: found {found}, expected names of images in {dataset}")
  if unknown:
    count = len(unknown) + len(chosen)
    warn_once(f"{mapping}: passed over: {len(unknown)} of {count} keys, no images of {dataset}, first {unknown[0]!r}")
  return chosen


class _PromptFolders:
  """A folder of prompt images and one of their label maps."""

  def __init__(self, images: str | os.PathLike, labels: str | os.PathLike):
    self._images, self._labels = list_pair(images, labels)
    self._folders = Path(expand(images)), Path(expand(labels))
    self._finder = NameFinder(self._images, str(images))

  def find(self, written: str, where: str) -> PromptFiles:
    """Returns the files of a prompt.

    Args:
      written: name of the prompt, see `NameFinder`.
      where: the place where it is written, for error messages.

    Raises:
      InputError: a file is missing, or several are meant.
    """
    name = self._finder.find(written, where)
    if name is None:
      expected = self._folders[0] / without_ending(_relative(written))
      raise InputError(f"{where}: {written}: found no prompt image for it, expected {expected}.*")
    return self._pair(name, f"{where}: {written}")

  def first(self, count: int) -> tuple[PromptFiles, ...]:
    """Returns the first prompts by name.

    Raises:
      InputError: a label file is missing.
    """
    return tuple(self._pair(name, str(self._images[name])) for name in list(self._images)[:count])

  def _pair(self, name: str, where: str) -> PromptFiles:
    if name not in self._labels:
      raise InputError(f"{where}: found no prompt label for it, expected {self._folders[1] / name}.*")
    return PromptFiles(self._images[name], self._labels[name], name)


def given_prompts(images: Sequence[str], labels: Sequence[str]) -> tuple[PromptFiles, ...]:
  """Pairs the image files and label files of `--prompt-image` and `--prompt-label`.

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
  path = Path(expand(name))
  if not path.is_file():
    found = "is a folder" if path.is_dir() else "not found"
    hint = "; folders are given with --dataset-dir" if path.is_dir() and flag == "--image" else ""
    raise InputError(f"{flag}: {path}: {found}, expected an image file{hint}")
  return path


def list_pair(
  images: str | os.PathLike, labels: str | os.PathLike, apart: Sequence[str | os.PathLike] = ()
) -> tuple[dict[str, Path], dict[str, Path]]:
  """Lists a folder of images and one of their label maps, by name. Warns about label maps without an image.

  Args:
    images: the folder of images; may hold folders.
    labels: the folder of label maps, arranged as the images are.
    apart: further folders that hold neither.

  Raises:
    InputError: a folder is missing or has no images.
  """
  apart = (*apart, images, labels)
  found, known = _list_files(images, apart), _list_files(labels, apart, of_labels=True)
  if alone := [path.name for name, path in known.items() if name not in found]:
    warn_once(f"{labels}: passed over: {len(alone)} label files that no image in {images} has, first {alone[0]}")
  return found, known


def _list_files(
  directory: str | os.PathLike, apart: Sequence[str | os.PathLike], of_labels: bool = False
) -> dict[str, Path]:
  """Lists a folder and the folders in it, except folders that hold something else than images to show a network."""
  others = {os.path.realpath(expand(folder)) for folder in apart}

  def skip(path: str) -> str:
    if os.path.realpath(path) in others:
      return "prompts or results"
    return "labels" if not of_labels and os.path.basename(path).lower() in _LABEL_FOLDERS else ""

  return {name: Path(path) for name, path in list_images(directory, recursive=True, skip=skip).items()}


def _list_dataset(
  dataset: str | os.PathLike | Sequence[str], apart: Sequence[str | os.PathLike]
) -> tuple[dict[str, Path], dict[str, Path]]:
  """Returns the images and the label maps of a dataset, by name."""
  if not isinstance(dataset, str | os.PathLike):
    files: dict[str, Path] = {}
    for path in (_check_file("--image", image) for image in dataset):
      name = plain_name(without_ending(path.name))
      if name in files:
        raise InputError(f"--image: found {path} and {files[name]}, expected names that differ")
      files[name] = path
    return files, {}
  directory = Path(expand(dataset))
  images, labels = directory / "images", directory / "labels"
  if not images.is_dir():
    return _list_files(directory, apart), {}
  if beside := sum(path.suffix.lower() in image_endings() for path in directory.iterdir()):
    warn_once(f"{directory}: passed over: {beside} images next to the folder images/")
  return list_pair(images, labels, apart) if labels.is_dir() else (_list_files(images, apart), {})


def read_mapping(path: str | os.PathLike) -> dict[str, list[str]]:
  """Reads the prompts of each query from a mapping.

  Returns:
    The prompt files of each query, as they are written there.

  Raises:
    InputError: the file is missing, is not JSON, has another form, or has a key twice.
  """
  path = Path(expand(path))

  def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
      keys = [key for key, _ in pairs]
      raise InputError(
        f"{path}: found key {next(key for key in keys if keys.count(key) > 1)!r} twice, expected it once"
      )
    return found

  try:
    mapping = parse_json(decode_text(path.read_bytes()), object_pairs_hook=unique)
  except FileNotFoundError as error:
    raise InputError(f"{path}: not found, expected a JSON file {{query file: [prompt files, best first]}}") from error
  except InputError:
    raise
  except (OSError, ValueError) as error:
    raise InputError(f"{path}: cannot be read as JSON: {error}") from error
  if not isinstance(mapping, dict):
    raise InputError(f"{path}: found {type(mapping).__name__}, expected an object {{query file: [prompt files]}}")
  for key, files in mapping.items():
    if not isinstance(files, list) or not files or not all(isinstance(file, str) for file in files):
      raise InputError(f"{path}: {key}: found {json.dumps(files)}, expected a list of prompt file names")
  return mapping
