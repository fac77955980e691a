"""Digests of the files of a checkpoint: written once it is complete, compared while it is read.

A flipped bit in a file of arrays is read as other weights without an error. `digests.json` in the directory of a
checkpoint or of weights holds the size and the digest of every other file in it. XXH3 is five times as fast as SHA-256;
it notices damage, while neither of them protects against somebody who writes both the files and the digests.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path

import xxhash

from seggpt_jax.errors import InputError
from seggpt_jax.files import parse_json, write_whole

FILE = "digests.json"
# Bytes. Orbax keeps descriptions, indices and manifests in smaller files than this, also those of the largest networks.
SMALL = 1_000_000
_THREADS = os.cpu_count() or 1


def seal(directory: Path, but: Collection[str] = ()) -> None:
  """Writes the digests of all files in a directory.

  Args:
    directory: the directory.
    but: names of files at its top that are left out.

  Raises:
    InputError: a file cannot be read, or the digests cannot be written.
  """
  paths = {path.relative_to(directory).as_posix(): path for path in sorted(directory.rglob("*")) if path.is_file()}
  paths = {name: path for name, path in paths.items() if name not in (FILE, *but)}
  try:
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
      values = dict(zip(paths, pool.map(_size_and_digest, paths.values()), strict=True))
  except OSError as error:
    raise InputError(f"{directory}: cannot be read: {error.strerror or error}") from error
  text = json.dumps(values, indent=1).encode()
  write_whole(directory / FILE, lambda file: file.write(text), replace=True)


def is_sealed(directory: Path) -> bool:
  """Returns whether a directory has digests."""
  return (directory / FILE).is_file()


class DamageError(ValueError):
  """A file is missing or differs from what was written."""


@contextlib.contextmanager
def verifying(directory: Path) -> Iterator[None]:
  """Compares the files of a directory with their digests while the body of the context reads them.

  Small files, which describe the large ones, are compared before the body runs. What the body reads may only be used
  after the context.

  Raises:
    DamageError: a file is missing or differs. It replaces an error of the body, which the damage may have caused.
  """
  if not is_sealed(directory):
    yield
    return
  expected = _read(directory)
  small = [name for name, (size, _) in expected.items() if size <= SMALL]
  large = [name for name, (size, _) in expected.items() if size > SMALL]
  pool = concurrent.futures.ThreadPoolExecutor(_THREADS)
  try:
    found = {name: pool.submit(_size_and_digest, directory / name) for name in (*small, *large)}

    def compare(names: Collection[str]) -> None:
      for name in names:
        try:
          whole = found[name].result() == expected[name]
        except OSError as error:
          raise DamageError(f"{name} cannot be read: {error.strerror or error}") from error
        if not whole:
          raise DamageError(f"{name} is not what was written")

    compare(small)
    try:
      yield
    except Exception:
      compare(large)
      raise
    compare(large)
  finally:
    pool.shutdown(cancel_futures=True)


def _read(directory: Path) -> dict[str, tuple[int, str]]:
  """Returns size and digest of each file, by its path in the directory."""
  try:
    stored = parse_json((directory / FILE).read_bytes())
    values = {str(name): (int(size), str(digest)) for name, (size, digest) in stored.items()}
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in values):
      raise ValueError("found paths out of the directory")
  except (OSError, ValueError, TypeError, AttributeError) as error:
    raise DamageError(f"{FILE} is damaged") from error
  return values


def _size_and_digest(path: Path) -> tuple[int, str]:
  with open(path, "rb") as file:
    digest = hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
    return file.tell(), digest
