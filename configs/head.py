"""A classifier of pixels on frozen features: the fastest way to learn from labeled images on a laptop.

seggpt train --config head --workdir runs/mine --config.data.path=DATASET --config.data.num_classes=3
"""

from ml_collections import ConfigDict

from seggpt_jax.training.config import default_config


def get_config() -> ConfigDict:
  config = default_config()
  config.num_steps = 1600
  config.batch_size = 16
  config.model.init_from = "small"
  config.model.drop_path_rate = 0.0
  config.model.remat = "none"
  config.adapter.kind = "head"
  config.data.labels = "index"
  config.data.resize = 0  # the size of a typical image
  config.data.scale = (0.8, 1.25)
  config.data.flips = "turns"
  config.data.color = (0.2, 0.2, 0.1)
  config.data.blur = 0.0
  config.optim.peak = 3e-3
  config.optim.first_cycle = 0  # one cosine over the run, however long it is
  config.optim.warmup = 30
  config.optim.weight_decay, config.optim.decay_all = 0.02, True
  config.eval_every = 500
  config.checkpoint_every = 500
  config.eval_pairs = 128
  return config
