"""Segments a folder of images by example.

  python infer.py --model-path weights/vit_large --prompt-img-dir prompts/images --prompt-label-dir prompts/labels \\
    --dataset-dir photos --top-k 5 --outdir out

Writes out/label (class indices), out/color, out/concat (pictures to look at), and out/metrics.json where the dataset
has labels. Files belong together by their name without ending.

Or a video, here by the label map of its first frame, into out/street.mp4 and out/label/street:

  python infer.py --model-path weights/vit_large --video street.mp4 --prompt-label first.png --outdir out
"""

from __future__ import annotations

from absl import flags

from seggpt_jax.data.labels import LABEL_MODES, parse_values
from seggpt_jax.errors import InputError, run_main
from seggpt_jax.inference import batch, video
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.model.adapter_files import load_adapter
from seggpt_jax.model.adapters import LearntPrompt

_MODEL_PATH = flags.DEFINE_string(
  "model-path", None, "Weights of convert_torch_weights.py, or a run of train.py.", required=True
)
_ADAPTER = flags.DEFINE_string("adapter", None, "A run of train.py that learnt a LoRA or a prompt for the weights.")
_PROMPT_IMG_DIR = flags.DEFINE_string("prompt-img-dir", None, "Images of the prompts, unless a prompt was learnt.")
_PROMPT_LABEL_DIR = flags.DEFINE_string("prompt-label-dir", None, "Label maps of the prompts.")
_DATASET_DIR = flags.DEFINE_string(
  "dataset-dir", None, "The queries: a folder with images/ and perhaps labels/, or a folder of images."
)
_MAPPING = flags.DEFINE_string(
  "mapping",
  None,
  "JSON file {query file: [prompt files, best first]}; without it the first prompts by name serve every query.",
)
_TOP_K = flags.DEFINE_integer("top-k", 1, "The most prompts that a query gets.", lower_bound=1)
_SPLIT = flags.DEFINE_list(
  "split",
  "1",
  "Cuts queries and prompts into n x n tiles, for small things; of several, such as 1,2,4, the mean decides.",
)
_OUTDIR = flags.DEFINE_string("outdir", None, "Folder of the results.", required=True)
_LABELS = flags.DEFINE_enum(
  "labels",
  None,
  LABEL_MODES,
  "How label files are read: values are class indices, above --threshold is class 1, or the i-th value or colour of "
  "--table is class i; by default as in training.",
)
_THRESHOLD = flags.DEFINE_integer(
  "threshold", None, "For binary labels, 0 by default or as in training; 127 suits masks stored as JPEG.", 0, 255
)
_TABLE = flags.DEFINE_string("table", None, "For table labels: 0,128,255 or colours, (0,0,0),(255,0,0).")
_IGNORE = flags.DEFINE_string("ignore", None, "Values or colours of labels that are not scored, as in --table.")
_SKIP_BAD = flags.DEFINE_bool("skip-bad", False, "Passes over queries with missing or bad files, and lists them.")
_SEG_TYPE = flags.DEFINE_enum("seg-type", "semantic", ["semantic", "instance"], "What the prompts mark.")
_VIDEO = flags.DEFINE_string("video", None, "A video to segment, in place of --dataset-dir.")
_PROMPT_IMAGE = flags.DEFINE_list("prompt-image", [], "Prompts of the video; by default its first frame.")
_PROMPT_LABEL = flags.DEFINE_list("prompt-label", [], "Their label maps, or that of the first frame.")
_NUM_FRAMES = flags.DEFINE_integer("num-frames", 0, "Recent frames of the video that prompt the next.", 0)
_SAVE_FRAMES = flags.DEFINE_bool("save-frames", True, "Writes a label map of each frame beside the video.")
# Those that a video does not know, and those that it alone knows.
_OF_FOLDERS = (_DATASET_DIR, _PROMPT_IMG_DIR, _PROMPT_LABEL_DIR, _MAPPING, _TOP_K, _SKIP_BAD)
_OF_VIDEO = (_PROMPT_IMAGE, _PROMPT_LABEL, _NUM_FRAMES, _SAVE_FRAMES)

