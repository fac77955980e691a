"""Pretrains the small SegGPT that comes with the package, from random weights on tasks drawn at random.

First on small squares, where a step is cheap, then on its own:

  python train.py --config configs/pretrain_small.py:64 --workdir runs/small_64
  python train.py --config configs/pretrain_small.py:96 --workdir runs/small_96 --config.model.init_from=runs/small_64

On two cores 45 and 40 minutes; foreground IoU on held-out families 0.59 after the first (at 64 pixels), 0.73 after the
second. docs/small.md has the rest.
"""

from ml_collections import ConfigDict

from seggpt_jax.training.config import default_config


def get_config(square: str = "64") -> ConfigDict:
  config = default_config()
  first = square == "64"
  config.num_steps = 4000 if first else 1400
  config.batch_size = 16
  config.model.variant = "small"
  config.model.square = int(square)
  config.model.drop_path_rate = 0.0
  config.model.remat = "none"
  config.data.source = "tasks"
  config.data.ramp = 2000 if first else 0
  config.data.num_classes = 4
  config.data.palette = "random"
  # What is hidden at random teaches to look around, the hidden half to look at the prompt.
  config.data.lower_half_share = 0.7
  config.data.resize = 0
  # The tasks vary the light themselves.
  config.data.brightness = config.data.contrast = config.data.saturation = config.data.blur = 0.0
  config.optim.name = "muon"
  config.optim.decay_all = True
  config.optim.clip_norm = 1.0
  config.optim.b2 = 0.98
  config.optim.peak = 2e-3 if first else 1e-3
  config.optim.first_cycle = config.num_steps + 1
  config.optim.warmup = 200 if first else 50
  config.log_every = 20
  config.eval_every = 500 if first else 200
  config.eval_pairs = 128
  config.panel_every = config.eval_every
  config.checkpoint_every = config.eval_every
  return config
