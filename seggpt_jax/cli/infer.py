r"""Segments images and videos by example.

A folder of images, with prompts from another folder:

  seggpt infer --model-path weights/vit_large --prompt-img-dir prompts/images --prompt-label-dir prompts/labels \
    --dataset-dir photos --top-k 5 --outdir out

One image, or several separated by commas:

  seggpt infer --model-path weights/vit_large --image query.jpg --prompt-image prompt.jpg \
    --prompt-label prompt_label.png --outdir out

A video, with the label map of its first frame:

  seggpt infer --model-path weights/vit_large --video street.mp4 --prompt-label first.png --outdir out

Writes out/label (class indices), out/color, out/concat (pictures to look at), out/summary.txt, and out/metrics.json
if the dataset has labels; for a video out/street.mp4 and out/label/street. --save=coco, labelme or yolo writes objects
with polygons for labeling tools. Images and labels are paired by their file names without the ending.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from seggpt_jax.cli import data_flags, inference_flags
from seggpt_jax.cli.data_flags import define_path, define_paths
from seggpt_jax.cli.prompt_flags import FILE_PROMPTS, FOLDER_PROMPTS, define_prompt_flags, drop_prompts, find_queries
from seggpt_jax.cli.runner import flag_name, is_given, naming_flags
from seggpt_jax.compilation import keep_programs
from seggpt_jax.data.bad_files import LIST_FILE, BadFiles
from seggpt_jax.errors import InputError
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.inference import annotation_files, batch, instances, outputs, queries, scores, video
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.run_ledger import Shard
from seggpt_jax.inference.scores import own_prompts_line, uses_lines
from seggpt_jax.inference.trained import earlier_uses

_ANNOTATIONS = ("class_names", "polygon_tolerance")
_IMAGES_ONLY = (*_ANNOTATIONS, "skip_bad", "resume", "shard")
_OF_VIDEOS = ("label", "overlay")
# A resumed run must have these in common with the run that was stopped.
_SETTINGS = (
  *("model_path", "adapter", "dataset_dir", "image", *FOLDER_PROMPTS, *FILE_PROMPTS, "save", *_ANNOTATIONS),
  *inference_flags.OPTION_NAMES,
  *data_flags.NAMES,
)


def define_flags() -> dict[str, list[flags.FlagHolder]]:
  """Defines the flags of the command."""
  return {
    "Network and results": [
      define_path("model_path", "Weights or a training run, packaged name (small) or hf://OWNER/NAME.", required=True),
      define_path("adapter", "Training run that learned a LoRA or a prompt for these weights."),
      define_path("outdir", "Folder for the results.", required=True),
    ],
    "What to segment (one of these)": [
      define_path("dataset_dir", "Folder with images/ and perhaps labels/, or a folder of images; with folders in it."),
      define_paths("image", "One image, or several separated by commas."),
      define_path("video", "A video, or a folder of its frames."),
    ],
    "Prompts from folders": define_prompt_flags(),
    "Prompts one by one": [
      define_paths("prompt_image", "Prompts for every query, separated by commas; for a video its first frame."),
      define_paths("prompt_label", "Label map of each prompt image, or of the first frame of the video."),
    ],
    **inference_flags.define_option_flags(),
    **data_flags.define_label_flags("as in training, else index"),
    "Output": [
      flags.DEFINE_list(
        "save",
        list(outputs.DEFAULT_KINDS),
        f"Any of {', '.join(outputs.KINDS)}. For a video overlay, or by default label,overlay.",
      ),
      flags.DEFINE_list(
        "class_names",
        [],
        "Names of classes 1, 2, ... for coco, labelme and yolo. By default as in training, else class_1.",
      ),
      flags.DEFINE_float(
        "polygon_tolerance",
        None,
        "Pixels by which polygons of coco, labelme and yolo may leave the edges of objects; less for small and thin "
        f"ones. By default {instances.TOLERANCE:g}.",
      ),
      flags.DEFINE_bool("skip_bad", False, "Skip queries with missing or unreadable files, and list them."),
      flags.DEFINE_bool("resume", False, "Continue a run that was stopped; its settings must be the same."),
      flags.DEFINE_string("shard", "1/1", "I/N: do only the I-th of N shares of the work."),
    ],
    "Videos": [
      flags.DEFINE_integer("num_frames", 0, "Number of recent frames that also prompt the next frame.", 0, 1000)
    ],
  }


def main() -> None:
  """Segments what the flags name."""
  keep_programs()
  values = flags.FLAGS
  network = inference_flags.network_from_flags()
  if network.has_head:
    drop_prompts()
    if values.video:
      raise InputError(f"--model-path: found the trained head {network.run}, expected another network with --video")
  _check_flags(network)
  labels = inference_flags.trained_label_format(network.run)
  options = inference_flags.options_from_flags(network.run, labels)
  shard = Shard.parse(values.shard)
  if values.video:
    _segment_video(network, options, labels)
    return
  settings = {name.replace("_", "-"): values[name].value for name in _SETTINGS if values[name].value not in (None, [])}
  if options.sensitivity or options.least_area:
    # What the run was calibrated to, not "auto": a run that is resumed must not mix two operating points.
    settings |= {"sensitivity": list(options.sensitivity), "least-area": options.least_area}
  bad = BadFiles() if values.skip_bad else None
  found = _find_queries(network, bad, options, labels)
  outcome = batch.run(
    *(network.load(), found, values.outdir),
    **{"options": options, "labels": labels, "kinds": values.save, "bad": bad},
    **{"resume": values.resume, "shard": shard, "settings": settings},
    annotation_options=_annotation_options(found, labels, network.run),
    also_read=[values.mapping] if values.mapping else [],
  )
  _report(outcome)
  if outcome.metrics:
    uses = earlier_uses(network.run, {query.name: query.image for query in found})
    for line in uses_lines(uses, outcome.metrics["per_image"]):
      print(line)


def _check_flags(network: inference_flags.Network) -> None:
  """Raises InputError for missing flags, and for flags that would have no effect together with the others."""
  values = flags.FLAGS
  found = [flag_name(name) for name in ("dataset_dir", "image", "video") if values[name].value]
  if len(found) != 1:
    raise InputError(f"--dataset-dir, --image, --video: found {' and '.join(found) or 'none of them'}, expected one")
  if values.video:
    _refuse(_IMAGES_ONLY, "cannot be combined with --video")
    if is_given("save") and not {"overlay"} <= set(values.save) <= set(_OF_VIDEOS):
      raise InputError(f"--save: found {','.join(values.save)}, expected overlay or label,overlay with --video")
  else:
    _refuse(["num_frames"], "cannot be combined with images; give --video")
    outputs.check_kinds(values.save)
    if not set(values.save) & set(outputs.ANNOTATION_KINDS):
      _refuse(_ANNOTATIONS, f"cannot be combined with --save={','.join(values.save)}; add coco, labelme or yolo")
  if network.has_learned_prompt or network.has_head:
    _refuse((*FOLDER_PROMPTS, *FILE_PROMPTS), "cannot be combined with a learned prompt, which serves every query")
  elif values.video or is_given("prompt_image"):
    _refuse(FOLDER_PROMPTS, f"cannot be combined with {'--video' if values.video else '--prompt-image'}")
    _demand("prompt_label")
  elif is_given("prompt_label"):
    raise InputError("--prompt-image: missing, expected an image for each --prompt-label")
  else:
    _demand("prompt_img_dir")
    _demand("prompt_label_dir")


def _refuse(names: Sequence[str], why: str) -> None:
  for name in names:
    if is_given(name):
      raise InputError(f"{flag_name(name)} {why}")


def _demand(name: str) -> None:
  if not flags.FLAGS[name].value:
    raise InputError(f"{flag_name(name)}: missing (--help)")


def _find_queries(
  network: inference_flags.Network, bad: BadFiles | None, options: InferenceOptions, labels: LabelFormat
) -> list[queries.Query]:
  """Returns the images to segment with their prompts."""
  values = flags.FLAGS
  images, apart = values.dataset_dir or values.image, (values.outdir,)
  if network.has_learned_prompt:
    return queries.list_queries(images, bad=bad, apart=apart)
  if prompts := queries.given_prompts(values.prompt_image, values.prompt_label):
    return queries.list_queries(images, bad=bad, prompts=prompts, apart=apart)
  return find_queries(network.weights, images, options, labels, bad, apart)


def _annotation_options(
  found: Sequence[queries.Query], labels: LabelFormat, run: str
) -> annotation_files.AnnotationOptions:
  """Returns names of classes and tolerance of polygons, if annotations will be written."""
  values = flags.FLAGS
  if not set(values.save) & set(outputs.ANNOTATION_KINDS):
    return annotation_files.AnnotationOptions()
  prompts = {prompt.labels for query in found for prompt in query.prompts}
  tolerance = instances.TOLERANCE if values.polygon_tolerance is None else values.polygon_tolerance
  root = Path(values.dataset_dir) if values.dataset_dir else None
  with naming_flags():
    names = annotation_files.class_names(values.class_names, run, prompts, labels)
    return annotation_files.AnnotationOptions(names, tolerance, root)


def _segment_video(network: inference_flags.Network, options: InferenceOptions, labels: LabelFormat) -> None:
  values = flags.FLAGS
  target = video.run_video(
    *(network.load(), values.video, values.outdir),
    **{"prompt_images": values.prompt_image, "prompt_labels": values.prompt_label, "num_frames": values.num_frames},
    **{"options": options, "labels": labels, "save_frames": not is_given("save") or "label" in values.save},
  )
  print(f"written: {target}")


def _report(outcome: batch.Outcome) -> None:
  """Prints what a run of images has come to."""
  outdir = flags.FLAGS.outdir
  if outcome.before:
    print(f"resumed: {outcome.before} images were done, {outcome.done} are done now")
  if outcome.own_prompts:
    print(own_prompts_line(outcome.own_prompts))
  if outcome.metrics:
    print(scores.report(outcome.metrics))
    if "stitched" in outcome.metrics:
      print(f"with the seams predicted again: {scores.report(outcome.metrics['stitched'])}")
  if outcome.bad:
    where = f"{outdir}/{LIST_FILE}" if not outcome.left else f"{LIST_FILE} of the last process"
    print(f"passed over {len(outcome.bad)} images, the first: {next(iter(outcome.bad))}; all are listed in {where}")
  if outcome.left:
    print(f"{outcome.left} images are left to other processes; the last one writes metrics.json")
  print(f"written: {outdir}")
