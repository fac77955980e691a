"""Runs a public benchmark and prints the results next to the published results.

  seggpt evaluate --benchmark pascal5i --model-path weights/vit_large --data-dir VOCdevkit --shots 1 --outdir out

Writes out/results.md, out/results.json and out/examples.png. Rerun the same command to resume: finished parts are in
out/parts. With --shard I/N, N processes that write to one folder share the work, and the last one writes the table.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from seggpt_jax.cli.data_flags import define_path
from seggpt_jax.cli.runner import flag_name, is_given
from seggpt_jax.compilation import keep_programs
from seggpt_jax.errors import InputError
from seggpt_jax.evaluation import parts
from seggpt_jax.evaluation.davis import Davis
from seggpt_jax.evaluation.few_shot import FewShot
from seggpt_jax.evaluation.few_shot_data import BENCHMARKS, read_benchmark
from seggpt_jax.inference.options import MOST_SPLITS
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.run_ledger import Shard
from seggpt_jax.model.weights import find_weights

_DAVIS = "davis2017"

# The benchmarks that a flag has an effect on.
_APPLIES = {
  "fold": tuple(name for name, each in BENCHMARKS.items() if each.folds),
  "shots": tuple(BENCHMARKS),
  "seed": tuple(BENCHMARKS),
  "episodes": tuple(BENCHMARKS),
  "lists": tuple(name for name, each in BENCHMARKS.items() if each.lists is not None),
  "num_frames": (_DAVIS,),
}


def define_flags() -> dict[str, list[flags.FlagHolder]]:
  """Defines the flags of the command."""
  return {
    "Benchmark": [
      flags.DEFINE_enum("benchmark", None, [*BENCHMARKS, _DAVIS], "Benchmark to run.", required=True),
      define_path("model_path", "Weights or a training run, packaged name (small) or hf://OWNER/NAME.", required=True),
      define_path("data_dir", "Folder of the dataset as it is unpacked.", required=True),
      define_path("outdir", "Folder for the results.", required=True),
      flags.DEFINE_string("shard", "1/1", "I/N: do only the I-th of N shares of the work."),
      flags.DEFINE_integer("split", 1, "Cut queries and prompts into N x N tiles.", 1, MOST_SPLITS),
    ],
    "Few-shot benchmarks": [
      flags.DEFINE_list("fold", None, "Folds to run, such as 0,2; all by default."),
      flags.DEFINE_integer("shots", 1, "Number of prompts for each query.", 1, 1000),
      flags.DEFINE_integer("seed", 0, "Seed of the episodes.", 0, 2**32 - 1),
      flags.DEFINE_integer(
        "episodes", None, "Number of episodes of each fold, evenly spread, for a quick look; all by default.", 1, 10**7
      ),
      define_path(
        "lists", "The published choice: a folder with fold0.txt, fold1.txt, ..., or with fss1000 a file of classes."
      ),
    ],
    "Video benchmark": [
      flags.DEFINE_integer(
        "num_frames",
        0,
        "With davis2017: number of recent predictions that are prompts in addition to the first frame.",
        0,
        1000,
      )
    ],
  }


def main() -> None:
  """Runs the benchmark that the flags name."""
  keep_programs()
  values = flags.FLAGS
  for name, benchmarks in _APPLIES.items():
    if is_given(name) and values.benchmark not in benchmarks:
      raise InputError(f"{flag_name(name)} cannot be combined with {values.benchmark}; for {', '.join(benchmarks)}")
  shard = Shard.parse(values.shard)
  model = str(find_weights(values.model_path).absolute())
  if values.benchmark == _DAVIS:
    benchmark = Davis(values.data_dir, model=model, num_frames=values.num_frames, split=values.split)
  else:
    benchmark = _few_shot(model)
  outdir = Path(values.outdir)
  results = parts.run(benchmark, lambda: Predictor.from_checkpoint(values.model_path), outdir, shard)
  if results is None:
    print(f"{shard} is done; the last of {shard.count} writes the table to {outdir}")
  else:
    print((outdir / "results.md").read_text("utf-8"))
    print(f"written: {outdir}")


def _few_shot(model: str) -> FewShot:
  values = flags.FLAGS
  benchmark = BENCHMARKS[values.benchmark]
  # Checked before the labels are read, which may take minutes.
  known = [str(fold) for fold in range(len(benchmark.folds))]
  if values.fold is not None and not (values.fold and set(values.fold) <= set(known)):
    raise InputError(f"--fold: found {','.join(values.fold)!r}, expected some of {','.join(known)}")
  cache = Path(values.outdir) / "parts" / "classes.npz"
  data = read_benchmark(values.benchmark, values.data_dir, values.lists, cache)
  folds = None if values.fold is None else [int(fold) for fold in values.fold]
  options = {name: values[name].value for name in ("shots", "seed", "split")}
  return FewShot(values.benchmark, data, model=model, folds=folds, count=values.episodes, **options)
