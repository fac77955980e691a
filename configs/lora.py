"""Trains a LoRA: small updates of the kernels of a frozen network.

  seggpt train --config lora --workdir runs/lora --config.data.path=DATASET
  seggpt infer --model-path weights/vit_large --adapter runs/lora --dataset-dir DATASET/val --outdir OUT \\
    --prompt-img-dir DATASET/train/images --prompt-label-dir DATASET/train/labels

`seggpt merge weights/vit_large runs/lora weights/mine` merges both into plain weights. On a laptop
add --config.model.init_from=small --config.data.resize=112.
"""

from ml_collections import ConfigDict

from seggpt_jax.training.config import default_config


def get_config() -> ConfigDict:
  config = default_config()
  config.num_steps = 1000
  config.model.init_from = "weights/vit_large"
  config.model.drop_path_rate = 0.0
  config.adapter.kind = "lora"
  config.adapter.rank = 8
  config.adapter.alpha = 8.0
  config.data.palette = "black_background"
  config.data.lower_half_share = 0.7
  config.optim.schedule = "cosine"
  config.optim.peak = 2e-3
  config.optim.warmup = 50
  config.optim.clip_norm = 1.0
  config.optim.weight_decay = 0.0
  config.eval_every = 250
  config.checkpoint_every = 250
  return config
