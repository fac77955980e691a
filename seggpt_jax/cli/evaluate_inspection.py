r"""Judges a network as an inspection line would: defects that are caught, and good parts that are left alone.

  seggpt evaluate-inspection --model-path weights/vit_large --dataset-dir boards \
    --prompt-img-dir prompts/images --prompt-label-dir prompts/labels \
    --mapping positive.json --negative-mapping negative.json --outdir OUT

In: images with labels, and prompts of classes that an image shows (positive) and does not show (negative). Out: a
table, OUT/inspection.json with all numbers, and OUT/report.html with pictures, the worst first.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from absl import flags

from seggpt_jax.cli import inference_flags
from seggpt_jax.cli.data_flags import define_label_flags, define_path
from seggpt_jax.compilation import keep_programs
from seggpt_jax.errors import InputError, naming
from seggpt_jax.evaluation import inspection_report
from seggpt_jax.files import writing
from seggpt_jax.inference import outputs
from seggpt_jax.inference.queries import files_of, list_queries
from seggpt_jax.metrics.inspection import Thresholds
from seggpt_jax.written import check_outputs

_RECORDED = (
  *("model_path", "adapter", "dataset_dir", "mapping", "negative_mapping", "top_k", "thresholds"),
  *inference_flags.JUDGED,
)


def define_flags() -> dict[str, list[flags.FlagHolder]]:
  """Defines the flags of the command."""
  return {
    "Network and results": [
      define_path("model_path", "Weights or a training run, packaged name (small) or hf://OWNER/NAME.", required=True),
      define_path("adapter", "Training run that learned a LoRA for these weights."),
      define_path("outdir", "Folder for inspection.json and report.html.", required=True),
    ],
    "Images and prompts": [
      define_path("dataset_dir", "Folder with images/ and labels/.", required=True),
      define_path("prompt_img_dir", "Images of the prompts.", required=True),
      define_path("prompt_label_dir", "Label maps of the prompts.", required=True),
      define_path(
        "mapping",
        "JSON file {image: [prompt files, best first]} of prompts that show what the image shows. By default the first "
        "prompts by name.",
      ),
      define_path("negative_mapping", "The same with prompts that show what it does not show, for the yield rate."),
      flags.DEFINE_integer("top_k", 1, "Largest number of prompts for each image.", 1, 1000),
    ],
    "Scores": [
      flags.DEFINE_list(
        "thresholds",
        [str(value) for value in dataclasses.astuple(Thresholds())],
        "Smallest IoU of a catch; response rate below which a yield is correct; weight of catches in PES; all 0 to 1.",
      )
    ],
    **inference_flags.define_option_flags(inference_flags.JUDGED),
    **define_label_flags("as in training, else index"),
  }


def main() -> None:
  """Judges the network that the flags name."""
  keep_programs()
  values = flags.FLAGS
  numbers = inference_flags.numbers("thresholds", values.thresholds, float, "three numbers such as 0.3,0.000239,0.5")
  if len(numbers) != 3:
    raise InputError(f"--thresholds: found {','.join(values.thresholds)}, expected three numbers")
  with naming("--thresholds"):
    thresholds = Thresholds(*numbers)
  network = inference_flags.network_from_flags()
  if network.has_learned_prompt:
    raise InputError("--adapter: found a learned prompt, expected a LoRA: an inspection is prompted by images")
  labels = inference_flags.trained_label_format(network.run)
  options = inference_flags.options_from_flags(network.run, labels)
  list_mapped = functools.partial(
    *(list_queries, values.dataset_dir, values.prompt_img_dir, values.prompt_label_dir),
    **{"top_k": values.top_k, "mapped_only": True, "apart": (values.outdir,)},
  )
  positives = list_mapped(values.mapping)
  negatives = list_mapped(values.negative_mapping) if values.negative_mapping else []
  outdir = Path(values.outdir)
  reports = [outdir / name for name in ("inspection.json", "report.html")]
  check_outputs(reports, files_of([*positives, *negatives]))
  with writing(outdir):
    outdir.mkdir(parents=True, exist_ok=True)
  for path in reports:
    outputs.remove(path)
  results = inspection_report.inspect(
    network.load(), positives, negatives, thresholds=thresholds, options=options, labels=labels
  )
  arguments = {name.replace("_", "-"): values[name].value for name in _RECORDED} | {"labels": str(labels)}
  inspection_report.write(results, outdir, arguments, f"Inspection of {values.dataset_dir}")
  for name, words in results.summary().items():
    print(f"{name:<11}{words}")
  print(f"written: {outdir}/report.html, {outdir}/inspection.json")