for _name in [name for name in flags.FLAGS if "-" in name]:  # absl's habit is underscores: both are understood
  flags.DEFINE_alias(_name.replace("-", "_"), _name)


def _check_video_flags(learnt: bool) -> None:
  is_video = _VIDEO.value is not None
  for flag in _OF_FOLDERS if is_video else _OF_VIDEO:
    if flag.present:
      raise InputError(f"--{flag.name}: found {'beside' if is_video else 'without'} --video, expected none")
  if is_video and bool(_PROMPT_LABEL.value) == learnt:
    found = "found beside a learnt prompt, expected none" if learnt else "missing (--help explains)"
    raise InputError(f"--prompt-label: {found}")
  if not is_video and _DATASET_DIR.value is None:
    raise InputError("--dataset-dir: missing (--help explains)")


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise InputError(f"found argument {argv[1]!r}, expected only flags (--help explains)")
  for name in ("model-path", "prompt-img-dir", "prompt-label-dir", "dataset-dir", "outdir", "adapter", "video"):
    if flags.FLAGS[name].value == "":
      raise InputError(f"--{name}: found an empty value, expected a path")
  try:
    splits = [int(text) for text in _SPLIT.value]
  except ValueError as error:
    raise InputError(f"--split: found {','.join(_SPLIT.value)}, expected a number, or several such as 1,2,4") from error
  adapter = load_adapter(_ADAPTER.value) if _ADAPTER.value else None
  learnt = adapter is not None and isinstance(adapter.adapter, LearntPrompt)
  _check_video_flags(learnt)
  for flag in () if _VIDEO.value else (_PROMPT_IMG_DIR, _PROMPT_LABEL_DIR):
    if (flag.value is None) != learnt:
      found = "found beside a learnt prompt, expected none" if learnt else "missing (--help explains)"
      raise InputError(f"--{flag.name}: {found}")
  if learnt and (_MAPPING.present or _TOP_K.present):
    raise InputError("--mapping, --top-k: found with a learnt prompt, expected none: it serves every query")
  table, ignore = (None if f.value is None else parse_values(f.value, f"--{f.name}") for f in (_TABLE, _IGNORE))
  labels = batch.label_format(_ADAPTER.value or _MODEL_PATH.value, _LABELS.value, _THRESHOLD.value, table, ignore)
  if _VIDEO.value:
    print(f"labels are read as {labels}")
    target = video.run_video(
      Predictor.from_checkpoint(_MODEL_PATH.value, adapter=adapter),
      _VIDEO.value,
      _OUTDIR.value,
      prompt_images=_PROMPT_IMAGE.value,
      prompt_labels=_PROMPT_LABEL.value,
      num_frames=_NUM_FRAMES.value,
      split=splits,
      seg_type=_SEG_TYPE.value,
      labels=labels,
      save_frames=_SAVE_FRAMES.value,
    )
    print(f"written: {target}")
    return
  bad: dict[str, str] | None = {} if _SKIP_BAD.value else None
  queries = batch.list_queries(
    _DATASET_DIR.value, _PROMPT_IMG_DIR.value, _PROMPT_LABEL_DIR.value, _MAPPING.value, _TOP_K.value, bad
  )
  if not _MAPPING.value and not learnt:
    names = ", ".join(files.image.name for files in queries[0].prompts)
    print(f"no --mapping: every query is prompted by {names}")
  print(f"labels are read as {labels}")
  predictor = Predictor.from_checkpoint(_MODEL_PATH.value, adapter=adapter)
  metrics = batch.run(
    predictor,
    queries,
    _OUTDIR.value,
    split=splits,
    seg_type=_SEG_TYPE.value,
    labels=labels,
    bad=bad,
  )
  if metrics:
    print(batch.report(metrics))
  if bad:
    name, reason = next(iter(bad.items()))
    print(f"passed over {len(bad)} images, the first: {name}: {reason}; all are in {_OUTDIR.value}/{batch.BAD_FILES}")
  print(f"written: {_OUTDIR.value}")


if __name__ == "__main__":
  run_main(main)
