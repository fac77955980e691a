"""Weights on the Hugging Face hub: what a name stands for, downloads of the files that are needed, and uploads.

In: an address such as `hf://OWNER/NAME`, `hf://OWNER/NAME@REVISION` or `hf://OWNER/NAME/FILE.pth`. Out: a weights
directory in the cache, which `weights.py` makes of the download. The library `huggingface_hub` is imported only when it
is used.

The cache of a repository, which one process at a time may change:

  OWNER--NAME/COMMIT/model      a weights directory
  OWNER--NAME/revisions/...     the commit that a name stood for when it was last used
  OWNER--NAME/downloads/COMMIT  files until they are converted; a file whose download was killed is fetched again
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from seggpt_jax.errors import InputError, one_line, warn_once
from seggpt_jax.files import exclusive, is_full, write_whole, writing
from seggpt_jax.model import digests

PREFIX = "hf://"
FILES = (".pth", ".pt", ".bin", ".safetensors")
_PART = r"[A-Za-z0-9][\w.-]*"
_NAME = re.compile(rf"(?P<repo>{_PART}/{_PART})(@(?P<revision>[^/@\s]+))?(/(?P<file>[^@\s]+))?", re.ASCII)
_COMMIT, _SHA256 = re.compile("[0-9a-f]{40}"), re.compile("[0-9a-f]{64}")
_BUSY = (408, 429)  # statuses of a hub that would answer later


class Address(NamedTuple):
  """Names weights on the hub."""

  repo: str  # OWNER/NAME
  revision: str  # branch, tag or commit
  file: str  # one file of the repository, or "" for the repository's model


def parse(name: str | os.PathLike) -> Address | None:
  """Returns what a name stands for on the hub, or None if it is a path: one without `hf://`.

  Raises:
    InputError: the name is another address, or starts with hf:// but is no name of a repository or file.
  """
  name = os.fspath(name)
  if "://" not in name:
    return None
  found = _NAME.fullmatch(name.removeprefix(PREFIX))
  if not found or not name.startswith(PREFIX) or (found["file"] and not found["file"].endswith(FILES)):
    raise InputError(
      f"{name}: no address that weights are read from, expected a path, hf://OWNER/NAME, hf://OWNER/NAME@REVISION or "
      f"hf://OWNER/NAME/FILE with a file that ends in {', '.join(FILES)}"
    )
  return Address(found["repo"], found["revision"] or "main", found["file"] or "")


def cache() -> Path:
  """Returns the folder of converted weights, next to the hub's own downloads."""
  home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
  return Path(os.path.expandvars(home)).expanduser() / "seggpt_jax"


def fetch(name: str, address: Address, convert: Callable[[Path, Path], None]) -> Path:
  """Returns a weights directory, which is downloaded and converted unless it is on this machine.

  Another process that needs the same repository waits. What an earlier start fetched is not fetched again.

  Args:
    name: the name as the user wrote it, for messages.
    address: what it stands for.
    convert: makes the weights directory, its second argument, of the download, its first, which is then deleted.

  Raises:
    InputError: the hub has no such weights, or cannot be reached and they are not on this machine.
  """
  folder = cache() / address.repo.replace("/", "--")
  note = folder / "revisions" / hashlib.sha256(repr(address).encode()).hexdigest()
  part = address.file.replace("/", "--") or "model"
  known = note.read_text(errors="replace").partition("\n")[0] if note.is_file() else ""
  known = known if _COMMIT.fullmatch(known) and (folder / known / part).is_dir() else ""
  if known and _COMMIT.fullmatch(address.revision):
    return folder / known / part
  with _one_line(name, address):
    info = _ask(name, address, known)
  if info is None or info.sha == known:  # writes nothing, since the cache may be read-only
    return folder / known / part
  found, downloads = folder / info.sha / part, folder / "downloads"
  with writing(folder):
    found.parent.mkdir(parents=True, exist_ok=True)
  with exclusive(folder, wait=True):
    if not found.is_dir():
      with _one_line(name, address):
        source = _download(name, address, info, downloads / info.sha)
      convert(source, found)
    shutil.rmtree(downloads, ignore_errors=True)
  write_whole(note, lambda out: out.write(info.sha.encode()), replace=True)
  return found


