"""Large files of the Hugging Face hub: a download resumes where it stopped, even if its process was killed.

`hf_hub_download` begins again at the first byte after a kill (huggingface_hub 2.4), because it
gives each process a temporary file of its own. Its inner function `http_get` takes the place to resume from. Here the
unfinished file is named by its digest, and it is used only if the digest of the complete file is right.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from seggpt_jax.errors import InputError, one_line


class HubFile(NamedTuple):
  """A file of the hub."""

  name: str  # name of the weights as the user wrote it, for messages
  repo: str  # OWNER/NAME
  file: str  # path of the file in the repository
  commit: str  # commit of the repository
  folder: Path  # folder that gets the file, under its path in the repository

  @property
  def url(self) -> str:
    """Address of the file."""
    from huggingface_hub import hf_hub_url

    return hf_hub_url(self.repo, self.file, revision=self.commit)


def fetch_large(wanted: HubFile, unfinished: Path, sha256: str, size: int) -> None:
  """Downloads a file, unless it is complete. One process at a time may do this for one folder.

  Raises:
    InputError: the download was interrupted, or its content is wrong.
  """
  from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

  name, repo, file, commit, folder = wanted
  path = folder / file
  if _is_whole(path, sha256):
    return
  path.unlink(missing_ok=True)
  cached = isinstance(try_to_load_from_cache(repo, file, revision=commit), str)
  if cached or constants.HF_XET_HIGH_PERFORMANCE:
    hf_hub_download(repo, file, revision=commit, local_dir=folder)
    if _is_whole(path, sha256):
      return
  path.parent.mkdir(parents=True, exist_ok=True)
  for _ in range(2):
    _go_on(name, wanted.url, unfinished, size)
    if _is_whole(unfinished, sha256):
      os.replace(unfinished, path)
      return
    unfinished.unlink()
  raise InputError(f"{name}: {file} is not what the hub's digest says, even when fetched again")


def fetch_small(wanted: HubFile, size: int | None) -> None:
  """Downloads a file without a digest, such as config.json.

  Args:
    wanted: the file.
    size: bytes of the file, if the hub announces them; it may not send more.

  Raises:
    InputError: the download was interrupted, or is larger than announced.
  """
  path = wanted.folder / wanted.file
  path.parent.mkdir(parents=True, exist_ok=True)
  unfinished = path.with_name(f"{path.name}.incomplete")
  unfinished.unlink(missing_ok=True)
  _go_on(wanted.name, wanted.url, unfinished, size)
  os.replace(unfinished, path)


def connection_errors() -> tuple[type[BaseException], ...]:
  """Returns the errors of the HTTP library that huggingface_hub uses when a server cannot be reached."""
  from huggingface_hub import errors

  transport = next((base for base in errors.HfHubHTTPError.__mro__ if base.__name__ == "HTTPError"), OSError)
  return (transport, ConnectionError, TimeoutError)


_MOST_SMALL = 64 * 2**20  # bytes of a file whose size the hub does not announce


class _Bounded:
  """A file that refuses more bytes than the hub has announced; `name` is that of the weights, for messages."""

  def __init__(self, file: BinaryIO, most: int, name: str):
    self._file, self._most, self._name = file, most, name

  def write(self, data: bytes) -> int:
    if self._file.tell() + len(data) > self._most:
      raise InputError(f"{self._name}: the hub sends more than the {self._most} bytes that it has announced")
    return self._file.write(data)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._file, name)


def _go_on(name: str, url: str, unfinished: Path, size: int | None) -> None:
  """Fetches what an unfinished file lacks, as long as each connection brings something."""
  from huggingface_hub import errors
  from huggingface_hub.file_download import http_get  # not documented: the reason for the bound in pyproject.toml
  from huggingface_hub.utils import build_hf_headers

  most = _MOST_SMALL if size is None else size
  if unfinished.exists() and unfinished.stat().st_size > most:
    unfinished.unlink()
  headers = build_hf_headers() | {"Accept-Encoding": "identity"}
  unfinished.touch()
  # Not opened to append: where locks do not work, two processes write the same bytes to the same places.
  with open(unfinished, "r+b") as out:
    while True:
      before = out.seek(0, os.SEEK_END)
      label = url.rpartition("/")[2]
      try:
        options = {"resume_size": before, "expected_size": size, "displayed_filename": label}
        http_get(url, _Bounded(out, most, name), headers=headers, **options)
        return
      except errors.HfHubHTTPError:
        raise
      except connection_errors() as error:
        if out.tell() <= before:
          raise InputError(f"{name}: {_broken(error, out.tell(), most)}") from error
      except OSError as error:
        if error.errno:  # of this machine
          raise
        out.seek(0)  # the library's error for another size
        start = out.read(100).lstrip()
        out.seek(0, os.SEEK_END)
        if start.startswith(b"<"):
          out.truncate(0)
          raise InputError(
            f"{name}: found a web page instead of the file, for example of a proxy or of a network's login; open {url} "
            "in a browser, then rerun the command"
          ) from error
        raise InputError(f"{name}: {_broken(OSError('it has another size'), out.tell(), most)}") from error


def _broken(error: BaseException, have: int, size: int) -> str:
  """Returns the message for a download that was interrupted."""
  try:
    request = getattr(error, "request", None)  # the last one after redirects, as to a storage that a firewall blocks
  except RuntimeError:  # the HTTP library's, if there was none
    request = None
  host = f" from {request.url.host}" if request is not None else ""
  return (
    f"the download{host} was interrupted after {have / 1e6:.1f} of {size / 1e6:.1f} MB ({one_line(error)[:120]}); "
    "rerun the command to resume"
  )


def _is_whole(path: Path, sha256: str) -> bool:
  if not path.is_file():
    return False
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest() == sha256
