"""Fine-tunes the released SegGPT ViT-Large with the original fine-tuning tool's values.

  seggpt convert seggpt_vit_large.pth weights/vit_large
  seggpt train --config base --workdir runs/mine --config.data.path=DATASET

DATASET holds {train,val}/{images,labels}. seggpt_jax/training/schema.py explains every key.
"""

from ml_collections import ConfigDict

from seggpt_jax.training.config import default_config


def get_config() -> ConfigDict:
  config = default_config()
  config.model.init_from = "weights/vit_large"
  config.data.path = "data"
  # It learns a dataset sooner than random colors for all classes and, unlike a fixed palette, keeps reading the prompt
  # (measured at small scale, docs/small.md).
  config.data.palette = "black_background"
  config.optim.decay_all = True
  return config
