"""Segments images and videos by example.

A folder of images, with prompts from another:

  python infer.py --model-path weights/vit_large --prompt-img-dir prompts/images --prompt-label-dir prompts/labels \\
    --dataset-dir photos --top-k 5 --outdir out

One image, or several with commas between them:

  python infer.py --model-path weights/vit_large --image query.jpg --prompt-image prompt.jpg \\
    --prompt-label prompt_label.png --outdir out

A video, here by the label map of its first frame:

  python infer.py --model-path weights/vit_large --video street.mp4 --prompt-label first.png --outdir out

Writes out/label (class indices), out/color, out/concat (pictures to look at), out/summary.txt, and out/metrics.json
where the dataset has labels; of a video out/street.mp4 and out/label/street. Files belong together by their name
without ending.
"""

from __future__ import annotations

from absl import flags

from seggpt_jax.cli import inference_flags as command_flags
from seggpt_jax.compilation import keep_programs
from seggpt_jax.data.labels import LabelFormat
from seggpt_jax.errors import InputError, run_main
from seggpt_jax.inference import batch, outputs, queries, scores, video
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.shard import Shard
from seggpt_jax.model.adapter_files import StoredAdapter, load_adapter
from seggpt_jax.model.adapters import LearnedPrompt

_MODEL_PATH = flags.DEFINE_string(
  "model-path", None, "Weights of convert_torch_weights.py, or a run of train.py.", required=True
)
_ADAPTER = flags.DEFINE_string("adapter", None, "A run of train.py that learned a LoRA or a prompt for the weights.")
_OUTDIR = flags.DEFINE_string("outdir", None, "Folder of the results.", required=True)

# What is segmented: one of these.
_DATASET_DIR = flags.DEFINE_string(
  "dataset-dir", None, "The queries: a folder with images/ and perhaps labels/, or a folder of images."
)
_IMAGE = flags.DEFINE_list("image", [], "A query, or several with commas between them.")
_VIDEO = flags.DEFINE_string("video", None, "A video.")

# The prompts: from folders, or one by one.
_PROMPT_IMG_DIR = flags.DEFINE_string("prompt-img-dir", None, "Images of the prompts, unless a prompt was learned.")
_PROMPT_LABEL_DIR = flags.DEFINE_string("prompt-label-dir", None, "Label maps of the prompts.")
_MAPPING = flags.DEFINE_string(
  "mapping",
  None,
  "JSON file {query file: [prompt files, best first]}; without it the first prompts by name serve every query.",
)
_TOP_K = flags.DEFINE_integer("top-k", 1, "The most prompts that a query gets of the folders.", lower_bound=1)
_PROMPT_IMAGE = flags.DEFINE_list(
  "prompt-image", [], "Prompts that serve every query, with commas between them; of a video its first frame by default."
)
_PROMPT_LABEL = flags.DEFINE_list("prompt-label", [], "Their label maps, or that of a video's first frame.")

_NUM_FRAMES = flags.DEFINE_integer("num-frames", 0, "Recent frames of the video that prompt the next.", 0)

# What is written, and what of it this process writes.
_SAVE = flags.DEFINE_list("save", list(outputs.DEFAULT_KINDS), f"Some of {', '.join(outputs.KINDS)}.")
_SAVE_FRAMES = flags.DEFINE_bool("save-frames", True, "Writes a label map of each frame beside the video.")
_SKIP_BAD = flags.DEFINE_bool("skip-bad", False, "Passes over queries with missing or bad files, and lists them.")
_RESUME = flags.DEFINE_bool("resume", False, "Goes on with a run of the same settings that was stopped.")
_SHARD = flags.DEFINE_string("shard", "1/1", "i/n: does the i-th of n shares of the work.")

command_flags.define_approach_flags()
command_flags.define_label_flags()
command_flags.define_aliases()
flags.adopt_module_key_flags(command_flags)  # for --help

_OF_FOLDERS = (_PROMPT_IMG_DIR, _PROMPT_LABEL_DIR, _MAPPING, _TOP_K)
_OF_FILES = (_PROMPT_IMAGE, _PROMPT_LABEL)
_OF_IMAGES = (_SAVE, _SKIP_BAD, _RESUME, _SHARD)
_OF_VIDEO = (_NUM_FRAMES, _SAVE_FRAMES)
# What a run that is resumed must have in common with the one that was stopped.
_SETTINGS = (
  *(flag.name for flag in (_MODEL_PATH, _ADAPTER, _DATASET_DIR, _IMAGE, *_OF_FOLDERS, *_OF_FILES, _SAVE)),
  *command_flags.APPROACH,
  *command_flags.LABELS,
)


