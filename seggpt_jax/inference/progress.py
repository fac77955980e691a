"""The ledger of an inference run, so that it can be stopped, resumed, and shared by several processes.

In: the settings of a run. Out: an open `Ledger` with one line in OUT/progress/SHARD.jsonl for each finished image. The
settings are stored in OUT/run.json; a run that resumes must have the same. Each line also says what its image was
segmented with, see `what_is_read`. Processes share nothing but the folder.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seggpt_jax.data import ledger
from seggpt_jax.data.ledger import Ledger
from seggpt_jax.errors import InputError
from seggpt_jax.files import writing
from seggpt_jax.formats.images import file_stamp, read_bytes
from seggpt_jax.inference.queries import PromptFiles, Query
from seggpt_jax.inference.shard import Shard
from seggpt_jax.written import check_replaceable, is_listed

_FOLDER, SETTINGS, _FILES = "progress", "run.json", "*-of-*.jsonl"


def open_progress(outdir: Path, settings: Mapping[str, Any], resume: bool, shard: Shard) -> Ledger:
  """Opens the ledger of a run in its folder of results.

  Args:
    outdir: folder of the results, created if missing.
    settings: settings of the run, as JSON values by name of their flags.
    resume: keeps the images that an earlier run has finished. Otherwise they are forgotten, and their files replaced.
    shard: the share of this process.

  Raises:
    InputError: the folder cannot be written to; the run to resume or to share had other settings; or, with several
      shards, an earlier run is there that must not be resumed: one process cannot know whether the others have
      forgotten it.
  """
  folder, settings = outdir / _FOLDER, json.loads(json.dumps(settings))
  own = folder / f"{shard}.jsonl"
  with writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
    if not resume and shard.count > 1 and own.exists():
      raise InputError(f"{own}: in use by an earlier run; use --resume to continue it")
    stored = ledger.read_note(outdir / SETTINGS) if _keeps(outdir, resume, shard) else None
    if stored is not None:
      remedy = "repeat the earlier flags, or leave out --resume to start over"
      ledger.check_settings(outdir / SETTINGS, stored, settings, remedy, prefix="--")
    else:
      for path in _own_ledgers(outdir):
        path.unlink()
      check_replaceable(own, "choose another --outdir")
      ledger.write_note(outdir / SETTINGS, settings)
  return Ledger(own, _FILES)


def _keeps(outdir: Path, resume: bool, shard: Shard) -> bool:
  """Returns whether a run adds to what others have noted in its folder, instead of starting over."""
  return resume or (shard.count > 1 and bool(_own_ledgers(outdir)))


def _own_ledgers(outdir: Path) -> list[Path]:
  """Returns the ledgers of an earlier run, if run.json says that one was here."""
  return sorted((outdir / _FOLDER).glob(_FILES)) if is_listed(outdir / SETTINGS) else []


def earlier_names(outdir: Path) -> list[str]:
  """Returns the images that an earlier run has finished in a folder."""
  return list(ledger.read_entries(outdir / _FOLDER, _FILES)) if _own_ledgers(outdir) else []


def kept_entries(outdir: Path, resume: bool, shard: Shard) -> dict[str, dict[str, Any]]:
  """Returns the entries of earlier and other processes that a run with these options adds to."""
  return ledger.read_entries(outdir / _FOLDER, _FILES) if _keeps(outdir, resume, shard) else {}


def what_is_read(queries: Sequence[Query], weights: str) -> dict[str, dict[str, str]]:
  """Returns what the result of each query depends on: its files by size and time, the others by content.

  Args:
    queries: the queries of a run.
    weights: content hash of the network.

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


def check_same_read(outdir: Path, entries: Mapping[str, Mapping[str, Any]], read: Mapping[str, dict[str, str]]) -> None:
  """Checks that finished images were segmented with the files of this run.

  Args:
    outdir: folder of the results.
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
        f"{outdir}: {name} was segmented with {what} than now, and two runs would be mixed; leave out --resume to "
        "start over, or choose another --outdir"
      )


def overwrite_notice(outdir: Path, settings: Mapping[str, Any]) -> str | None:
  """Returns the line that a command prints before it overwrites the results of an earlier run; None without any.

  Args:
    outdir: folder of the results.
    settings: settings of the run that begins, as JSON values by name of their flags.
  """
  finished = [entry for entry in ledger.read_entries(outdir / _FOLDER, _FILES).values() if "bad" not in entry]
  if not finished:
    return None
  stored, settings = ledger.read_note(outdir / SETTINGS) or {}, json.loads(json.dumps(settings))
  changed = {key: stored.get(key) for key in {**stored, **settings} if stored.get(key) != settings.get(key)}
  described = " ".join(f"--{key}={as_text(value)}" for key, value in changed.items())
  earlier = f"an earlier run with {described}" if changed else "an earlier run with the same settings"
  remedy = "choose another --outdir" if changed else "use --resume, or another --outdir"
  return f"{outdir}: overwriting {len(finished)} results of {earlier}; to keep them, {remedy}"


def as_text(value: Any) -> str:
  """Formats the value of a flag as on a command line; lists with commas."""
  return ",".join(map(str, value)) if isinstance(value, list) else str(value)
