"""What a run of infer.py has done so far, so that it can be stopped, resumed, and shared by several processes.

In: one line of JSON for each image that is done, appended to OUT/progress/SHARD.jsonl once its files are written. Out:
what any of these files say, the run's settings in OUT/run.json checked against those of the run that is resumed.
Processes share no more than that folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seggpt_jax.errors import InputError
from seggpt_jax.files import writing
from seggpt_jax.inference import outputs
from seggpt_jax.inference.shard import Shard

_SETTINGS = "run.json"


class Progress:
  """The images that are done in a folder of results. `close` it, or use it in a `with` statement.

  Args:
    outdir: folder of the results; is made where it is missing.
    settings: of the run, plain values; what is resumed has to have the same.
    resume: goes on with what an earlier run has done there. Else that is forgotten, and its files are replaced.
    shard: this process's part.

  Attributes:
    done: what is known of each image that is done, by name: its line.

  Raises:
    InputError: the folder cannot be written to; other settings; or, with several shards, an earlier run that is not to
      be resumed, which no single process can know whether others have forgotten it too.
  """

  def __init__(
    self, outdir: str | os.PathLike, settings: Mapping[str, Any], resume: bool = False, shard: Shard | None = None
  ):
    shard = shard or Shard()
    self._folder = Path(outdir) / "progress"
    self._path = self._folder / f"{shard}.jsonl"
    settings = json.loads(json.dumps(settings))
    with writing(self._folder):
      self._folder.mkdir(parents=True, exist_ok=True)
      if resume:
        _check_settings(Path(outdir) / _SETTINGS, settings)
      elif shard.count > 1 and self._path.exists():
        raise InputError(f"{self._path}: found an earlier run, expected none, or --resume to go on with it")
      elif shard.count == 1:
        for path in self._folder.glob("*.jsonl"):
          path.unlink()
    outputs.write_json(Path(outdir) / _SETTINGS, settings)
    self.done = self.read_all()
    with writing(self._path):
      self._file = open(self._path, "a+b")  # noqa: SIM115 - closed by `close`
      _end_line(self._file)

  def add(self, name: str, **what: Any) -> None:
    """Notes an image as done, now that its files are there."""
    line = {"name": name, **what}
    self.done[name] = line
    with writing(self._path):
      self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
      self._file.flush()

  def read_all(self) -> dict[str, dict[str, Any]]:
    """The lines of all processes by name. A last line that is cut off, by a kill or a full disk, is as if not there."""
    done = {}
    for path in sorted(self._folder.glob("*.jsonl")):
      for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        try:
          entry = json.loads(line) if line else None
        except ValueError:
          continue
        if entry is not None and not (isinstance(entry, dict) and isinstance(entry.get("name"), str)):
          raise InputError(f"{path} line {number}: found no object with a name, expected what infer.py wrote there")
        if entry is not None:
          done[entry["name"]] = entry
    return done

  def close(self) -> None:
    self._file.close()

  def __enter__(self) -> Progress:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


def _end_line(file: Any) -> None:
  """Ends what a kill has left unended, so that the next line stands for itself."""
  if file.seek(0, os.SEEK_END):
    file.seek(-1, os.SEEK_END)
    if file.read(1) != b"\n":
      file.write(b"\n")


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
  if not path.exists():
    return
  try:
    before = json.loads(path.read_bytes())
  except ValueError as error:
    raise InputError(f"{path}: found no JSON ({error}), expected the settings of the run to resume") from error
  if not isinstance(before, dict):
    raise InputError(f"{path}: found {type(before).__name__}, expected the settings of the run to resume")
  for key in {**before, **settings}:
    if before.get(key) != settings.get(key):
      raise InputError(
        f"--{key}: found {settings.get(key)}, expected {before.get(key)} as in the run that {path} describes; leave "
        "out --resume to begin anew"
      )
