"""Fine-tunes the packaged `drawn` SegGPT on your own dataset, in minutes on a laptop.

seggpt train --config small --workdir runs/mine --config.data.path=DATASET --config.data.num_classes=3
"""

from ml_collections import ConfigDict

from seggpt_jax.training.config import default_config


def get_config() -> ConfigDict:
  config = default_config()
  config.num_steps = 500
  config.batch_size = 8
  config.model.init_from = "drawn"
  config.model.square = 96  # a step takes half of the time of one at the weights' own 128 pixels
  config.model.drop_path_rate = 0.0
  config.model.remat = "none"
  config.data.labels = "index"
  config.data.palette = "black_background"
  config.data.lower_half_share = 0.7
  config.data.resize = 112
  config.data.blur = 0.0
  config.optim.name = "muon"
  config.optim.decay_all = True
  config.optim.peak = 1.5e-3
  config.optim.first_cycle = 0  # one cosine over the run, however long it is
  config.optim.warmup = 20
  config.eval_every = 100
  config.checkpoint_every = 100
  return config
