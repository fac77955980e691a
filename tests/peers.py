"""Pairs of equal networks: transformers' SegGPT with random parameters, and ours with the same parameters."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import SegGptConfig, SegGptForImageSegmentation

from seggpt_jax.model import parameters, torch_weights
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.training.loss import masked_smooth_l1

TINY = {
  # An 8 x 4 grid, with the merge after block 2 and four taps as in the release.
  "square": {
    "image_size": [64, 32],
    "patch_size": 8,
    "pretrain_image_size": 24,
    "hidden_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "mlp_dim": 96,
    "decoder_hidden_size": 8,
    "merge_index": 2,
    "intermediate_hidden_state_indices": [2, 3, 4, 5],
  },
  # A 6 x 3 grid of patches of 16, with 2 x 2 stored positions and two taps.
  "coarse": {
    "image_size": [96, 48],
    "patch_size": 16,
    "pretrain_image_size": 32,
    "hidden_size": 36,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "mlp_dim": 80,
    "decoder_hidden_size": 4,
    "merge_index": 1,
    "intermediate_hidden_state_indices": [1, 3],
  },
  # A 10 x 6 grid with 11 x 11 stored positions. Its halves are not square.
  "oblong": {
    "image_size": [80, 48],
    "patch_size": 8,
    "pretrain_image_size": 88,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "mlp_dim": 48,
    "decoder_hidden_size": 8,
    "merge_index": 0,
    "intermediate_hidden_state_indices": [0, 2],
  },
}


@dataclasses.dataclass(frozen=True, eq=False)
class Peers:
  """One network in two implementations.

  Attributes:
    theirs: transformers' model, in evaluation mode.
    config: our architecture, as the converter inferred it.
    params: our parameters, as the converter returned them.
  """

  theirs: SegGptForImageSegmentation
  config: SegGPTConfig
  params: dict[str, jax.Array]

  def forward(
    self, params, images, targets, patch_mask, dtype=jnp.float32, remat="none", attention="auto", scan=None, **call
  ):
    graph, _ = parameters.abstract(self.config, dtype=dtype, remat=remat, attention=attention, scan=scan)
    return parameters.merge(graph, params)(images, targets, patch_mask, **call)

  @functools.cache  # noqa: B019 - there are few peers, and the process is short
  def jitted(self, **options):
    """Returns `forward` compiled, as a function of (params, images, targets, patch_mask, **arrays)."""
    return jax.jit(functools.partial(self.forward, **options))

  @functools.cache  # noqa: B019
  def loss_and_gradients(self, **options):
    """Returns a compiled function of (params, images, targets, patch_mask, **arrays): ((loss, colors), gradients)."""

    def loss(params, images, targets, patch_mask, **arrays):
      colors = self.forward(params, images, targets, patch_mask, **options, **arrays)
      return masked_smooth_l1(colors, targets, patch_mask), colors

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def build(seed: int = 0, **theirs: Any) -> Peers:
  """Builds the pair for the given arguments of transformers' SegGptConfig."""
  model = SegGptForImageSegmentation(SegGptConfig(**theirs)).eval()
  randomize(model, seed)
  return convert(model)


def convert(model: SegGptForImageSegmentation) -> Peers:
  tensors = {name: value.numpy().copy() for name, value in model.state_dict().items()}
  hints = {"merge_block": model.config.merge_index, "feature_taps": model.config.intermediate_hidden_state_indices}
  conversion = torch_weights.from_torch("transformers", tensors, hints)
  params = {name: jnp.asarray(value) for name, value in conversion.params.items()}
  return Peers(model, conversion.config, params)


@torch.no_grad()
def randomize(model: torch.nn.Module, seed: int) -> None:
  """Sets random parameters: none is 0 or 1, attention is far from uniform, and outputs are O(1)."""
  generator = torch.Generator().manual_seed(seed)
  for name, parameter in model.named_parameters():
    noise = torch.empty_like(parameter).normal_(generator=generator)
    if "norm" in name and name.endswith("weight"):
      parameter.copy_(1 + 0.2 * noise)
    elif name.endswith("bias"):
      parameter.copy_(0.1 * noise)
    elif "rel_pos" in name:
      parameter.copy_(0.4 * noise)
    elif name.endswith("weight"):
      gain = 1.3 if "qkv" in name else 0.7
      parameter.copy_(gain * noise / parameter[0].numel() ** 0.5)
    else:  # tokens and position embedding
      parameter.copy_(0.5 * noise)


def canvases(config: SegGPTConfig, batch: int, seed: int = 0, canvas_size: tuple[int, int] | None = None):
  """Draws images, targets and a patch mask that hides about half of all patches."""
  generator = np.random.default_rng(seed)
  height, width = canvas_size or config.canvas_size
  images, targets = generator.standard_normal((2, batch, height, width, 3)).astype(np.float32)
  patch = config.patch_size
  return images, targets, generator.random((batch, height // patch, width // patch)) < 0.5


def channels_first(array: np.ndarray) -> torch.Tensor:
  return torch.from_numpy(np.array(array)).permute(0, 3, 1, 2)


def call_theirs(model: SegGptForImageSegmentation, images, targets, patch_mask, **call: Any):
  """Returns transformers' output for our inputs, with the loss of the targets."""
  x, y = channels_first(images), channels_first(targets)
  half = x.shape[2] // 2
  return model(
    pixel_values=x[:, :, half:],
    prompt_pixel_values=x[:, :, :half],
    prompt_masks=y[:, :, :half],
    labels=y[:, :, half:],
    bool_masked_pos=torch.from_numpy(np.array(patch_mask)).flatten(1),
    **call,
  )


def colors(output) -> np.ndarray:
  return output.pred_masks.detach().permute(0, 2, 3, 1).numpy()
