"""Weights on the Hugging Face hub: what a name stands for, downloads of the files that are needed, and uploads.

In: a name such as `BAAI/seggpt-vit-large`, `hf://OWNER/NAME@REVISION` or `hf://OWNER/NAME/FILE.pth`. Out: the
downloaded file or folder. `weights.py` converts it. The library `huggingface_hub` is imported only when it is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from seggpt_jax.errors import InputError, one_line, warn_once
from seggpt_jax.files import is_full, write_whole, writing
from seggpt_jax.model import digests

PREFIX = "hf://"
FILES = (".pth", ".pt", ".bin", ".safetensors")
_PART = r"[A-Za-z0-9][\w.-]*"
_NAME = re.compile(rf"(?P<repo>{_PART}/{_PART})(@(?P<revision>[^/@\s]+))?(/(?P<file>[^@\s]+))?", re.ASCII)


class Address(NamedTuple):
  """Names weights on the hub.

  Attributes:
    repo: OWNER/NAME.
    revision: branch, tag or commit.
    file: one file of the repository, or "" for the repository's model.
  """

  repo: str
  revision: str
  file: str


def parse(name: str | os.PathLike) -> Address | None:
  """Returns what a name stands for on the hub, or None if it is a path.

  A bare `OWNER/NAME` is a path if there is a folder OWNER here.

  Raises:
    InputError: the name starts with hf:// but is no name of a repository or file.
  """
  name = os.fspath(name)
  found = _NAME.fullmatch(name.removeprefix(PREFIX))
  if name.startswith(PREFIX):
    if not found or (found["file"] and not found["file"].endswith(FILES)):
      raise InputError(
        f"{name}: expected hf://OWNER/NAME, hf://OWNER/NAME@REVISION or hf://OWNER/NAME/FILE with a file that ends in "
        f"{', '.join(FILES)}"
      )
  elif not found or found["file"] or name.endswith(FILES) or Path(name).parent.exists():
    return None
  return Address(found["repo"], found["revision"] or "main", found["file"] or "")


def cache() -> Path:
  """Returns the folder of converted weights, beside the hub's own downloads."""
  home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
  return Path(os.path.expandvars(home)).expanduser() / "seggpt_jax"


def fetch(name: str, address: Address) -> tuple[Path, str]:
  """Downloads weights, unless they are complete on this machine.

  Files that an interrupted start completed are not fetched again.

  Args:
    name: the name as the user wrote it, for messages.
    address: what it stands for.

  Returns:
    The file, or the folder of the repository's files, and the commit.

  Raises:
    InputError: the hub has no such weights, or cannot be reached and they are not on this machine.
  """
  from huggingface_hub import HfApi, errors, hf_hub_download

  note = cache() / address.repo.replace("/", "--") / "revisions" / hashlib.sha256(repr(address).encode()).hexdigest()
  if done := _noted(note, re.fullmatch("[0-9a-f]{40}", address.revision) is not None):
    return done
  with _one_line(name, address):
    try:
      info = HfApi().model_info(address.repo, revision=address.revision, files_metadata=True, timeout=10)
    except (errors.OfflineModeIsEnabled, *_connection_errors()) as error:
      answer = getattr(error, "response", None)  # a refusal must not be hidden by what was fetched before
      if (answer is not None and answer.status_code < 500) or not (done := _noted(note)):
        raise
      if not isinstance(error, errors.OfflineModeIsEnabled):
        warn_once(f"{name}: the hub does not answer ({one_line(error)[:120]}); read as fetched before, {done[1][:8]}")
      return done
    known = {each.rfilename: each for each in info.siblings}
    paths = []
    for file in _needed(name, address, list(known)):
      download = {"repo_id": address.repo, "filename": file, "revision": info.sha}
      path, lfs = hf_hub_download(**download), known[file].lfs
      if lfs and _digest(path) != lfs.sha256:
        path = hf_hub_download(**download, force_download=True)
        if _digest(path) != lfs.sha256:
          raise InputError(f"{name}: {file} is not what the hub's digest says, even when fetched again")
      paths.append((file, Path(path)))
  file, path = paths[0]
  found = path if address.file else path.parents[len(Path(file).parts) - 1]
  write_whole(note, lambda out: out.write(f"{info.sha}\n{found}\n".encode()))
  return found, info.sha


def create(name: str, *, private: bool) -> None:
  """Creates a repository for weights, unless it is there.

  Args:
    name: OWNER/NAME.
    private: whether only its owner can read it, if it is created.

  Raises:
    InputError: the name is none of a repository, or it cannot be created, for example without a token.
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


def _noted(note: Path, wanted: bool = True) -> tuple[Path, str] | None:
  """Returns the download that an earlier start completed, if it is still there."""
  if not (wanted and note.is_file()):
    return None
  commit, _, path = note.read_text().strip().partition("\n")
  return (Path(path), commit) if Path(path).exists() else None


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


def _digest(path: str) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


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
      f"{name}: not found, neither a local path nor a repository {where} that can be read without a token; "
      "if it is private, run `hf auth login` or set HF_TOKEN"
    ) from error
  except errors.RevisionNotFoundError as error:
    raise InputError(f"{name}: {where} has no revision {address.revision!r}") from error
  except errors.HfHubHTTPError as error:
    raise InputError(f"{name}: {where} cannot be fetched: {one_line(error)[:200]}") from error
  except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, *_connection_errors()) as error:
    file = address.file or "model.safetensors"
    rest = "by hand and pass its path" if address.file else "and config.json beside it by hand and pass their folder"
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"no connection to {constants.ENDPOINT}"
    raise InputError(
      f"{name}: not found on this machine, and cannot be fetched, {why}; fetch "
      f"{where}/resolve/{address.revision}/{file} {rest} instead of the name"
    ) from error
  except OSError as error:  # also the library's error for a file of the wrong size
    with writing(constants.HF_HUB_CACHE):
      if is_full(error) or error.errno:
        raise
    raise InputError(f"{name}: {where}: the download broke off ({one_line(error)[:120]}); rerun the command") from error


@contextlib.contextmanager
def _uploading(name: str, left: str) -> Iterator[None]:
  """Turns an error of an upload into one line for the user, which ends with what is left."""
  from huggingface_hub import constants, errors

  where = f"{constants.ENDPOINT}/{name}"
  try:
    yield
  except errors.OfflineModeIsEnabled as error:
    raise InputError(f"{name}: cannot be uploaded, HF_HUB_OFFLINE is set") from error
  except errors.HfHubHTTPError as error:
    login = "; run `hf auth login` with a token that may write, or set HF_TOKEN"
    remedy = login if error.response.status_code in (401, 403, 404) else ""
    raise InputError(f"{where}: refuses the upload: {one_line(error)[:200]}{remedy}") from error
  except (*_connection_errors(), OSError, RuntimeError) as error:  # the library wraps errors of single files
    raise InputError(
      f"{name}: the upload to {where} broke off ({one_line(error.__cause__ or error)[:120]}); {left}"
    ) from error
