"""Runs a benchmark of the field and puts the numbers beside the published ones.

  python evaluate.py --benchmark pascal5i --model-path weights/vit_large --data-dir VOCdevkit --shots 1 --outdir out

Writes out/results.md, out/results.json and out/examples.png. Parts that are done, in out/parts, are not done again;
with --shard i/n, n processes that write to one folder share the work, and the last one makes the table.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from seggpt_jax.compilation import keep_programs
from seggpt_jax.errors import InputError, run_main
from seggpt_jax.evaluation import few_shot_data, parts
from seggpt_jax.evaluation.davis import Davis
from seggpt_jax.evaluation.few_shot import FewShot
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.shard import Shard
from seggpt_jax.model.weights import find_weights

_FEW_SHOT, _DAVIS = ("fss1000", "pascal5i", "coco20i"), "davis2017"

_BENCHMARK = flags.DEFINE_enum("benchmark", None, [*_FEW_SHOT, _DAVIS], "What to measure.", required=True)
_MODEL_PATH = flags.DEFINE_string(
  "model-path", None, "Weights of convert_torch_weights.py, or a run of train.py.", required=True
)
_DATA_DIR = flags.DEFINE_string(
  "data-dir", None, "The dataset, as it is unpacked: see docs/evaluation.md.", required=True
)
_OUTDIR = flags.DEFINE_string("outdir", None, "Folder of the results.", required=True)
_SHARD = flags.DEFINE_string("shard", "1/1", "i/n: does the i-th of n shares of the work.")
_SPLIT = flags.DEFINE_integer("split", 1, "Cuts queries and prompts into n x n tiles.", lower_bound=1)
_FOLD = flags.DEFINE_list("fold", None, "Of pascal5i and coco20i: some of 0,1,2,3; all by default.")
_SHOTS = flags.DEFINE_integer("shots", 1, "Few-shot: prompts of each query.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Few-shot: of the episodes.", 0, 2**32 - 1)
_EPISODES = flags.DEFINE_integer(
  "episodes", None, "Few-shot: only so many of each fold, evenly spread, for a quick look.", lower_bound=1
)
_CLASSES = flags.DEFINE_string("classes", None, "fss1000: a file with a class in each line; all folders by default.")
_LISTS = flags.DEFINE_string("lists", None, "pascal5i: a folder with the published fold0.txt .. fold3.txt.")
_NUM_FRAMES = flags.DEFINE_integer(
  "num-frames", 0, "davis2017: so many recent predictions are prompts beside the first frame.", lower_bound=0
)

_ONLY = {
  "fold": ("pascal5i", "coco20i"),
  "shots": _FEW_SHOT,
  "seed": _FEW_SHOT,
  "episodes": _FEW_SHOT,
  "classes": ("fss1000",),
  "lists": ("pascal5i",),
  "num-frames": (_DAVIS,),
}

for _name in [name for name in flags.FLAGS if "-" in name]:  # absl's habit is underscores: both are understood
  flags.DEFINE_alias(_name.replace("-", "_"), _name)


def _few_shot(model: str) -> FewShot:
  name, directory = _BENCHMARK.value, _DATA_DIR.value
  # Before the labels are read, which may take minutes.
  if _FOLD.value is not None and not (
    _FOLD.value and set(_FOLD.value) <= set(map(str, range(few_shot_data.NUM_FOLDS)))
  ):
    raise InputError(f"--fold: found {','.join(_FOLD.value)!r}, expected some of 0,1,2,3")
  if name == "fss1000":
    data = few_shot_data.fss1000(directory, _CLASSES.value)
  elif name == "pascal5i":
    data = few_shot_data.pascal5i(directory, _LISTS.value)
  else:
    data = few_shot_data.coco20i(directory, Path(_OUTDIR.value) / "parts" / "classes.npz")
  return FewShot(
    name,
    data,
    model=model,
    folds=None if _FOLD.value is None else [int(fold) for fold in _FOLD.value],
    shots=_SHOTS.value,
    seed=_SEED.value,
    count=_EPISODES.value,
    split=_SPLIT.value,
  )


def main(argv: list[str]) -> None:
  keep_programs()
  if len(argv) > 1:
    raise InputError(f"found argument {argv[1]!r}, expected only flags (--help explains)")
  for name in ("model-path", "data-dir", "outdir", "classes", "lists"):
    if flags.FLAGS[name].value == "":
      raise InputError(f"--{name}: found an empty value, expected a path")
  for name, benchmarks in _ONLY.items():
    if flags.FLAGS[name].present and _BENCHMARK.value not in benchmarks:
      raise InputError(f"--{name}: found with {_BENCHMARK.value}, expected only with {', '.join(benchmarks)}")
  shard = Shard.parse(_SHARD.value)
  model = str(find_weights(_MODEL_PATH.value).absolute())
  if _BENCHMARK.value == _DAVIS:
    benchmark = Davis(_DATA_DIR.value, model=model, num_frames=_NUM_FRAMES.value, split=_SPLIT.value)
  else:
    benchmark = _few_shot(model)
  outdir = Path(_OUTDIR.value)
  results = parts.run(benchmark, lambda: Predictor.from_checkpoint(_MODEL_PATH.value), outdir, shard)
  if results is None:
    print(f"{shard} is done; the last of {shard.count} writes the table to {outdir}")
  else:
    print((outdir / "results.md").read_text())
    print(f"written: {outdir}")


if __name__ == "__main__":
  run_main(main)
