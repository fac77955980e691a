"""Fine-tunes the packaged small SegGPT on synthetic boards with the classes board and copper, for the demo.

seggpt boards demo_run/boards --num-train 400 --size 96 --scale 2 --most 2 --labels etched
seggpt train --config demo --workdir demo_run/run --config.data.path=demo_run/boards
"""

from ml_collections import ConfigDict

from seggpt_jax.training.config import default_config


def get_config() -> ConfigDict:
  config = default_config()
  config.num_steps = 200
  config.batch_size = 8
  config.model.init_from = "drawn"
  config.model.square = 96  # a step takes half of the time of one at the weights' own 128 pixels
  config.model.drop_path_rate = 0.0
  config.model.remat = "none"
  config.data.num_classes = 2
  config.data.labels = "index"
  config.data.palette = "black_background"
  config.data.lower_half_share = 0.7
  config.data.resize = 0
  config.data.blur = 0.0
  config.optim.name = "muon"
  config.optim.decay_all = True
  config.optim.peak = 1.5e-3
  config.optim.first_cycle = 0  # one cosine over the run, however long it is
  config.optim.warmup = 20
  config.eval_every = 100
  config.eval_pairs = 32
  config.checkpoint_every = 100
  return config
