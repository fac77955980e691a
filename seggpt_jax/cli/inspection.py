"""Judges a network as an inspection line would: defects that are caught, and good parts that are left alone.

  python -m seggpt_jax.evaluation.inspection --model-path weights/vit_large --dataset-dir boards \\
    --prompt-img-dir prompts/images --prompt-label-dir prompts/labels --mapping positive.json \\
    --negative-mapping negative.json --outdir OUT

In: images with labels, and prompts of classes that an image shows (positive) and does not show (negative). Out: a
table, OUT/inspection.json with all numbers, and OUT/report.html with pictures, the worst first.
"""

from __future__ import annotations

from absl import flags

from seggpt_jax.cli import inference_flags as command_flags
from seggpt_jax.compilation import keep_programs
from seggpt_jax.errors import InputError, run_main
from seggpt_jax.evaluation import inspection
from seggpt_jax.metrics.inspection import Thresholds


def _command(argv: list[str]) -> None:
  keep_programs()
  if len(argv) > 1:
    raise InputError(f"found argument {argv[1]!r}, expected only flags (--help explains)")
  values = flags.FLAGS
  labels = command_flags.label_format_from_flags(values.adapter or values["model-path"].value)
  names = ("model-path", "adapter", "dataset-dir", "mapping", "negative-mapping", "top-k", *command_flags.APPROACH)
  inspection.run(
    values["model-path"].value,
    values["dataset-dir"].value,
    values["prompt-img-dir"].value,
    values["prompt-label-dir"].value,
    values.outdir,
    mapping=values.mapping,
    negative_mapping=values["negative-mapping"].value,
    adapter=values.adapter,
    top_k=values["top-k"].value,
    thresholds=Thresholds(values["catch-iou"].value, values["yield-response"].value, values["catch-weight"].value),
    num_rows=values.rows,
    options=command_flags.approach_from_flags(),
    labels=labels,
    arguments={name: values[name].value for name in names} | {"labels": str(labels)},
  )


def _define_flags() -> None:
  flags.DEFINE_string("model-path", None, "Weights directory, training run, or packaged name.", required=True)
  flags.DEFINE_string("adapter", None, "Training run of a LoRA for the weights.")
  flags.DEFINE_string("dataset-dir", None, "A folder with images/ and labels/.", required=True)
  flags.DEFINE_string("prompt-img-dir", None, "Images of the prompts.", required=True)
  flags.DEFINE_string("prompt-label-dir", None, "Label maps of the prompts.", required=True)
  flags.DEFINE_string(
    "mapping",
    None,
    "JSON file {image: [prompt files, best first]} of prompts that show what the image shows; without it the first "
    "prompts by name serve all images.",
  )
  flags.DEFINE_string(
    "negative-mapping", None, "The same of prompts that show what the image does not show, for the yield rate."
  )
  flags.DEFINE_string("outdir", None, "Folder for inspection.json and report.html.", required=True)
  flags.DEFINE_integer("top-k", 1, "Maximum number of prompts per image.", 1)
  flags.DEFINE_float("catch-iou", Thresholds.catch_iou, "Minimum IoU of a catch, 0 to 1.")
  flags.DEFINE_float("yield-response", Thresholds.yield_response, "Response rate below which a yield is correct.")
  flags.DEFINE_float("catch-weight", Thresholds.catch_weight, "Weight of the catch rate in PES, 0 to 1.")
  flags.DEFINE_integer("rows", 50, "Number of worst images with pictures in each part of the report.", 0)
  command_flags.define_approach_flags()
  command_flags.define_label_flags()
  command_flags.define_aliases()
  flags.adopt_module_key_flags(command_flags)  # for --help


if __name__ == "__main__":
  _define_flags()
  run_main(_command)
