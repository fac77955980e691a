"""A slow and obvious SegGPT: PyTorch in float64, one query after another, straight from a BAAI state dict.

It is written from the description of the network. Tests use it as the reference where transformers cannot be one:
several queries in a batch, the feature ensemble, and canvases of another size than the stored one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name


def forward(
  state: dict[str, np.ndarray],
  images: np.ndarray,
  targets: np.ndarray,
  patch_mask: np.ndarray,
  *,
  merge_block: int,
  feature_taps: Sequence[int],
  seg_type: str = "semantic",
  prompts_per_query: int = 1,
) -> np.ndarray:
  """Predicts colors `[B, H, W, 3]` in float64."""
  weights = {name: torch.from_numpy(np.asarray(value, np.float64)) for name, value in state.items()}
  colors = []
  for first in range(0, len(images), prompts_per_query):
    prompts = slice(first, first + prompts_per_query)
    arrays = (torch.from_numpy(np.array(a[prompts], np.float64)) for a in (images, targets))
    mask = torch.from_numpy(np.array(patch_mask[prompts]))
    colors.append(_one_query(weights, *arrays, mask, merge_block, feature_taps, seg_type))
  return torch.cat(colors).numpy()


def _one_query(weights, images, targets, mask, merge_block, feature_taps, seg_type):
  """Predicts the colors of all canvases of one query, `[K, H, W, 3]`."""

  def embed(canvas):
    weight, bias = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    return F.conv2d(canvas.permute(0, 3, 1, 2), weight, bias, stride=weight.shape[-1]).permute(0, 2, 3, 1)

  x, y = embed(images), embed(targets)
  y = torch.where(mask[..., None], weights["mask_token"], y)
  x, y = x + weights["segment_token_x"], y + weights["segment_token_y"]
  posemb = weights["pos_embed"][0, 1:]
  side = int(len(posemb) ** 0.5)
  posemb = posemb.T.reshape(1, -1, side, side)
  posemb = F.interpolate(posemb, size=mask.shape[1:], mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
  type_token = weights["type_token_cls" if seg_type == "semantic" else "type_token_ins"]
  streams = [x + posemb + type_token, y + posemb + type_token]

  features = []
  depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
  for index in range(depth):
    streams = [_block(weights, f"blocks.{index}.", stream) for stream in streams]
    if index == merge_block:
      streams = [(streams[0] + streams[1]) / 2]
    if index in feature_taps:
      features.append(_layer_norm(weights, "norm", streams[0]))
  return _decode(weights, torch.cat(features, dim=-1))


def _linear(weights, name, x):
  return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _layer_norm(weights, name, x):
  return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6)


def _block(weights, block, x):
  """Runs one block on one stream; the query half of the attention output is averaged over the prompts."""
  attended = _attention(weights, f"{block}attn.", _layer_norm(weights, f"{block}norm1", x))
  half = x.shape[1] // 2
  attended[:, half:] = attended[:, half:].mean(dim=0)
  x = x + attended
  hidden = F.gelu(_linear(weights, f"{block}mlp.fc1", _layer_norm(weights, f"{block}norm2", x)))
  return x + _linear(weights, f"{block}mlp.fc2", hidden)


def _attention(weights, attn, x):
  canvases, rows, cols, width = x.shape
  dim = weights[f"{attn}rel_pos_h"].shape[1]
  qkv = _linear(weights, f"{attn}qkv", x).reshape(canvases, rows, cols, 3, width // dim, dim)
  query, key, value = qkv.unbind(3)
  table_h = _resized(weights[f"{attn}rel_pos_h"], rows)
  table_w = _resized(weights[f"{attn}rel_pos_w"], cols)
  output = torch.empty(canvases, rows, cols, width // dim, dim, dtype=x.dtype)
  distance_w = torch.arange(cols)[:, None] - torch.arange(cols) + cols - 1
  for row in range(rows):
    q = query[:, row]
    logits = torch.einsum("bcnd,bijnd->bncij", q, key) / dim**0.5
    logits += torch.einsum("bcnd,id->bnci", q, table_h[row - torch.arange(rows) + rows - 1])[..., :, None]
    logits += torch.einsum("bcnd,cjd->bncj", q, table_w[distance_w])[..., None, :]
    attention = logits.flatten(3).softmax(-1).reshape(logits.shape)
    output[:, row] = torch.einsum("bncij,bijnd->bcnd", attention, value)
  return _linear(weights, f"{attn}proj", output.flatten(3))


def _resized(rel_pos, size):
  return F.interpolate(rel_pos.T[None], size=2 * size - 1, mode="linear", align_corners=False)[0].T


def _decode(weights, features):
  """Decodes features: linear, pixel shuffle, 3x3 convolution, layer norm over channels, GELU, 1x1 convolution."""
  channels = weights["decoder_pred.0.weight"].shape[0]
  canvases, rows, cols, _ = features.shape
  values = _linear(weights, "decoder_embed", features)
  patch = int((values.shape[-1] // channels) ** 0.5)
  pixels = values.reshape(canvases, rows, cols, patch, patch, channels).permute(0, 5, 1, 3, 2, 4)
  pixels = pixels.reshape(canvases, channels, rows * patch, cols * patch)
  pixels = F.conv2d(pixels, weights["decoder_pred.0.weight"], weights["decoder_pred.0.bias"], padding=1)
  pixels = F.gelu(_layer_norm(weights, "decoder_pred.1", pixels.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
  return F.conv2d(pixels, weights["decoder_pred.3.weight"], weights["decoder_pred.3.bias"]).permute(0, 2, 3, 1)
