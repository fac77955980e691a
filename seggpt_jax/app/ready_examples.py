"""Ready examples for somebody without images at hand: drawn circuit boards, the first one labeled.

In: nothing. Out: images in a session. The boards are drawn when they are asked for; the same ones every time.
"""

from __future__ import annotations

import io

from PIL import Image

from seggpt_jax.app.sessions import DEMO_CLASS, Session
from seggpt_jax.synthetic.boards import BoardSource

_SEED, _SIDE, _SCALE = 3, 320, 5.0
# The boards in the order of the page. With the first as the example, the small weights get some right and some wrong.
_BOARDS = (10, 0, 3, 4, 5, 1, 8, 9, 2, 7)


def add_boards(session: Session) -> None:
  """Adds boards to a session and labels the copper of the first one, if the session needs examples."""
  source = BoardSource(max(_BOARDS) + 1, _SEED, size=_SIDE, scale=_SCALE, count=(0, 1), labels="etched")
  session.start_demo()
  if session.needs_examples and not session.examples:
    session.set_classes([DEMO_CLASS])
  for place, index in enumerate(_BOARDS):
    board, file = source[index], io.BytesIO()
    Image.fromarray(board["image"]).save(file, "png")
    picture = session.add_image(f"board_{place + 1:02d}.png", file.getvalue(), demo=True)
    if place == 0 and session.needs_examples:
      session.set_label(picture.key, board["label"])
