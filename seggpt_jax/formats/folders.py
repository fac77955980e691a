"""The files in folders, and images by name. Hidden files, and what systems leave everywhere, are passed over."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterator

from etils import epath

from seggpt_jax.errors import InputError, refuse, warn_once
from seggpt_jax.files import plain_name
from seggpt_jax.formats.images import HEIF_ENDINGS, HEIF_HINT, image_endings, remote_or_local
from seggpt_jax.written import is_listed

# Junk that systems and programs leave in folders. Hidden files (.DS_Store, ._0001.jpg) are passed over as well.
_JUNK = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin"})
_MOST_ENDINGS = 5  # that one line names


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

  def visit(folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, str]]:
    # Strings, because path objects for 100,000 files take longer than everything else before the first step.
    if os.path.isdir(folder):
      found = os.stat(folder)
      above = (*above, (found.st_dev, found.st_ino))  # the same for all links to the folder
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
      elif not (reason := why_not(path) or ("a link in a circle" if _is_circle(path, above) else "")):
        yield from visit(path, f"{prefix}{name}/", above)
      elif passed is not None:
        passed[f"folder ({reason})"] += 1

  return visit(directory, "", ())


def _is_circle(path: str, above: tuple[tuple[int, int], ...]) -> bool:
  """Returns whether a folder is a link to a folder that leads to it."""
  if not os.path.islink(path):
    return False
  found = os.stat(path)
  return (found.st_dev, found.st_ino) in above


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
