"""A benchmark in parts, so that many processes share it and a killed one goes on.

In: a benchmark. Out: a folder of results. A part is what one process does in one piece: its share of a fold, or a
video. It ends in OUT/parts/NAME.json, whole numbers that add up exactly, and perhaps a picture beside it. A part that
is there is not done again. Whoever finds all parts there, after its own, makes of them OUT/results.json, OUT/results.md
and OUT/examples.png: the same, whoever it is.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from seggpt_jax.errors import InputError
from seggpt_jax.evaluation import tables
from seggpt_jax.files import writing
from seggpt_jax.inference import outputs
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.shard import Shard

_MOST_STRIPS = 8  # parts whose picture goes into examples.png


class Finished(NamedTuple):
  """What comes of a part: plain values, and a picture if it has one; pictures of all parts are equally wide."""

  values: dict[str, Any]
  strip: UInt8[np.ndarray, "h w 3"] | None


@runtime_checkable
class Benchmark(Protocol):
  """What can be run in parts.

  Attributes:
    name: as on the command line.
    settings: all that the numbers depend on, as plain values.
  """

  name: str
  settings: Mapping[str, Any]

  def parts(self, shard: Shard) -> list[str]:
    """The names of the parts that are a shard's."""
    ...

  def run(self, predictor: Predictor, part: str, outdir: Path) -> Finished:
    """Does a part.

    Raises:
      InputError: a file of the dataset cannot be read, or one of the results cannot be written.
    """
    ...

  def results(self, finished: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers, from the values of all parts by name; with a key `table`, a `tables.Table`."""
    ...


def run(
  benchmark: Benchmark, load: Callable[[], Predictor], outdir: Path, shard: Shard | None = None
) -> dict[str, Any] | None:
  """Does the parts of a shard that are not there yet, and the results if that makes all of them.

  Args:
    benchmark: what is measured.
    load: gives the network; is asked only if there is something to do.
    outdir: folder of the results; is made where it is missing.
    shard: which parts.

  Returns:
    What results.json holds; None if parts of other processes are missing.

  Raises:
    InputError: a part in the folder is of other settings, or as of `Benchmark.run`.
  """
  folder, shard = outdir / "parts", shard or Shard()
  # A folder that cannot be made is better known before the work than after.
  with writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
  missing = [name for name in benchmark.parts(shard) if _stored(benchmark, folder, name) is None]
  predictor = load() if missing else None
  for name in missing:
    values, strip = benchmark.run(predictor, name, outdir)
    if strip is not None:
      outputs.write_png(folder / f"{name}.png", strip)
    # The last to appear, for it says that the part is done.
    outputs.write_json(folder / f"{name}.json", {"settings": dict(benchmark.settings), **values})
  # Dealt out in turn, and so gathered: videos come in the order of their list.
  rounds = itertools.zip_longest(*(benchmark.parts(each) for each in shard.all()))
  return _finish(benchmark, outdir, [name for turn in rounds for name in turn if name is not None])


def _finish(benchmark: Benchmark, outdir: Path, names: Sequence[str]) -> dict[str, Any] | None:
  """Writes the results if all parts are there."""
  finished = {name: _stored(benchmark, outdir / "parts", name) for name in names}
  if None in finished.values():
    return None
  results = benchmark.results(finished)
  table = results.pop("table")
  results = {"benchmark": benchmark.name, "settings": dict(benchmark.settings), **results}
  strips = [path for name in names if (path := outdir / "parts" / f"{name}.png").exists()][:_MOST_STRIPS]
  if strips:
    outputs.write_png(outdir / "examples.png", np.concatenate([np.asarray(Image.open(path)) for path in strips]))
  outputs.write_text(outdir / "results.md", tables.markdown(table))
  outputs.write_json(outdir / "results.json", results)
  return results


def _stored(benchmark: Benchmark, folder: Path, name: str) -> dict[str, Any] | None:
  """What a part said when it was done, if it is.

  Raises:
    InputError: it was done with other settings, or cannot be read.
  """
  path = folder / f"{name}.json"
  try:
    values = json.loads(path.read_text())
    settings = values.pop("settings")
  except FileNotFoundError:
    return None
  except (OSError, ValueError, KeyError, AttributeError) as error:
    raise InputError(f"{path}: cannot be read ({error}), expected a part of a run; delete it") from error
  for key in {**benchmark.settings, **settings}:
    found, expected = settings.get(key), benchmark.settings.get(key)
    if found != expected:
      raise InputError(f"{path}: found {key} {found}, expected {expected} as now; choose another --outdir")
  return values
