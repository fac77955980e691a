"""The files in folders: images by name, and all files of a dataset. Hidden files and junk are passed over.

Annotation files name images as the tool's machine did: with folders that are elsewhere now, with backslashes, with
another Unicode form. `DatasetFiles.find` is the one place that turns such a name into a path.
"""

from __future__ import annotations

import collections
import csv
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from etils import epath

from seggpt_jax.errors import InputError, one_line, refuse, warn_once
from seggpt_jax.files import parse_json, plain_name
from seggpt_jax.formats.images import HEIF_ENDINGS, HEIF_HINT, image_endings, read_text, remote_or_local
from seggpt_jax.written import is_listed

# Junk that systems and programs leave in folders. Hidden files (.DS_Store, ._0001.jpg) are passed over as well.
_JUNK = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin"})
_MOST_ENDINGS = 5  # that one line names
TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation", "dev")
_TEST_NAMES = ("test", "testing")
_HEAD = 65_536  # bytes
_ORDER = (*TRAIN_NAMES, *VAL_NAMES, *_TEST_NAMES)


def is_junk(name: str) -> bool:
  """Returns True for hidden files and folders, and for files and folders that systems leave everywhere."""
  return name.startswith(".") or name.lower() in _JUNK


def is_results_folder(path: str | os.PathLike) -> bool:
  """Returns whether a folder holds the results of a run of `seggpt infer`."""
  return os.path.isfile(os.path.join(path, "run.json")) and os.path.isdir(os.path.join(path, "progress"))


def walk(
  directory: str,
  is_file: Callable[[str], bool],
  why_not: Callable[[str], str] = lambda path: "",
  passed: collections.Counter[str] | None = None,
) -> Iterator[tuple[str, str]]:
  """Yields the relative path and the path of every file below a folder, in sorted order.

  Args:
    directory: local folder, or a remote one.
    is_file: tells by the name whether something in a remote folder is a file. Each question to a remote file system
      takes a round trip, so only those are asked that change the result.
    why_not: returns the reason to pass over a subfolder; "" to enter it. A link in a circle is never entered.
    passed: counter of the subfolders that are passed over, by reason.
  """

  def visit(folder: str, prefix: str, above: tuple[tuple, ...]) -> Iterator[tuple[str, str]]:
    # Strings, because path objects for 100,000 files take longer than everything else before the first step.
    if os.path.isdir(folder):
      above = (*above, os.stat(folder)[1:3])  # number and device, the same for all links to the folder
      with os.scandir(folder) as entries:
        inside = sorted((entry.name, entry.is_dir()) for entry in entries)
    else:
      paths = epath.Path(folder).iterdir()
      inside = sorted((path.name, not is_file(path.name) and path.is_dir()) for path in paths)
    for name, is_folder in inside:
      path = f"{folder}/{name}"
      if is_junk(name):
        continue
      if not is_folder:
        yield prefix + name, path
        continue
      reason = why_not(path)
      if not reason and os.path.islink(path) and os.stat(path)[1:3] in above:
        reason = "a link in a circle"
      if not reason:
        yield from visit(path, f"{prefix}{name}/", above)
      elif passed is not None:
        passed[f"folder ({reason})"] += 1

  return visit(directory, "", ())


def list_images(
  directory: str | os.PathLike,
  recursive: bool = False,
  problems: list[str] | None = None,
  skip: Callable[[str], str] | None = None,
) -> dict[str, str]:
  """Lists the image files of a folder, sorted by name. Warns, in one line, about files and folders that it leaves out.

  Args:
    directory: local folder, or a remote one such as gs://BUCKET/FOLDER.
    recursive: True also lists subfolders, with names such as `street/0001`.
    problems: list for descriptions of what is wrong; None raises instead. Of two files with one name the first is kept.
    skip: function that says why a subfolder must be left out, or "".

  Returns:
    Path of each image by its name, which is the relative path without extension, in the form of `files.plain_name`.

  Raises:
    InputError: the folder is missing or has no images, or two files differ only in their extension.
  """
  directory = remote_or_local(directory)
  if not directory.is_dir():
    refuse(
      f"{directory}: {'is a file' if directory.exists() else 'folder not found'}, expected a folder of images", problems
    )
    return {}
  root = os.fspath(directory)
  local = "://" not in root
  found: dict[str, str] = {}
  passed: collections.Counter[str] = collections.Counter()

  def why_not(path: str) -> str:
    if not recursive:
      return "not entered"
    if local and is_results_folder(path):
      return "results of a run"  # which are never images to read
    return skip(path) if skip else ""

  try:
    has_results = local and is_results_folder(root)
    looks_like_file = lambda name: not recursive or os.path.splitext(name)[1].lower() in image_endings()  # noqa: E731
    for relative, path in walk(root, looks_like_file, why_not, passed):
      name, ending = os.path.splitext(relative)
      if has_results and is_listed(path):
        passed[f"{ending} (result of a run)"] += 1
      elif ending.lower() not in image_endings():
        passed[ending or "without an ending"] += 1
      elif (name := plain_name(name)) in found:
        refuse(f"{path}: found {os.path.basename(found[name])} next to it, expected one file for each name", problems)
      else:
        found[name] = path
  except OSError as error:
    raise InputError(f"{directory}: cannot be listed: {error.strerror or error}") from error
  if not found:
    left = f" ({_passed_over(passed)})" if passed else ""
    refuse(f"{directory}: found no images{left}, expected files that Pillow can read, such as .png or .jpg", problems)
  elif passed:
    warn_once(f"{directory}: {_passed_over(passed)}")
  return dict(sorted(found.items()))


