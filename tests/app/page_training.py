"""A training run of the tiny network of the tests, as the page starts it: `--config tests/app/page_training.py`."""

from ml_collections import ConfigDict

from seggpt_jax.training.config import default_config


def get_config() -> ConfigDict:
  """Returns the configuration."""
  config = default_config()
  config.batch_size = 2
  config.model.remat = "none"
  config.data.labels = "index"
  config.data.resize = 40
  config.optim.peak, config.optim.first_cycle, config.optim.warmup = 1e-2, 1000, 0
  config.eval_pairs = 2
  return config
