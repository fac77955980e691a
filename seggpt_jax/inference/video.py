"""Segments videos: frames and a few prompts in, the label map of every frame out.

In: frames, or a video file, and prompts that serve all frames. Out: one prediction after another; as files, a video of
overlays and a label map of each frame. Frames are streamed, so memory does not grow with the length of the video.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from seggpt_jax.compilation import compile_notice
from seggpt_jax.errors import InputError
from seggpt_jax.files import MOMENT, expand, remove_leftovers, writing
from seggpt_jax.formats.images import is_image, read_image
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.inference import outputs
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.pictures import write_png
from seggpt_jax.inference.prediction import Prediction
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.prompts import (
  PreparedPrompt,
  Prompt,
  load_prompt,
  load_prompts,
  read_label_map,
  without_ignored,
)
from seggpt_jax.inference.video_files import probe, read_frames, write_video
from seggpt_jax.written import check_outputs, open_record


def segment_frames(
  predictor: Predictor,
  frames: Iterable[UInt8[np.ndarray, "h w 3"]],
  prompts: Sequence[Prompt],
  options: InferenceOptions | None = None,
  *,
  num_frames: int = 0,
  keep_empty: bool = False,
  palette: np.ndarray | None = None,
) -> Iterator[Prediction]:
  """Segments frames in order, with recent frames and their predictions as further prompts.

  The given prompts serve all frames, so that their classes can always be found and drift can be undone. Up to
  `num_frames` recent frames join them, each with its own prediction. Frames in which nothing was found are skipped, and
  the frames before them stay: an object that is hidden for a while is still shown by the frames before it vanished.

  Without recent frames, no frame depends on another, and frames share batches. With recent frames, one frame is
  predicted at a time, and the network is compiled for each number of prompts as they accumulate.

  Args:
    predictor: the network. With a learned prompt, `prompts` may be empty if `num_frames` is 0.
    frames: frames of a video, or images that change little. A generator is read only a few batches ahead.
    prompts: pairs of image and label map; see `Predictor.predict`.
    options: tiles, overlap and mirrored copies; one tile for the whole frame by default.
    num_frames: largest number of recent frames that serve as prompts.
    keep_empty: also uses frames in which nothing was found as prompts, as the original tool does.
    palette: the color of each class; see `Predictor.predict`.

  Yields:
    The prediction for each frame.

  Raises:
    InputError: an argument is not as described above.
  """
  if num_frames < 0:
    raise InputError(f"num_frames: found {num_frames}, expected 0 or more")
  options = options or InferenceOptions()
  if prompts or predictor.learned is None:
    named = load_prompts(prompts)
    prompts = [_prepared(prompt, predictor, options, name) for name, prompt in named]
  elif num_frames:
    raise InputError("num_frames cannot be combined with a learned prompt, which recent frames would replace")
  if not num_frames:
    yield from predictor.predict_many(((frame, prompts) for frame in frames), options, palette=palette)
    return
  recent: collections.deque[Prompt] = collections.deque(maxlen=num_frames)
  for frame in frames:
    (prediction,) = predictor.predict_many([(frame, [*prompts, *recent])], options, palette=palette)
    yield prediction
    if keep_empty or prediction.labels.any():
      recent.append(_prepared(PreparedPrompt(frame, prediction.labels), predictor, options))


def _prepared(
  prompt: PreparedPrompt, predictor: Predictor, options: InferenceOptions, name: str | None = None
) -> PreparedPrompt:
  """Resizes a prompt once, not for every frame, unless several splits need several sizes; a named one can warn."""
  if len(options.splits) > 1:
    return prompt
  if name is None:
    return predictor.resize_prompt(prompt, split=options.splits[0], zoom=options.zoom)
  return predictor.prepare_prompt(*prompt, split=options.splits[0], zoom=options.zoom, name=name)


def run_video(
  predictor: Predictor,
  path: str | os.PathLike,
  outdir: str | os.PathLike,
  *,
  prompt_images: Sequence[str | os.PathLike] = (),
  prompt_labels: Sequence[str | os.PathLike] = (),
  num_frames: int = 0,
  options: InferenceOptions | None = None,
  labels: LabelFormat | None = None,
  save_frames: bool = True,
) -> Path:
  """Segments a video file; writes OUT/NAME.mp4 and the class indices of each frame, OUT/label/NAME/000000.png and on.

  Label maps have the size of the source. The written video shows the classes in display colors over the frames; it has
  even sides (see `write_video`), and the mean rate of a source with a variable frame rate. Files that an earlier run
  left under these names are removed first, after a line that says so; anything else there is refused. A run that fails
  leaves the label maps so far and no video.

  Args:
    predictor: the network.
    path: the video file, or a folder of its frames.
    outdir: folder of the results, created if missing.
    prompt_images: image files of the prompts; empty if the video's first frame is the prompt.
    prompt_labels: a label file for each prompt image, or one for the first frame; empty for a learned prompt.
    num_frames: largest number of recent frames that serve as prompts; see `segment_frames`.
    options: tiles, overlap and mirrored copies; one tile for the whole frame by default.
    labels: format of the label files; class indices by default. Ignored pixels are background.
    save_frames: also writes the label maps.

  Raises:
    InputError: a file cannot be read or written, prompts do not match, or the video would be overwritten.
  """
  source, outdir = Path(expand(path)), Path(expand(outdir))
  info = probe(source)
  target, folder = outdir / f"{source.stem}.mp4", outdir / "label" / source.stem
  frames = sorted(folder.glob("*.png"))
  shown = sorted(source.iterdir()) if source.is_dir() else [source]
  check_outputs([target, *frames], [*shown, *prompt_images, *prompt_labels], is_image=is_image)
  named = _read_prompts(source, prompt_images, prompt_labels, labels or LabelFormat())
  prompts = [_prepared(prompt, predictor, options or InferenceOptions(), name) for name, prompt in named]
  if target.exists():
    print(
      f"{target}: overwriting the video of an earlier run and its label maps; to keep them, choose another --outdir"
    )
  with writing(outdir):
    outdir.mkdir(parents=True, exist_ok=True)
    open_record(outdir)
  remove_leftovers(outdir, "label", least_age=MOMENT)
  for stale in (target, *frames):
    outputs.remove(stale)
  print(compile_notice("the network", predictor.config.depth, training=False))

  def overlays() -> Iterator[np.ndarray]:
    predictions = segment_frames(predictor, read_frames(source), prompts, options, num_frames=num_frames)
    for index, prediction in enumerate(tqdm(predictions, desc="video", unit="frame", total=info.num_frames)):
      if save_frames:
        write_png(folder / f"{index:06}.png", prediction.labels)
      yield prediction.overlay()

  write_video(target, overlays(), info.rate)
  return target


def _read_prompts(
  video: Path, images: Sequence[str | os.PathLike], labels: Sequence[str | os.PathLike], label_format: LabelFormat
) -> list[tuple[str, PreparedPrompt]]:
  """Reads pairs of images and label maps, by label file; without images, the video's first frame is the image."""
  if images and len(images) != len(labels):
    found = f"{len(images)} images and {len(labels)} label files"
    raise InputError(f"--prompt-image, --prompt-label: found {found}, expected as many of both")
  if not images and len(labels) > 1:
    raise InputError(
      f"--prompt-label: found {len(labels)} label files without images, expected one, of the first frame"
    )
  pixels = (read_image(path) for path in images) if images else read_frames(video)
  pairs = zip(map(str, labels), pixels, strict=False)
  return [
    (path, load_prompt((image, without_ignored(read_label_map(path, image, label_format))), path))
    for path, image in pairs
  ]
