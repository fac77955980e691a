"""Runs a benchmark in parts, so that several processes can share it and a stopped one can resume.

In: a benchmark. Out: a folder of results. A part is the work that one process does at once: its share of a fold, or a
video. A finished part leaves OUT/parts/NAME.json with integer counts that add up exactly, and perhaps a picture.
Finished parts are not run again. A process that finds all parts finished at its end writes OUT/results.json,
OUT/results.md and OUT/examples.png; the files are the same, whichever process writes them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from seggpt_jax.data import ledger
from seggpt_jax.evaluation import tables
from seggpt_jax.files import expand, writing
from seggpt_jax.inference import outputs, pictures
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.run_ledger import Shard
from seggpt_jax.written import check_outputs, open_record

_MAX_STRIPS = 8  # pictures of parts in examples.png


class Finished(NamedTuple):
  """The result of a part.

  Attributes:
    values: JSON values.
    strip: a picture, of the same width for all parts; None if the part has none.
  """

  values: dict[str, Any]
  strip: UInt8[np.ndarray, "h w 3"] | None


@runtime_checkable
class Benchmark(Protocol):
  """A benchmark that can be run in parts.

  Attributes:
    name: name on the command line.
    settings: everything that the numbers depend on, as JSON values.
  """

  name: str
  settings: Mapping[str, Any]

  def parts(self, shard: Shard) -> list[str]:
    """Returns the names of a shard's parts."""
    ...

  def run(self, predictor: Predictor, part: str, outdir: Path) -> Finished:
    """Runs a part.

    Args:
      predictor: the network.
      part: name of the part.
      outdir: folder of the results.

    Raises:
      InputError: a file of the dataset cannot be read, or a result cannot be written.
    """
    ...

  def results(self, finished: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Computes the numbers of the benchmark.

    Args:
      finished: the values of all parts, by name.

    Returns:
      JSON values, and under the key `table` a `tables.Table`.
    """
    ...


def run(
  benchmark: Benchmark, load: Callable[[], Predictor], outdir: Path, shard: Shard | None = None
) -> dict[str, Any] | None:
  """Runs the unfinished parts of a shard, then writes the results if all parts of all shards are finished.

  Args:
    benchmark: the benchmark.
    load: returns the network; called only if a part is unfinished.
    outdir: folder of the results, created if missing.
    shard: the parts of this process; all parts by default.

  Returns:
    The content of results.json; None if parts of other processes are unfinished.

  Raises:
    InputError: a finished part has other settings, a file of the dataset cannot be read, or a result cannot be written.
  """
  outdir, shard = Path(expand(outdir)), shard or Shard()
  folder = outdir / "parts"
  # Reports a folder that cannot be created before the work, not after it.
  check_outputs([outdir / "results.md", outdir / "results.json", outdir / "examples.png"])
  with writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
    open_record(outdir)
  unfinished = [name for name in benchmark.parts(shard) if _read_part(benchmark, folder, name) is None]
  predictor = load() if unfinished else None
  for name in unfinished:
    values, strip = benchmark.run(predictor, name, outdir)
    if strip is not None:
      pictures.write_png(folder / f"{name}.png", strip)
    # Written last, because this file marks the part as finished.
    ledger.write_note(folder / f"{name}.json", {"settings": dict(benchmark.settings), **values})
  # Shards take turns, so taking turns again restores the order of the list of videos.
  rounds = itertools.zip_longest(*(benchmark.parts(each) for each in shard.all()))
  return _finish(benchmark, outdir, [name for turn in rounds for name in turn if name is not None])


def _finish(benchmark: Benchmark, outdir: Path, names: Sequence[str]) -> dict[str, Any] | None:
  """Writes the results if all parts are finished."""
  finished = {name: _read_part(benchmark, outdir / "parts", name) for name in names}
  if None in finished.values():
    return None
  results = benchmark.results(finished)
  table = results.pop("table")
  results = {"benchmark": benchmark.name, "settings": dict(benchmark.settings), **results}
  strips = [path for name in names if (path := outdir / "parts" / f"{name}.png").exists()][:_MAX_STRIPS]
  if strips:
    pictures.write_png(outdir / "examples.png", np.concatenate([np.asarray(Image.open(path)) for path in strips]))
  outputs.write_text(outdir / "results.md", tables.markdown(table))
  outputs.write_json(outdir / "results.json", results)
  return results


def _read_part(benchmark: Benchmark, folder: Path, name: str) -> dict[str, Any] | None:
  """Returns the values of a finished part; None if it is not finished.

  Raises:
    InputError: the part was run with other settings, or its file cannot be read.
  """
  path = folder / f"{name}.json"
  values = ledger.read_note(path)
  if values is not None:
    ledger.check_settings(path, values.pop("settings", {}), benchmark.settings, "choose another --outdir")
  return values
