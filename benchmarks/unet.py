"""A plain U-Net in PyTorch, trained from scratch: what people would otherwise use on labeled images of defects.

In: labeled images. Out: class probabilities of images at their own size. Four halvings, two 3x3 convolutions with batch
normalization at each level, cross-entropy plus soft Dice, AdamW with one cosine, flips and changes of light.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import nn
from torch.nn import functional

from seggpt_jax.data.augment import Augmentation, augment, random_appearance, random_flip
from seggpt_jax.data.sources import Sample
from seggpt_jax.formats.labels import IGNORE, classes_in, shrink_labels

LEVELS = 4
BATCH = 8
_CHANGES = Augmentation(flips="both", color=(0.2, 0.2, 0.0))


def _block(inputs: int, outputs: int) -> nn.Sequential:
  layers = []
  for channels in (inputs, outputs):
    layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
  return nn.Sequential(*layers)


class UNet(nn.Module):
  """The network of Ronneberger et al. (arXiv 1505.04597) with padding and batch normalization.

  Args:
    width: channels of the first level; each further level has twice as many.
    num_classes: number of classes, background included.
  """

  def __init__(self, width: int, num_classes: int):
    super().__init__()
    widths = [width * 2**level for level in range(LEVELS + 1)]
    self.down = nn.ModuleList([_block(i, o) for i, o in zip([3, *widths[:-1]], widths, strict=True)])
    self.up = nn.ModuleList([nn.ConvTranspose2d(widths[i + 1], widths[i], 2, 2) for i in range(LEVELS)])
    self.merge = nn.ModuleList([_block(2 * widths[i], widths[i]) for i in range(LEVELS)])
    self.head = nn.Conv2d(width, num_classes, 1)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    skipped = []
    for level, block in enumerate(self.down):
      x = block(x if level == 0 else functional.max_pool2d(x, 2))
      skipped.append(x)
    for level in reversed(range(LEVELS)):
      x = self.merge[level](torch.cat([self.up[level](x), skipped[level]], dim=1))
    return self.head(x)


def _tensor(image: UInt8[np.ndarray, "h w 3"]) -> torch.Tensor:
  return torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32) / 64 - 2)


def loss_of(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
  """Returns cross-entropy plus soft Dice, the mean over the foreground classes that the batch shows."""
  known = labels != IGNORE
  entropy = functional.cross_entropy(scores, labels, ignore_index=IGNORE)
  truth = functional.one_hot(torch.where(known, labels, 0), scores.shape[1]).movedim(-1, 1) * known[:, None]
  found = scores.softmax(dim=1) * known[:, None]
  common, both, area = ((values.sum((0, 2, 3)))[1:] for values in (found * truth, found + truth, truth))
  dice = 1 - (2 * common + 1) / (both + 1)
  return entropy + dice[area > 0].mean() if (area > 0).any() else entropy


def _at_size(sample: Sample, shape: tuple[int, int]) -> Sample:
  image = cv2.resize(sample["image"], shape[::-1], interpolation=cv2.INTER_AREA)
  return {**sample, "image": image, "label": shrink_labels(sample["label"], shape)}


def _area_shape(shape: tuple[int, ...], side: int) -> tuple[int, int]:
  """Returns the height and width with the area of a square of this side, which the network can halve."""
  factor, unit = side / math.sqrt(shape[0] * shape[1]), 2**LEVELS
  height, width = (max(unit, unit * round(length * factor / unit)) for length in shape[:2])
  return height, width


def train(
  samples: Sequence[Sample],
  num_classes: int,
  *,
  seconds: float,
  side: int,
  width: int,
  rate: float,
  seed: int,
  crop: int = 0,
  progress: Callable[[float], None] = lambda share: None,
) -> tuple[UNet, int]:
  """Trains a U-Net for a number of seconds.

  Half of the queries are drawn by class, each class and the background alone equally often.

  Args:
    samples: labeled images.
    num_classes: number of classes, background included.
    seconds: time to train, the preparation of the images included.
    side: images are resampled to the area of a square of this side.
    width: channels of the first level.
    rate: largest learning rate of AdamW.
    seed: seed of weights, order and augmentation.
    crop: side of the random crops to train on; 0 takes whole images, resized to a square.
    progress: called with the share of the time that has passed.

  Returns:
    The network and the number of steps.
  """
  start = time.monotonic()
  torch.manual_seed(seed)
  generator = np.random.default_rng(seed)
  ready = [_at_size(s, _area_shape(s["label"].shape, side) if crop else (side, side)) for s in samples]
  of_class: dict[int, list[int]] = {}
  for index, sample in enumerate(ready):
    for value in classes_in(sample["label"]) or (0,):
      of_class.setdefault(value, []).append(index)
  network = UNet(width, num_classes).to(memory_format=torch.channels_last)
  optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=1e-4)
  step = 0
  while (share := (time.monotonic() - start) / seconds) < 1:
    for group in optimizer.param_groups:
      group["lr"] = rate * min(1.0, (step + 1) / 50) * (1 + math.cos(math.pi * share)) / 2
    batch = [_draw(ready, of_class, crop, generator) for _ in range(BATCH)]
    images = torch.stack([_tensor(sample["image"]) for sample in batch]).contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(np.stack([sample["label"] for sample in batch]).astype(np.int64))
    optimizer.zero_grad()
    loss_of(network(images), labels).backward()
    optimizer.step()
    step += 1
    progress(min(share, 1.0))
  return network.eval(), step


def _draw(
  samples: Sequence[Sample], of_class: Mapping[int, Sequence[int]], crop: int, generator: np.random.Generator
) -> Sample:
  """Returns an augmented sample: every second one is drawn by class, with the crop on that class."""
  chosen = 0
  if generator.random() < 0.5:
    chosen = int(generator.choice(sorted(of_class)))
    sample = samples[int(generator.choice(of_class[chosen]))]
  else:
    sample = samples[int(generator.integers(len(samples)))]
  if crop:
    on_class = dataclasses.replace(_CHANGES, resize=None, foreground_crop=float(chosen > 0))
    return augment(sample, crop, generator, on_class, [chosen])
  return random_appearance(random_flip(sample, generator, _CHANGES), generator, _CHANGES)


def predict(network: UNet, image: UInt8[np.ndarray, "h w 3"], side: int, whole: bool) -> Float[np.ndarray, "n h w"]:
  """Returns class probabilities of an image at its own size.

  Args:
    network: the trained network.
    image: the image.
    side: as in training.
    whole: whether training saw whole images, resized to a square.
  """
  shape = (side, side) if whole else _area_shape(image.shape, side)
  small = cv2.resize(image, shape[::-1], interpolation=cv2.INTER_AREA)
  with torch.inference_mode():
    scores = network(_tensor(small)[None].contiguous(memory_format=torch.channels_last))
    large = functional.interpolate(scores, image.shape[:2], mode="bilinear", align_corners=False)
    return large.softmax(dim=1)[0].numpy()
