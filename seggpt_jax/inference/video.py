"""From a video and a few prompts to the label map of every frame.

In: frames, or a video file, and prompts that hold for all of them. Out: one prediction after another; as files, a video
of overlays and a label map of each frame. Frames are streamed: memory does not grow with the length.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from seggpt_jax.data.images import read_image
from seggpt_jax.data.labels import IGNORE, LabelFormat, read_labels
from seggpt_jax.data.sources import check_size
from seggpt_jax.errors import InputError
from seggpt_jax.inference import outputs, tiling
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.prediction import Prediction
from seggpt_jax.inference.predictor import Predictor, Prompt, check_prompts
from seggpt_jax.inference.video_files import probe, read_frames, write_video


def segment_frames(
  predictor: Predictor,
  frames: Iterable[UInt8[np.ndarray, "h w 3"]],
  prompts: Sequence[Prompt],
  approach: InferenceOptions | None = None,
  *,
  num_frames: int = 0,
  keep_empty: bool = False,
  palette: np.ndarray | None = None,
) -> Iterator[Prediction]:
  """Segments frames in their order, with what was found in the last ones as further prompts.

  The given prompts stay for all frames, so that their classes can always be found, and what drifts can come back. Up to
  `num_frames` recent frames join them, each with its own prediction. Those in which nothing was found are passed over,
  and the ones before them stay: a thing that was hidden for a while is still shown by the frames before it vanished.

  Without recent frames no frame depends on another, and they share batches. With them they go one at a time, and the
  network is compiled for 1, 2, ... 1 + `num_frames` prompts (of one given prompt) as they gather.

  Args:
    predictor: the network; a learned prompt takes the place of prompts, without recent frames.
    frames: of a video, or of anything that changes little from one to the next. A generator is not read ahead by more
      than a few batches.
    prompts: see `Predictor.predict`.
    approach: how each frame is shown to the network; whole by default. The work grows with the number of prompts.
    num_frames: the most recent frames that prompt the next.
    keep_empty: whether also frames in which nothing was found do, as in the original.
    palette: see `Predictor.predict`.

  Yields:
    The prediction of each frame.

  Raises:
    InputError: an argument is not as described above.
  """
  if num_frames < 0:
    raise InputError(f"num_frames: found {num_frames}, expected 0 or more")
  approach = approach or InferenceOptions()
  if prompts or predictor.learned is None:
    prompts = [_fitted(prompt, predictor, approach) for prompt in check_prompts(prompts)]
  elif num_frames:
    raise InputError("num_frames: found recent frames beside a learned prompt, expected 0: they would take its place")
  if not num_frames:
    yield from predictor.predict_many(((frame, prompts) for frame in frames), approach, palette=palette)
    return
  recent: collections.deque[Prompt] = collections.deque(maxlen=num_frames)
  for frame in frames:
    (prediction,) = predictor.predict_many([(frame, [*prompts, *recent])], approach, palette=palette)
    yield prediction
    if keep_empty or prediction.labels.any():
      recent.append(_fitted((frame, prediction.labels), predictor, approach))


def _fitted(prompt: tuple[np.ndarray, np.ndarray], predictor: Predictor, approach: InferenceOptions) -> Prompt:
  """The prompt as `predict` would resize it, once and not for every frame; several splits take several sizes."""
  if len(approach.splits) > 1:
    return prompt
  (split,) = approach.splits
  size = (split * predictor.tile_size[0], split * predictor.tile_size[1])
  image, labels = prompt
  return tiling.resize_image(image, size), tiling.resize_labels(labels.astype(np.int32), size)


def run_video(
  predictor: Predictor,
  path: str | os.PathLike,
  outdir: str | os.PathLike,
  *,
  prompt_images: Sequence[str | os.PathLike] = (),
  prompt_labels: Sequence[str | os.PathLike] = (),
  num_frames: int = 0,
  approach: InferenceOptions | None = None,
  labels: LabelFormat | None = None,
  save_frames: bool = True,
) -> Path:
  """Segments a video file and writes OUT/NAME.mp4, and OUT/label/NAME/000000.png and on: class indices of each frame.

  Label maps have the size of the source; the video has even sides, see `write_video`. Of a variable frame rate it has
  the mean. What an earlier run left under these names is removed first. Of a run that fails the label maps of the
  frames so far remain, and no video.

  Args:
    predictor: the network.
    path: the video.
    outdir: folder of the results; is made where it is missing.
    prompt_images: image files; none where the video's first frame is the prompt.
    prompt_labels: a label file for each of them, or the one of the first frame; none for a learned prompt.
    num_frames: see `segment_frames`.
    approach: likewise.
    labels: how label files are read; by default as class indices. Ignored pixels are background.
    save_frames: whether label maps are written too.

  Returns:
    The path of OUT/NAME.mp4.

  Raises:
    InputError: a file cannot be read or written, prompts do not match, or the video would be overwritten.
  """
  source, outdir = Path(path), Path(outdir)
  info = probe(source)
  target, folder = outdir / f"{source.stem}.mp4", outdir / "label" / source.stem
  if target.exists() and target.samefile(source):
    raise InputError(f"{target}: found the video itself there, expected another folder for the results")
  prompts = _read_prompts(source, prompt_images, prompt_labels, labels or LabelFormat())
  for stale in (target, *folder.glob("[0-9]*.png")):
    outputs.remove(stale)
  on_the_way: collections.deque[np.ndarray] = collections.deque()

  def frames() -> Iterator[np.ndarray]:
    for frame in read_frames(source):
      on_the_way.append(frame)
      yield frame

  def overlays() -> Iterator[np.ndarray]:
    found = segment_frames(predictor, frames(), prompts, approach, num_frames=num_frames)
    for index, prediction in enumerate(tqdm(found, desc="video", unit="frame", total=info.num_frames)):
      if save_frames:
        outputs.write_png(folder / f"{index:06}.png", prediction.labels)
      yield outputs.overlay(on_the_way.popleft(), prediction.labels, prediction.palette)

  write_video(target, overlays(), info.rate)
  return target


def _read_prompts(
  video: Path,
  images: Sequence[str | os.PathLike],
  labels: Sequence[str | os.PathLike],
  label_format: LabelFormat,
) -> list[Prompt]:
  """Pairs of images and label maps; without images, the first frame and its label map."""
  if images and len(images) != len(labels):
    raise InputError(f"prompts: found {len(images)} images and {len(labels)} label files, expected as many of both")
  if not images and len(labels) > 1:
    raise InputError(f"prompts: found {len(labels)} label files without images, expected one, of the first frame")
  pictures = (read_image(path) for path in images) if images else read_frames(video)
  prompts = []
  for path, image in zip(labels, pictures, strict=False):
    label = read_labels(path, label_format)
    check_size(label, image.shape[:2], str(path))
    label = label.copy()
    label[label == IGNORE] = 0
    prompts.append((image, label))
  return prompts
