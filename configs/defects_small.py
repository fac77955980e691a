"""Fine-tunes the packaged small SegGPT to find small objects in large images, on a laptop.

seggpt train --config defects_small --workdir runs/mine --config.data.path=DATASET --config.data.num_classes=6
"""

from ml_collections import ConfigDict

from seggpt_jax.training.config import default_config


def get_config() -> ConfigDict:
  config = default_config()
  config.num_steps = 1300
  config.batch_size = 8
  config.model.init_from = "drawn"
  config.model.square = 64
  config.model.drop_path_rate = 0.0
  config.model.remat = "none"
  config.data.labels = "index"
  config.data.palette = "fixed"
  config.data.zoom = config.data.coarse_zoom = -1.0  # measured
  config.data.lower_half_share = 1.0
  config.data.scale = (0.8, 1.25)
  config.data.foreground_crop = 0.7
  config.data.color = (0.2, 0.2, 0.1)
  config.data.blur = 0.0
  config.data.cache_mb = 1000
  config.loss.smooth_l1 = 0.3
  config.loss.cross_entropy = 1.0
  config.loss.dice = 1.0
  config.loss.foreground = 0.05
  config.optim.name = "muon"
  config.optim.decay_all = True
  config.optim.peak = 2e-3
  config.optim.first_cycle = 0  # one cosine over the run, however long it is
  config.optim.warmup = 20
  config.eval_every = 500
  config.eval_pairs = 256
  config.checkpoint_every = 500
  return config