def _check_flags(learned: bool) -> None:
  """Raises InputError for flags that are missing, and for those that would do nothing beside the others."""
  for flag in (_MODEL_PATH, _ADAPTER, _OUTDIR, _DATASET_DIR, _VIDEO, _PROMPT_IMG_DIR, _PROMPT_LABEL_DIR, _MAPPING):
    if flag.value == "":
      raise InputError(f"--{flag.name}: found an empty value, expected a path")
  kinds = [flag for flag in (_DATASET_DIR, _IMAGE, _VIDEO) if flag.value]
  if len(kinds) != 1:
    found = " and ".join(f"--{flag.name}" for flag in kinds) or "none of them"
    raise InputError(f"--dataset-dir, --image, --video: found {found}, expected one: what is to be segmented")
  _refuse(_OF_IMAGES if _VIDEO.value else _OF_VIDEO, f"{'with' if _VIDEO.value else 'without'} --video")
  if learned:
    _refuse((*_OF_FOLDERS, *_OF_FILES), "beside a learned prompt, which serves every query")
  elif _VIDEO.value or _PROMPT_IMAGE.present:
    _refuse(_OF_FOLDERS, "with --video" if _VIDEO.value else "beside --prompt-image")
    _demand(_PROMPT_LABEL)
  elif _PROMPT_LABEL.present:
    raise InputError("--prompt-image: missing, expected an image for each --prompt-label")
  else:
    _demand(_PROMPT_IMG_DIR)
    _demand(_PROMPT_LABEL_DIR)


def _refuse(given: tuple[flags.FlagHolder, ...], why: str) -> None:
  for flag in given:
    if flag.present:
      raise InputError(f"--{flag.name}: found {why}, expected none")


def _demand(flag: flags.FlagHolder) -> None:
  if not flag.value:
    raise InputError(f"--{flag.name}: missing (--help explains)")


def _find_queries(learned: bool, bad: dict[str, str] | None) -> list[queries.Query]:
  prompts = queries.given_prompts(_PROMPT_IMAGE.value, _PROMPT_LABEL.value)
  found = queries.list_queries(
    _DATASET_DIR.value or _IMAGE.value,
    *(_PROMPT_IMG_DIR.value, _PROMPT_LABEL_DIR.value, _MAPPING.value, _TOP_K.value, bad),
    prompts=prompts,
  )
  if not (_MAPPING.value or learned or prompts):
    print(f"no --mapping: every query is prompted by {', '.join(files.image.name for files in found[0].prompts)}")
  return found


def _segment_video(adapter: StoredAdapter | None, approach: InferenceOptions, labels: LabelFormat) -> None:
  target = video.run_video(
    Predictor.from_checkpoint(_MODEL_PATH.value, adapter=adapter),
    _VIDEO.value,
    _OUTDIR.value,
    prompt_images=_PROMPT_IMAGE.value,
    prompt_labels=_PROMPT_LABEL.value,
    num_frames=_NUM_FRAMES.value,
    options=approach,
    labels=labels,
    save_frames=_SAVE_FRAMES.value,
  )
  print(f"written: {target}")


def main(argv: list[str]) -> None:
  keep_programs()
  if len(argv) > 1:
    raise InputError(f"found argument {argv[1]!r}, expected only flags (--help explains)")
  adapter = load_adapter(_ADAPTER.value) if _ADAPTER.value else None
  learned = adapter is not None and isinstance(adapter.adapter, LearnedPrompt)
  _check_flags(learned)
  approach, shard = command_flags.approach_from_flags(), Shard.parse(_SHARD.value)
  labels = command_flags.label_format_from_flags(_ADAPTER.value or _MODEL_PATH.value)
  if _VIDEO.value:
    _segment_video(adapter, approach, labels)
    return
  bad: dict[str, str] | None = {} if _SKIP_BAD.value else None
  outcome = batch.run(
    Predictor.from_checkpoint(_MODEL_PATH.value, adapter=adapter),
    _find_queries(learned, bad),
    _OUTDIR.value,
    options=approach,
    labels=labels,
    kinds=_SAVE.value,
    bad=bad,
    resume=_RESUME.value,
    shard=shard,
    settings={name: flags.FLAGS[name].value for name in _SETTINGS if flags.FLAGS[name].value not in (None, [])},
  )
  if outcome.before:
    print(f"resumed: {outcome.before} images were done, {outcome.done} are done now")
  if outcome.metrics:
    print(scores.report(outcome.metrics))
    if "stitched" in outcome.metrics:
      print(f"with the seams painted again: {scores.report(outcome.metrics['stitched'])}")
  if outcome.bad:
    name, reason = next(iter(outcome.bad.items()))
    where = f"{_OUTDIR.value}/{batch.BAD_FILES}" if not outcome.left else "that file of the last process"
    print(f"passed over {len(outcome.bad)} images, the first: {name}: {reason}; all are in {where}")
  if outcome.left:
    print(f"{outcome.left} images are left to other processes; the last one writes metrics.json")
  print(f"written: {_OUTDIR.value}")


if __name__ == "__main__":
  run_main(main)