def create(name: str, *, private: bool) -> None:
  """Creates a repository for weights, unless it is there.

  Args:
    name: OWNER/NAME.
    private: whether only its owner can read it, if it is created.

  Raises:
    InputError: the name is not OWNER/NAME, or it cannot be created, for example without a token.
  """
  from huggingface_hub import HfApi

  if not re.fullmatch(rf"{_PART}/{_PART}", name, re.ASCII):
    raise InputError(f"{name}: expected OWNER/NAME of a repository on the hub")
  with _uploading(name, "nothing is written"):
    HfApi().create_repo(name, private=private, exist_ok=True)


def upload(name: str, path: Path, card: str) -> str:
  """Uploads weights in one commit. Files of the same names are replaced, all others stay.

  Args:
    name: OWNER/NAME of a repository that exists.
    path: a file or a folder.
    card: text of the model card, which is uploaded if the repository has none.

  Returns:
    The address of the commit.

  Raises:
    InputError: the hub refuses the upload or cannot be reached.
  """
  from huggingface_hub import CommitOperationAdd, HfApi

  files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
  root = path.parent if path.is_file() else path
  with _uploading(name, f"the output is written: upload it with `hf upload {name} {path}`"):
    api = HfApi()
    operations = [CommitOperationAdd(each.relative_to(root).as_posix(), each) for each in files]
    if not api.file_exists(name, "README.md"):
      operations.append(CommitOperationAdd("README.md", card.encode()))
    return str(api.create_commit(name, operations, commit_message=f"Upload {path.name}").commit_url)


def _ask(name: str, address: Address, known: str) -> Any:
  """Returns the commit and files of a revision; None if the hub is silent (not: refuses) and a commit is known."""
  from huggingface_hub import HfApi, errors

  try:
    try:
      info = HfApi().model_info(address.repo, revision=address.revision, files_metadata=True, timeout=10)
      lfs = [each.lfs for each in info.siblings or () if each.lfs]
      if _COMMIT.fullmatch(info.sha or "") and all(_SHA256.fullmatch(each.sha256) and each.size > 0 for each in lfs):
        return info
    except errors.HFValidationError as error:
      raise InputError(f"{name}: {address.repo} cannot be a repository: {one_line(error)[:200]}") from error
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError):
      pass  # the answer is no JSON, or lacks what is needed
    except (ImportError, ValueError) as error:  # of the HTTP library, such as a proxy that needs another package
      raise InputError(
        f"{name}: cannot connect to the hub: {one_line(error)[:200]}; check the proxy (HTTPS_PROXY, ALL_PROXY)"
      ) from error
    raise ConnectionError("not a hub's, but for example a web page of a proxy or of a network's login")
  except (errors.OfflineModeIsEnabled, *_connection_errors()) as error:
    answer = getattr(error, "response", None)
    refused = answer is not None and answer.status_code < 500 and answer.status_code not in _BUSY
    if refused or not known:
      raise
    if not isinstance(error, errors.OfflineModeIsEnabled):
      warn_once(f"{name}: the hub does not answer ({one_line(error)[:120]}); read as fetched before, {known[:8]}")
    return None


def _download(name: str, address: Address, info: Any, folder: Path) -> Path:
  """Downloads the files that are needed, unless they are there; returns the file, or the folder that holds them."""
  from huggingface_hub import errors, hf_hub_download

  known = {each.rfilename: each.lfs for each in info.siblings}
  files = _needed(name, address, list(known))
  if outside := next((each for each in files if each.startswith("/") or ".." in re.split(r"[/\\]", each)), None):
    raise InputError(f"{name}: found a file {outside!r} in the repository, expected a path inside it")
  for file in files:
    try:
      path = Path(hf_hub_download(address.repo, file, revision=info.sha, local_dir=folder))
    except errors.LocalEntryNotFoundError as error:
      raise error.__cause__ or error from None
    if lfs := known[file]:
      with open(path, "rb") as content:
        whole = hashlib.file_digest(content, "sha256").hexdigest() == lfs.sha256
      if not whole:
        path.unlink()
        raise InputError(f"{name}: {file} is not what the hub's digest says; rerun the command to fetch it again")
  shutil.rmtree(folder / ".cache", ignore_errors=True)  # the library's notes on local_dir
  return folder / address.file


