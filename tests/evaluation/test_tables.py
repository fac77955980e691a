"""Tables of results: every published figure has its source."""

from __future__ import annotations

from seggpt_jax.evaluation import parts


def test_published_figures_stand_beside_the_measured_ones_with_their_source():
  entry = parts.published("coco20i", "mIoU", 1)
  table = parts.Table(
    "Title", ["fold 0", "mean"], {"mIoU": [0.5, None], "FB-IoU": [0.1234, 1.0]}, {"mIoU": entry}, ["A note."]
  )
  assert parts.markdown(table).splitlines() == [
    "# Title",
    "",
    "|  | fold 0 | mean | published |",
    "| --- | --- | --- | --- |",
    "| mIoU | 50.0 |  | 56.1 [1] |",
    "| FB-IoU | 12.3 | 100.0 |  |",
    "",
    "[1] the documentation of transformers, model SegGPT, of the released weights.",
    "",
    "A note.",
  ]


def test_a_figure_for_one_prompt_is_not_one_for_several():
  assert parts.published("coco20i", "mIoU", 5).value == 67.9
  assert parts.published("pascal5i", "mIoU", 1) is None
  assert parts.published("fss1000", "FB-IoU", 1) is None
