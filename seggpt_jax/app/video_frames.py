"""Short videos as images of a session: at most 64 frames, spread evenly.

In: a video file. Out: frames as JPEG files in a session.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from seggpt_jax.app.limits import TooLargeError
from seggpt_jax.app.pictures import clean_name
from seggpt_jax.app.sessions import Session
from seggpt_jax.errors import InputError
from seggpt_jax.inference.video_files import probe, read_frames

MOST_FRAMES = 64
_MOST_READ = 20_000  # frames that are decoded for it: ten minutes of most videos
_ENDINGS = (".mp4", ".mov", ".webm", ".mkv", ".avi", ".m4v", ".mpg", ".mpeg", ".ogv", ".3gp")


def is_video(name: str) -> bool:
  """Returns whether a file has an ending of videos."""
  return Path(name).suffix.lower() in _ENDINGS


def add_frames(session: Session, path: Path, name: str, most_pixels: int) -> int:
  """Adds the frames of a video to a session and returns their number.

  Args:
    session: the session.
    path: the video file.
    name: file name that the user knows it by.
    most_pixels: pixels that a frame may have.

  Raises:
    TooLargeError: its frames are too large, or too many.
    InputError: the file is not a video.
  """
  shown = clean_name(name)
  try:
    info = probe(path)
    if info.size[0] * info.size[1] > most_pixels:
      raise TooLargeError(
        f"{shown}: found {info.size[1]} x {info.size[0]} pixels, expected at most {most_pixels / 1e6:g} million"
      )
    total = info.num_frames or sum(1 for _ in read_frames(path))
    if total > _MOST_READ:
      raise TooLargeError(f"{shown}: found {total} frames, expected at most {_MOST_READ}; cut the video")
    count = min(total, MOST_FRAMES)
    wanted = {round(place * (total - 1) / max(count - 1, 1)) for place in range(count)}
    added = 0
    for number, pixels in enumerate(read_frames(path)):
      if number in wanted:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "jpeg", quality=95, subsampling=0)
        session.add_image(f"{Path(shown).stem}_{number:05d}.jpg", file.getvalue())
        added += 1
    return added
  except InputError as error:
    raise type(error)(str(error).replace(str(path), shown)) from error