def _needed(name: str, address: Address, files: list[str]) -> list[str]:
  """Chooses files of a repository: one file, a weights directory of this package, or a transformers model."""
  if address.file:
    if address.file not in files:
      found = ", ".join(file for file in files if file.endswith(FILES)) or "none"
      raise InputError(f"{name}: the repository has no such file; its files with weights: {found}")
    return [address.file]
  if digests.FILE in files:
    return [digests.FILE, *(f for f in files if f not in (digests.FILE, ".gitattributes") and not f.endswith(".md"))]
  for ending in ("safetensors", "bin"):
    model = [f for f in files if re.fullmatch(rf"(pytorch_)?model(-\d+-of-\d+)?\.{ending}(\.index\.json)?", f)]
    if model and "config.json" in files:
      return ["config.json", *model]
  files = [file for file in files if file.endswith(FILES)]
  remedy = f"; name one of its files: {', '.join(f'{PREFIX}{address.repo}/{f}' for f in files)}" if files else ""
  raise InputError(f"{name}: found no config.json with model.safetensors in the repository{remedy}")


def _connection_errors() -> tuple[type[BaseException], ...]:
  """Returns the errors of the HTTP library that huggingface_hub uses when a server cannot be reached."""
  from huggingface_hub import errors

  transport = next((base for base in errors.HfHubHTTPError.__mro__ if base.__name__ == "HTTPError"), OSError)
  return (transport, ConnectionError, TimeoutError)


@contextlib.contextmanager
def _one_line(name: str, address: Address) -> Iterator[None]:
  """Turns an error of the hub into one line for the user."""
  from huggingface_hub import constants, errors

  where = f"{constants.ENDPOINT}/{address.repo}"
  try:
    yield
  except errors.GatedRepoError as error:
    raise InputError(f"{name}: access is restricted; ask for it at {where}, then run `hf auth login`") from error
  except errors.RepositoryNotFoundError as error:
    raise InputError(
      f"{name}: not found, no repository {where} can be read without a token; if it is private, run `hf auth login` "
      "or set HF_TOKEN"
    ) from error
  except errors.RevisionNotFoundError as error:
    raise InputError(f"{name}: {where} has no revision {address.revision!r}") from error
  except errors.HfHubHTTPError as error:
    wait = error.response.headers.get("Retry-After", "")
    remedy = {
      401: "; run `hf auth login`, or correct HF_TOKEN",
      403: "; run `hf auth login` with a token that may read it, or correct HF_TOKEN",
      429: f"; rerun the command {f'in {wait} s' if wait.isdigit() else 'later'}, and set HF_TOKEN for a higher limit",
    }.get(error.response.status_code, "")
    raise InputError(f"{name}: {where} cannot be fetched: {one_line(error)[:200]}{remedy}") from error
  except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, *_connection_errors()) as error:
    file = address.file or "model.safetensors"
    rest = "by hand and pass its path" if address.file else "and config.json next to it by hand and pass their folder"
    reason = f"no usable answer from {constants.ENDPOINT} ({one_line(error.__cause__ or error)[:200]})"
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else reason
    raise InputError(
      f"{name}: not found on this machine, and cannot be fetched, {why}; fetch "
      f"{where}/resolve/{address.revision}/{file} {rest} instead of the name"
    ) from error
  except OSError as error:  # also the library's error for a file of the wrong size
    with writing(cache()):
      if is_full(error) or error.errno:
        raise
    raise InputError(f"{name}: {where}: download interrupted ({one_line(error)[:120]}); rerun the command") from error


@contextlib.contextmanager
def _uploading(name: str, left: str) -> Iterator[None]:
  """Turns an error of an upload into one line for the user, which ends with what is left."""
  from huggingface_hub import constants, errors

  where = f"{constants.ENDPOINT}/{name}"
  try:
    yield
  except errors.OfflineModeIsEnabled as error:
    raise InputError(f"{name}: cannot be uploaded, HF_HUB_OFFLINE is set") from error
  except errors.HFValidationError as error:
    raise InputError(f"{name}: cannot be a repository: {one_line(error)[:200]}") from error
  except errors.HfHubHTTPError as error:
    login = "; run `hf auth login` with a token that may write, or set HF_TOKEN"
    remedy = login if error.response.status_code in (401, 403, 404) else ""
    raise InputError(f"{where}: refuses the upload: {one_line(error)[:200]}{remedy}; {left}") from error
  # The library wraps errors of single files.
  except (*_connection_errors(), OSError, RuntimeError, ImportError) as error:
    raise InputError(
      f"{name}: the upload to {where} was interrupted ({one_line(error.__cause__ or error)[:120]}); {left}"
    ) from error
