"""The ledger of an inference run, so that it can be stopped, resumed, and shared by several processes.

In: the settings of a run. Out: an open `Ledger` with one line in OUT/progress/SHARD.jsonl for each finished image. The
settings are stored in OUT/run.json; a run that resumes must have the same. Processes share nothing but the folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seggpt_jax.data import ledger
from seggpt_jax.data.ledger import Ledger
from seggpt_jax.errors import InputError
from seggpt_jax.files import writing
from seggpt_jax.inference.shard import Shard

_FOLDER, _SETTINGS = "progress", "run.json"


def open_progress(outdir: Path, settings: Mapping[str, Any], resume: bool, shard: Shard) -> Ledger:
  """Opens the ledger of a run in its folder of results.

  Args:
    outdir: folder of the results, created if missing.
    settings: settings of the run, as JSON values by name of their flags.
    resume: keeps the images that an earlier run has finished. Otherwise they are forgotten, and their files replaced.
    shard: the share of this process.

  Raises:
    InputError: the folder cannot be written to; the run to resume had other settings; or, with several shards, an
      earlier run is there that is not to be resumed: one process cannot know whether the others have forgotten it.
  """
  folder, settings = outdir / _FOLDER, json.loads(json.dumps(settings))
  own = folder / f"{shard}.jsonl"
  with writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
    if resume:
      stored = ledger.read_note(outdir / _SETTINGS)
      if stored is not None:
        remedy = "repeat the earlier flags, or leave out --resume to start over"
        ledger.check_settings(outdir / _SETTINGS, stored, settings, remedy, prefix="--")
    elif shard.count > 1 and own.exists():
      raise InputError(f"{own}: found an earlier run, expected none; use --resume to continue it")
    elif shard.count == 1:
      for path in folder.glob("*.jsonl"):
        path.unlink()
  ledger.write_note(outdir / _SETTINGS, settings)
  return Ledger(own, "*.jsonl")


def is_results_folder(path: Path) -> bool:
  """Returns whether a folder holds the results of a run."""
  return (path / _SETTINGS).is_file() and (path / _FOLDER).is_dir()


def overwrite_notice(outdir: Path, settings: Mapping[str, Any]) -> str | None:
  """Returns the line that a command prints before it overwrites the results of an earlier run; None if there are none.

  Args:
    outdir: folder of the results.
    settings: settings of the run that begins, as JSON values by name of their flags.
  """
  finished = [entry for entry in ledger.read_entries(outdir / _FOLDER).values() if "bad" not in entry]
  if not finished:
    return None
  stored, settings = ledger.read_note(outdir / _SETTINGS) or {}, json.loads(json.dumps(settings))
  changed = {key: stored.get(key) for key in {**stored, **settings} if stored.get(key) != settings.get(key)}
  described = " ".join(f"--{key}={as_text(value)}" for key, value in changed.items())
  earlier = f"an earlier run with {described}" if changed else "an earlier run with the same settings"
  remedy = "choose another --outdir" if changed else "use --resume, or another --outdir"
  return f"{outdir}: overwriting {len(finished)} results of {earlier}; to keep them, {remedy}"


def as_text(value: Any) -> str:
  """Formats the value of a flag as on a command line; lists with commas."""
  return ",".join(map(str, value)) if isinstance(value, list) else str(value)
