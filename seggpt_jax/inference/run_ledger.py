"""The ledger of a run in a folder of results, so that it can be stopped, resumed, and shared by several processes.

In: the settings of a run. Out: an open `Ledger` with one line in OUT/progress/SHARD.jsonl for each finished image. The
settings are stored in OUT/run.json; a run that resumes must have the same. Each line also says what its image was
segmented with, see `what_is_read`. Processes share nothing but the folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from seggpt_jax.data import ledger
from seggpt_jax.data.ledger import Ledger
from seggpt_jax.errors import InputError
from seggpt_jax.files import writing
from seggpt_jax.formats.images import file_stamp, read_bytes
from seggpt_jax.inference.queries import PromptFiles, Query
from seggpt_jax.written import check_replaceable, is_listed

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Shard:
  """The share of one process. `2/4` is the second of every four items."""

  index: int = 1  # number of the process, 1 .. count
  count: int = 1  # number of processes

  @classmethod
  def parse(cls, text: str) -> Shard:
    """Reads a shard such as `2/4`.

    Raises:
      InputError: the text has another form.
    """
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
      raise InputError(f"--shard: found {text!r}, expected i/n such as 2/4, with i from 1 to n")
    return cls(int(found[1]), int(found[2]))

  def select(self, items: Sequence[T]) -> Sequence[T]:
    """Returns the items of this shard."""
    return items[self.index - 1 :: self.count]

  def all(self) -> list[Shard]:
    """Returns the shards of all processes."""
    return [Shard(index, self.count) for index in range(1, self.count + 1)]

  def __str__(self) -> str:
    return f"{self.index}-of-{self.count}"


_FOLDER, SETTINGS, _FILES = "progress", "run.json", "*-of-*.jsonl"


@dataclasses.dataclass(frozen=True)
class RunFolder:
  """The folder of results of a run, and what earlier starts and other processes have noted in it."""

  path: Path  # the folder, created if missing
  settings: dict[str, Any]  # settings of the run, as JSON values by name of their flags
  # Keeps the images that an earlier run has finished. Otherwise they are forgotten, and their files replaced.
  resume: bool = False
  shard: Shard = Shard()  # the share of this process

  def open_ledger(self) -> Ledger:
    """Opens the ledger of this process.

    Raises:
      InputError: the folder cannot be written to; the run to resume or to share had other settings; or, with several
        shards, an earlier run is there that must not be resumed: one process cannot know whether the others have
        forgotten it.
    """
    folder, stored_at = self.path / _FOLDER, self.path / SETTINGS
    own = folder / f"{self.shard}.jsonl"
    with writing(folder):
      folder.mkdir(parents=True, exist_ok=True)
      if not self.resume and self.shard.count > 1 and own.exists():
        raise InputError(f"{own}: in use by an earlier run; use --resume to continue it")
      stored = ledger.read_note(stored_at) if self._adds else None
      if stored is not None:
        remedy = "repeat the earlier flags, or leave out --resume to start over"
        ledger.check_settings(stored_at, stored, self.settings, remedy, prefix="--")
      else:
        for path in self._ledgers:
          path.unlink()
        check_replaceable(own, "choose another --outdir")
        ledger.write_note(stored_at, self.settings)
    return Ledger(own, _FILES)

  @property
  def _adds(self) -> bool:
    """Returns whether the run adds to what others have noted, instead of starting over."""
    return self.resume or (self.shard.count > 1 and bool(self._ledgers))

  @property
  def _ledgers(self) -> list[Path]:
    """The ledgers of an earlier run, if run.json says that one was here."""
    return sorted((self.path / _FOLDER).glob(_FILES)) if is_listed(self.path / SETTINGS) else []

  def _entries(self) -> dict[str, dict[str, Any]]:
    return ledger.read_entries(self.path / _FOLDER, _FILES)

  def earlier_names(self) -> list[str]:
    """Returns the images that an earlier run has finished."""
    return list(self._entries()) if self._ledgers else []

  def kept_entries(self) -> dict[str, dict[str, Any]]:
    """Returns the entries of earlier starts and other processes that the run adds to."""
    return self._entries() if self._adds else {}

  def check_same_read(self, entries: Mapping[str, Mapping[str, Any]], read: Mapping[str, dict[str, str]]) -> None:
    """Checks that finished images were segmented with the files of this run.

    Args:
      entries: finished images, by name.
      read: what the results of this run depend on, from `what_is_read`.

    Raises:
      InputError: a file has changed; names the first.
    """
    for name, now in read.items():
      before = entries.get(name, {}).get("read", now)
      if changed := [key for key in now if before.get(key) != now[key]]:
        what = {"image": "another image file", "label": "another label file"}.get(changed[0], f"other {changed[0]}")
        raise InputError(
          f"{self.path}: {name} was segmented with {what} than now, and two runs would be mixed; leave out --resume to "
          "start over, or choose another --outdir"
        )

  def overwrite_notice(self) -> str | None:
    """Returns the line that a command prints before it overwrites the results of an earlier run; None without any."""
    finished = [entry for entry in self._entries().values() if "bad" not in entry]
    if not finished or self.shard.count > 1 or self.resume:
      return None
    stored, settings = ledger.read_note(self.path / SETTINGS) or {}, self.settings
    changed = {key: stored.get(key) for key in {**stored, **settings} if stored.get(key) != settings.get(key)}
    described = " ".join(f"--{key}={as_text(value)}" for key, value in changed.items())
    earlier = f"an earlier run with {described}" if changed else "an earlier run with the same settings"
    remedy = "choose another --outdir" if changed else "use --resume, or another --outdir"
    return f"{self.path}: overwriting {len(finished)} results of {earlier}; to keep them, {remedy}"


def what_is_read(queries: Sequence[Query], weights: str) -> dict[str, dict[str, str]]:
  """Returns what the result of each query depends on: its files by size and time, the others by content.

  Returns:
    By the name of the query, `image`, `label`, `prompts` and `weights`. A file that is missing is "missing".
  """

  @functools.cache
  def content(prompt: PromptFiles) -> bytes:
    with contextlib.suppress(InputError):
      return hashlib.sha256(read_bytes(prompt.image)).digest() + hashlib.sha256(read_bytes(prompt.labels)).digest()
    return b"missing"

  def stamp(path: Path | None) -> str:
    with contextlib.suppress(InputError):
      return "" if path is None else file_stamp(path)
    return "missing"

  return {
    query.name: {
      "image": stamp(query.image),
      "label": stamp(query.truth),
      "prompts": hashlib.sha256(b"".join(map(content, query.prompts))).hexdigest()[:32],
      "weights": weights,
    }
    for query in queries
  }


def as_text(value: Any) -> str:
  """Formats the value of a flag as on a command line; lists with commas."""
  return ",".join(map(str, value)) if isinstance(value, list) else str(value)
