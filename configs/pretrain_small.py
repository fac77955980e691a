"""Pretrains the packaged small SegGPT, from random weights on tasks drawn at random.

The first run has small squares, where a step is cheap; the second continues on squares of 96 pixels:

  seggpt train --config pretrain_small:64 --workdir runs/small_64
  seggpt train --config pretrain_small:96 --workdir runs/small_96 --config.model.init_from=runs/small_64

They take 45 and 40 minutes on two cores. The foreground IoU on held-out families is 0.59 after the first (at 64 pixels)
and 0.73 after the second; docs/small.md has all results.
"""

from ml_collections import ConfigDict

from seggpt_jax.training.config import default_config


def get_config(square: str = "64") -> ConfigDict:
  config = default_config()
  first = square == "64"
  config.num_steps = 4000 if first else 1400
  config.batch_size = 16
  if first:
    config.model.variant = "small"
  else:
    config.model.init_from = "runs/small_64"
  config.model.square = int(square)
  config.model.drop_path_rate = 0.0
  config.model.remat = "none"
  config.data.source = "tasks"
  config.data.ramp = 2000 if first else 0
  config.data.num_classes = 7
  # Classes may have any color; what no class covers is black, in masks of all labelling tools.
  config.data.palette = "black_background"
  # Patches hidden at random teach the network to look around, a hidden half teaches it to look at the prompt.
  config.data.lower_half_share = 0.7
  config.data.resize = 0
  # The tasks vary the light themselves.
  config.data.brightness = config.data.contrast = config.data.saturation = config.data.blur = 0.0
  # Of what is asked for, much is smaller than a hundredth of a picture: the loss of configs/defects_small.py.
  config.loss.smooth_l1 = 0.3
  config.loss.cross_entropy = 1.0
  config.loss.dice = 1.0
  config.loss.foreground = 0.05
  config.optim.name = "muon"
  config.optim.decay_all = True
  config.optim.clip_norm = 1.0
  config.optim.b2 = 0.98
  config.optim.peak = 2e-3 if first else 1e-3
  config.optim.first_cycle = 0  # one cosine over the run, however long it is
  config.optim.warmup = 200 if first else 50
  config.log_every = 20
  config.eval_every = 500 if first else 200
  config.eval_pairs = 128
  config.panel_every = config.eval_every
  config.checkpoint_every = config.eval_every
  return config
