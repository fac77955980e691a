"""The architecture of a SegGPT as data, without options of how it is run."""

from __future__ import annotations

import dataclasses
from typing import Any

from seggpt_jax.canvas import IMAGENET_MEAN, IMAGENET_STD, grid_size

BACKBONES = ("efficientnet_lite0",)
# Largest values; those of other attributes are 65,536.
_MOST = {"depth": 1000, "num_heads": 1024, "patch_size": 1024, "drop_path_rate": 1, "image_mean": 100, "image_std": 100}
_MOST |= {"head_classes": 255, "head_side": 4096}
_MAY_BE_ZERO = (
  *("merge_block", "feature_taps", "drop_path_rate", "image_mean", "image_std", "head_classes", "head_side"),
)


@dataclasses.dataclass(frozen=True)
class SegGPTConfig:
  """Architecture of a SegGPT; the defaults are the released ViT-Large.

  Attributes:
    canvas_size: height and width of a canvas in pixels; the relative positions are stored for this size.
    patch_size: side of a patch in pixels.
    posemb_size: side of the grid of the stored position embedding, which also has a class token that is never used.
    width: channels of a token.
    depth: number of blocks.
    num_heads: attention heads.
    mlp_dim: hidden width of the MLP.
    merge_block: the block after which image and target streams are averaged into one.
    feature_taps: blocks whose outputs are concatenated for the decoder.
    decoder_dim: channels of the decoder at full resolution.
    drop_path_rate: drop path rate of the last block; the rate rises linearly from 0 at the first block.
    image_mean: channel means of images and colored targets, where 1.0 stands for 255.
    image_std: channel standard deviations, in the same unit.
    backbone: name of the frozen ImageNet features that a `Matcher` compares, one of `BACKBONES`; "" for a SegGPT, which
      has none.
    head_classes: number of classes, background included, that a trained `PixelHead` tells apart; 0 without one.
    head_side: side in pixels of the squares that it sees; 0 without one.
  """

  canvas_size: tuple[int, int] = (896, 448)
  patch_size: int = 16
  posemb_size: int = 14
  width: int = 1024
  depth: int = 24
  num_heads: int = 16
  mlp_dim: int = 4096
  merge_block: int = 2
  feature_taps: tuple[int, ...] = (5, 11, 17, 23)
  decoder_dim: int = 64
  drop_path_rate: float = 0.1
  image_mean: tuple[float, float, float] = IMAGENET_MEAN
  image_std: tuple[float, float, float] = IMAGENET_STD
  backbone: str = ""
  head_classes: int = 0
  head_side: int = 0

  def __post_init__(self):
    # Values may come from a file. They are checked before anything of their size is allocated.
    for field in dataclasses.fields(self):
      _check(field.name, getattr(self, field.name), field.default)
    if min(self.image_std) <= 0:
      raise ValueError(f"image_std: found {self.image_std}, expected numbers above 0")
    grid_size(self.canvas_size, self.patch_size)
    if self.backbone:
      self._check_matcher()
    elif self.head_classes:
      raise ValueError(f"head_classes: found {self.head_classes} without a backbone, expected 0")
    if self.width % self.num_heads:
      raise ValueError(f"width: found {self.width}, expected a multiple of num_heads = {self.num_heads}")
    if not 0 <= self.merge_block <= min(self.feature_taps) or max(self.feature_taps) >= self.depth:
      raise ValueError(
        f"merge_block {self.merge_block} and feature_taps {self.feature_taps}: expected 0 <= merge_block <= every "
        f"tap < depth = {self.depth}"
      )

  def _check_matcher(self) -> None:
    """Checks what only a `Matcher` asks for."""
    if self.backbone not in BACKBONES:
      raise ValueError(f"backbone: found {self.backbone!r}, expected one of {', '.join(BACKBONES)}, or ''")
    if self.patch_size != 8:
      raise ValueError(f"patch_size: found {self.patch_size} with a backbone, expected 8")
    height, width = self.canvas_size
    if height % 32 or width % 16:
      raise ValueError(f"canvas_size: found {height} x {width} with a backbone, expected multiples of 32 and 16")
    if bool(self.head_classes) != bool(self.head_side) or self.head_classes == 1 or self.head_side % 16:
      raise ValueError(
        f"head_classes, head_side: found {self.head_classes} and {self.head_side}, expected at least 2 classes and a "
        "multiple of 16, or 0 and 0"
      )

  @property
  def grid(self) -> tuple[int, int]:
    """Rows and columns of patches on the canvas."""
    return grid_size(self.canvas_size, self.patch_size)

  @property
  def head_dim(self) -> int:
    """Channels of an attention head."""
    return self.width // self.num_heads

  def to_dict(self) -> dict[str, Any]:
    """Returns the attributes as plain values for JSON."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

  @classmethod
  def from_dict(cls, values: dict[str, Any]) -> SegGPTConfig:
    """Inverts `to_dict`.

    Raises:
      ValueError: a key is not an attribute of the configuration, or the values contradict each other.
    """
    if not isinstance(values, dict):
      raise ValueError(f"model config: found a {type(values).__name__}, expected an object")
    known = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
      raise ValueError(f"model config: found unknown key {unknown[0]!r}, expected only {', '.join(sorted(known))}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})  # JSON has lists only


def _check(name: str, value: Any, example: Any) -> None:
  """Checks the type and range of an attribute."""
  if isinstance(example, str):
    if not isinstance(value, str):
      raise ValueError(f"{name}: found {str(value)[:100]!r}, expected a string")
  elif isinstance(example, tuple):
    same_length = name == "feature_taps" or (isinstance(value, tuple) and len(value) == len(example))
    if not isinstance(value, tuple) or not value or not same_length:
      raise ValueError(f"{name}: found {str(value)[:100]}, expected {len(example)} numbers")
    for each in value:
      _check(name, each, example[0])
  elif isinstance(value, bool) or not isinstance(value, int if isinstance(example, int) else int | float):
    raise ValueError(
      f"{name}: found {str(value)[:100]!r}, expected {'an integer' if isinstance(example, int) else 'a number'}"
    )
  else:
    least = 0 if name in _MAY_BE_ZERO else 1
    if not least <= value <= _MOST.get(name, 2**16):
      raise ValueError(f"{name}: found {value}, expected {least}..{_MOST.get(name, 2**16)}")


VARIANTS: dict[str, SegGPTConfig] = {
  # seggpt_vit_large_patch16_input896x448: the released weights, 370.7 M parameters.
  "vit_large": SegGPTConfig(),
  # 1.1 M parameters, for tests.
  "tiny": SegGPTConfig(
    **{"canvas_size": (128, 64), "patch_size": 8, "posemb_size": 8, "width": 96, "depth": 6, "num_heads": 4},
    **{"mlp_dim": 384, "merge_block": 1, "feature_taps": (1, 2, 4, 5), "decoder_dim": 16, "drop_path_rate": 0.0},
  ),
  # 1.8 M parameters, of which 0.7 M are frozen ImageNet features: the weights that come with the package.
  "small": SegGPTConfig(
    **{"canvas_size": (384, 192), "patch_size": 8, "posemb_size": 1, "width": 160, "depth": 4, "num_heads": 5},
    **{"mlp_dim": 320, "merge_block": 0, "feature_taps": (0, 3), "decoder_dim": 48, "drop_path_rate": 0.0},
    backbone="efficientnet_lite0",
  ),
  # 3.2 M parameters: a SegGPT of the released network's design, pretrained on drawings alone.
  "drawn": SegGPTConfig(
    **{"canvas_size": (192, 96), "patch_size": 8, "posemb_size": 8, "width": 160, "depth": 8, "num_heads": 5},
    **{"mlp_dim": 640, "merge_block": 1, "feature_taps": (1, 3, 5, 7), "decoder_dim": 16, "drop_path_rate": 0.0},
  ),
}
