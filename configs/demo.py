"""The demo's run: the tiny SegGPT on synthetic boards with the classes board, copper and defect, from random weights.

python -m seggpt_jax.data.boards demo_run/boards_1500 --num_train 1500 --size 64 --scale 1.5 --most 2 --labels copper
python train.py --config configs/demo.py --workdir demo_run/run --config.data.path=demo_run/boards_1500
"""

from ml_collections import ConfigDict

from seggpt_jax.training.config import default_config


def get_config() -> ConfigDict:
  config = default_config()
  config.num_steps = 500
  config.batch_size = 16
  config.model.variant = "tiny"
  config.model.drop_path_rate = 0.0
  config.model.remat = False
  config.data.num_classes = 3
  config.data.labels = "index"
  # Painting the same colours every time needs no reading of the prompt: a few minutes of training reach no further.
  config.data.palette = "fixed"
  config.data.lower_half_share = 0.7
  config.data.resize = 0
  config.data.blur = 0.0
  config.optim.peak = 1e-3
  config.optim.first_cycle = 550
  config.optim.warmup = 30
  config.eval_every = 100
  config.eval_pairs = -1
  config.panel_every = 100
  config.checkpoint_every = 100
  return config
