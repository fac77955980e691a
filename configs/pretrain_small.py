"""Pretrains the packaged small SegGPT, from random weights on tasks drawn at random.

The first run has small squares, where a step is cheap; the others continue on larger ones:

  seggpt train --config pretrain_small:64 --workdir runs/small_64
  seggpt train --config pretrain_small:96 --workdir runs/small_96 --config.model.init_from=runs/small_64
  seggpt train --config pretrain_small:128 --workdir runs/small_128 --config.model.init_from=runs/small_96

They take 45, 40 and 30 minutes on two cores; docs/small.md has all results.
"""

from ml_collections import ConfigDict

from seggpt_jax.errors import InputError
from seggpt_jax.training.config import default_config

# Steps and highest learning rate by the side of the square in pixels.
_RUNS = {"64": (4000, 2e-3), "96": (1400, 1e-3), "128": (500, 8e-4)}


def get_config(square: str = "64") -> ConfigDict:
  config = default_config()
  if square not in _RUNS:
    raise InputError(f"pretrain_small: found the square {square!r}, expected one of {', '.join(_RUNS)}")
  first = square == "64"
  config.num_steps, config.optim.peak = _RUNS[square]
  config.batch_size = 16
  if first:
    config.model.variant = "small"
  else:
    config.model.init_from = "runs/small_64" if square == "96" else "runs/small_96"
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
  config.optim.first_cycle = 0  # one cosine over the run, however long it is
  config.optim.warmup = 200 if first else 50
  config.log_every = 20
  config.eval_every = 500 if first else 200
  config.eval_pairs = 128
  config.panel_every = config.eval_every
  config.checkpoint_every = config.eval_every
  return config
