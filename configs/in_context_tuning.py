"""Learns a prompt: an image and its target for one task, in front of a frozen network (arXiv 2304.03284, section 3.3).

  seggpt train --config in_context_tuning --workdir runs/prompt --config.data.path=DATASET
  seggpt infer --model-path weights/vit_large --adapter runs/prompt --dataset-dir DATASET/val --outdir OUT

On a laptop add --config.model.init_from=small --config.data.resize=112.
"""

from ml_collections import ConfigDict

from seggpt_jax.training.config import default_config


def get_config() -> ConfigDict:
  config = default_config()
  config.num_steps = 1000
  config.model.init_from = "weights/vit_large"
  config.model.drop_path_rate = 0.0
  config.adapter.kind = "prompt"
  # A learned prompt has one palette, and its queries are hidden as at inference.
  config.data.palette = "fixed"
  config.data.lower_half_share = 1.0
  config.optim.schedule = "cosine"
  config.optim.peak = 3e-2
  config.optim.warmup = 50
  config.optim.weight_decay = 0.0
  config.eval_every = 250
  config.checkpoint_every = 250
  return config