def _passed_over(passed: collections.Counter[str]) -> str:
  """Describes what a listing left out, in words such as "passed over: 2 .txt, 1 without an ending"."""
  named = [
    f"{count} {what.replace('folder', 'folders', 1) if count > 1 else what}"
    for what, count in passed.most_common(_MOST_ENDINGS)
  ]
  rest = passed.total() - sum(count for _, count in passed.most_common(_MOST_ENDINGS))
  hint = f"; {HEIF_HINT}" if HEIF_ENDINGS & {what.lower() for what in passed} else ""
  return f"passed over: {', '.join(named)}{f', {rest} others' if rest else ''}{hint}"


class DatasetFiles:
  """All files below a folder. Hidden files and folders are left out.

  Args:
    path: the folder, local or remote.

  Raises:
    InputError: the folder does not exist.
  """

  def __init__(self, path: str | os.PathLike):
    directory = remote_or_local(path)
    if not directory.is_dir():
      raise InputError(f"{path}: folder not found, expected a dataset")
    self.root = os.fspath(directory)
    # Asking whether a remote name is a folder takes a request, so names with an ending are taken for files.
    self.paths = sorted(relative for relative, _ in walk(self.root, lambda name: bool(os.path.splitext(name)[1])))
    self._known = frozenset(self.paths)
    self.elsewhere: list[tuple[str, str]] = []  # names that `find` was asked for, and what it found in other folders

  def __contains__(self, relative: str) -> bool:
    return relative in self._known

  def full(self, relative: str) -> str:
    """Returns the path of a file from its relative path."""
    return os.path.join(self.root, relative)

  def head(self, relative: str) -> bytes:
    """Returns the start of a file, without spaces at its beginning, which tells what a text file holds.

    Raises:
      InputError: the file cannot be read.
    """
    path = self.full(relative)
    try:
      with epath.Path(path).open("rb") as file:
        return file.read(_HEAD).lstrip(b"\xef\xbb\xbf \r\n\t")
    except OSError as error:
      raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error

  def ending(self, *endings: str) -> list[str]:
    """Returns the relative paths with one of the given endings, such as .json, in upper or lower case."""
    return [path for path in self.paths if path.lower().endswith(endings)]

  def folders(self, folder: str = "") -> list[str]:
    """Returns the names of the folders in a folder that hold files at any depth."""
    prefix = f"{folder}/" if folder else ""
    inside = (path[len(prefix) :] for path in self.paths if path.startswith(prefix))
    return sorted({each.partition("/")[0] for each in inside if "/" in each})

  def find(self, name: str, near: Sequence[str] = (), split: str = ".", splits: Sequence[str] = ()) -> str:
    """Finds the file that an annotation file names.

    Of files with that base name, the one whose folders agree best with the name is taken, then the one in the first of
    the folders `near` that has one. A file in the folder of another split is another image of the same name.

    Args:
      name: name of the file, perhaps with folders and backslashes.
      near: folders, relative to the dataset, where the file is expected.
      split: the split that the file belongs to; "." for a dataset without splits.
      splits: names of all splits of the dataset, besides the usual ones such as train and val.

    Returns:
      The path of the file. If it does not exist, this is the path where it was expected first.

    Raises:
      InputError: two files fit equally well.
    """
    wanted = [part for part in PurePosixPath(plain_name(name)).parts if part not in ("..", ".", "/")]
    candidates = self._by_name.get(wanted[-1], []) if wanted else []
    named = set(wanted[:-1])
    foreign = [each for each in candidates if _other_split(set(each.split("/")[:-1]) - named, split, splits)]
    candidates = [each for each in candidates if each not in foreign]
    if not candidates:
      return self.full(os.path.join(near[0] if near else "", *wanted))
    ranked = sorted((_rank(PurePosixPath(path), wanted, near), path) for path in candidates)
    if len(ranked) > 1 and ranked[0][0] == ranked[1][0]:
      raise InputError(f"{name!r}: found {ranked[0][1]} and {ranked[1][1]} in {self.root}, expected one file")
    (disagreeing, place), found = ranked[0]
    if -disagreeing < len(wanted) or (near and place == len(near) and "/" in found):
      self.elsewhere.append((name, found))
    return self.full(found)

  def notes(self) -> tuple[str, ...]:
    """Returns a line about the files that `find` found in another folder than stated, if there are any."""
    if not self.elsewhere:
      return ()
    (stated, found), count = self.elsewhere[0], len(self.elsewhere)
    return (
      f"{count} images are not in the folder that their annotations state and were found by name: {stated} is {found}",
    )

  @functools.cached_property
  def _by_name(self) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in self.paths:
      found.setdefault(plain_name(path.rpartition("/")[2]), []).append(path)
    return found

  def describe(self) -> str:
    """Returns the number of files by ending and the first folders, for a message about a dataset of unknown form."""
    endings = collections.Counter(os.path.splitext(path)[1].lower() or "without an ending" for path in self.paths)
    counts = ", ".join(f"{count} {ending}" for ending, count in endings.most_common(6))
    folders = sorted({path.rpartition("/")[0] for path in self.paths} - {""})
    named = f" in {', '.join(folders[:6])}{' and more' if len(folders) > 6 else ''}" if folders else ""
    return f"{counts}{named}" if counts else "no files"


