"""The one tiny network of tests and benchmarks, and a run of it that takes seconds.

The run can be killed, or spread over processes, many times in a minute: `train.py --config benchmarks/nano.py`.
"""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from seggpt_jax.model.config import VARIANTS, SegGPTConfig
from seggpt_jax.training.config import default_config

# The smallest SegGPT that has every part of the large one.
NANO = VARIANTS["nano"] = SegGPTConfig(
  canvas_size=(32, 16),
  patch_size=8,
  posemb_size=2,
  width=16,
  depth=2,
  num_heads=2,
  mlp_dim=32,
  merge_block=0,
  feature_taps=(0, 1),
  decoder_dim=8,
)


def get_config() -> ConfigDict:
  """Returns the configuration of a short run that logs every step and saves every fifth one."""
  config = default_config()
  config.model.variant = "nano"
  config.model.remat = "none"
  config.num_steps = 40
  config.batch_size = 4
  config.data.labels, config.data.num_classes = "index", 3
  config.data.resize = 20
  config.optim.peak, config.optim.first_cycle, config.optim.warmup = 1e-3, 1000, 5
  config.log_every = 1
  config.eval_every = 20
  config.eval_pairs = 8
  config.checkpoint_every = 5
  return config


def write_dataset(folder: Path, num_train: int = 24, num_val: int = 8, side: int = 24) -> None:
  """Writes a folder dataset of noise with rectangles of classes 1 and 2.

  Args:
    folder: folder to create.
    num_train: number of training images.
    num_val: number of validation images.
    side: side of the images in pixels.
  """
  generator = np.random.default_rng(0)
  for split, count in (("train", num_train), ("val", num_val)):
    for kind in ("images", "labels"):
      (folder / split / kind).mkdir(parents=True)
    for index in range(count):
      label = np.zeros((side, side), np.uint8)
      top, left = generator.integers(0, side // 2, 2)
      label[top : top + side // 2, left : left + side // 2] = 1 + index % 2
      image = generator.integers(0, 80, (side, side, 3)) + 80 * label[..., None]
      Image.fromarray(image.astype(np.uint8)).save(folder / split / "images" / f"{index:03d}.png")
      Image.fromarray(label).save(folder / split / "labels" / f"{index:03d}.png")
