"""Fine-tunes the released SegGPT ViT-Large to find small objects in large images.

seggpt convert seggpt_vit_large.pth weights/vit_large
seggpt train --config defects --workdir runs/mine --config.data.path=DATASET --config.data.num_classes=6
"""

from ml_collections import ConfigDict

from seggpt_jax.training.config import default_config


def get_config() -> ConfigDict:
  config = default_config()
  config.model.init_from = "weights/vit_large"
  config.data.labels = "index"
  config.data.palette = "fixed"
  config.data.zoom = -1.0  # measured
  config.data.lower_half_share = 1.0
  config.data.scale = (0.8, 1.25)
  config.data.foreground_crop = 0.7
  config.data.color = (0.2, 0.2, 0.1)
  config.data.cache_mb = 4000
  config.loss.smooth_l1 = 0.3
  config.loss.cross_entropy = 1.0
  config.loss.dice = 1.0
  config.loss.foreground = 0.05
  config.optim.decay_all = True
  config.eval_pairs = 256
  return config
