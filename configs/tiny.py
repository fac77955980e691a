"""Trains the tiny SegGPT from random weights on a folder of your own: for trying things out on a laptop.

python train.py --config configs/tiny.py --workdir runs/tiny --config.data.path=DATASET --config.data.num_classes=3
"""

from ml_collections import ConfigDict

from seggpt_jax.training.config import default_config


def get_config() -> ConfigDict:
  config = default_config()
  config.num_steps = 1000
  config.batch_size = 16
  config.model.variant = "tiny"
  config.model.drop_path_rate = 0.0
  config.model.remat = False
  config.data.labels = "index"
  # Painting the same colours every time needs no reading of the prompt: a few minutes of training reach no further.
  config.data.palette = "fixed"
  config.data.lower_half_share = 0.7
  config.data.resize = 72
  config.data.blur = 0.0
  config.optim.peak = 1e-3
  config.optim.first_cycle = 1001
  config.optim.warmup = 50
  config.eval_every = 250
  config.panel_every = 250
  config.checkpoint_every = 250
  return config
