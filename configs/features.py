"""A trained head and the ImageNet features that it sees, learning together: better, and slower than the head alone.

seggpt train --config features --workdir runs/better --config.model.init_from=runs/mine \\
  --config.data.path=DATASET --config.data.num_classes=3
"""

from ml_collections import ConfigDict

from seggpt_jax.training.config import default_config


def get_config() -> ConfigDict:
  config = default_config()
  config.num_steps = 1600
  config.batch_size = 2
  config.model.init_from = ""  # a run of --config head
  config.model.drop_path_rate = 0.0
  config.model.remat = "none"
  config.adapter.kind = "features"
  config.data.labels = "index"
  config.data.resize = 0  # the head's
  config.data.scale = (0.8, 1.25)
  config.data.flips = "turns"
  config.data.color = (0.2, 0.2, 0.1)
  config.data.blur = 0.0
  config.optim.peak = 3e-4
  config.optim.layer_decay = 0.8  # the features have a third of the rate
  config.optim.clip_norm = 1.0
  config.optim.first_cycle = 0  # one cosine over the run, however long it is
  config.optim.warmup = 30
  config.optim.weight_decay, config.optim.decay_all = 0.02, True
  config.eval_every = 800
  config.checkpoint_every = 800
  config.eval_pairs = 128
  return config
