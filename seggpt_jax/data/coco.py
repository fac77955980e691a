"""Opens COCO annotations, for scripts that still call `CocoSource(path, split, num_classes)`."""

from seggpt_jax.data.datasets import Dataset, open_dataset
from seggpt_jax.data.sources import Source


def CocoSource(path: str, split: str, num_classes: int) -> Source:  # noqa: N802
  """Returns the samples of one split, as `open_dataset` does for the kind "coco"."""
  return open_dataset(Dataset("coco", path, num_classes), split)