def _rank(path: PurePosixPath, wanted: Sequence[str], near: Sequence[str]) -> tuple[int, int]:
  """Returns how badly a path fits: fewer agreeing folders first, then farther from the folders where it is expected."""
  pairs = zip(reversed([plain_name(part) for part in path.parts]), reversed(wanted), strict=False)
  agreeing = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
  places = [place for place, folder in enumerate(near) if path.is_relative_to(folder)]
  return -agreeing, min(places, default=len(near))


def _other_split(folders: set[str], split: str, splits: Sequence[str]) -> bool:
  """Returns True if one of the folders is that of another split."""
  if split == "." or split in folders:
    return False
  own = _kind_of(split)
  other_kinds = {_kind_of(folder) for folder in folders} - {None, own}
  return bool((own and other_kinds) or folders & set(splits))


def _kind_of(split: str) -> str | None:
  """Returns train, val or test for the name of a split that begins like one; None for other names."""
  for names in (TRAIN_NAMES, VAL_NAMES, _TEST_NAMES):
    if split.lower().startswith(names):
      return names[0]
  return None


def read_json(path: str, **options: Any) -> Any:
  """Reads a JSON file that a person or a tool wrote.

  Args:
    path: the file, local or remote.
    **options: arguments of `json.loads`.

  Raises:
    InputError: the file is missing, or is not JSON.
  """
  text = read_text(path)
  try:
    return parse_json(text, **options)
  except ValueError as error:
    raise InputError(f"{path}: cannot be read as JSON: {one_line(error)}") from error


def read_csv(path: str | os.PathLike, *columns: str) -> Iterator[tuple[str | None, ...]]:
  """Reads columns of a CSV file with a header that a person or a tool wrote.

  Args:
    path: the file, local or remote.
    *columns: names of the columns.

  Yields:
    The place of a row, for error messages, and its values; None for those that the row lacks.

  Raises:
    InputError: the file is missing, is not CSV, or lacks a column.
  """
  rows = csv.DictReader(read_text(path).splitlines())
  try:
    if not set(columns) <= set(rows.fieldnames or []):
      raise InputError(f"{path}: found columns {', '.join(rows.fieldnames or [])}, expected {' and '.join(columns)}")
    for row in rows:
      yield f"{path}: line {rows.line_num}", *(row[column] for column in columns)
  except csv.Error as error:
    raise InputError(f"{path}: cannot be read as CSV: {error}") from error


def order_splits(names: Sequence[str]) -> list[str]:
  """Orders names of splits: training first, then validation, then test, then all others."""
  lowered = {name: name.lower() for name in names}

  def place(name: str) -> tuple[int, str]:
    fits = [i for i, known in enumerate(_ORDER) if lowered[name] == known]
    starts = [len(_ORDER) + i for i, known in enumerate(_ORDER) if lowered[name].startswith(known)]
    return min([*fits, *starts], default=2 * len(_ORDER)), name

  return sorted(names, key=place)
