"""Every value a training run is made of, with what it means and what the original fine-tuning tool has.

The files in configs/ start from this and change what differs; `--config.KEY=VALUE` changes single values.
"""

from __future__ import annotations

import difflib
import functools
import math
from typing import get_args

from ml_collections import ConfigDict

from seggpt_jax.data.augment import RESIZE_MODES
from seggpt_jax.data.datasets import KINDS
from seggpt_jax.data.labels import LABEL_MODES
from seggpt_jax.data.pipeline import BAD_FILES
from seggpt_jax.errors import InputError, naming
from seggpt_jax.model.adapters import KINDS as ADAPTERS
from seggpt_jax.model.adapters import LORA_TARGETS, Adapter, LearnedPrompt, LoRA
from seggpt_jax.model.attention.dispatch import IMPLEMENTATIONS
from seggpt_jax.model.seggpt import Remat
from seggpt_jax.palette import PALETTE_MODES
from seggpt_jax.training.optimizer import OPTIMIZERS, SCHEDULES


def default_config() -> ConfigDict:
  """The original's values where it has them."""
  config = ConfigDict()
  config.seed = 0  # of initialization, data order, augmentation and drop path
  config.num_steps = 6700  # optimizer steps; two cosine cycles
  config.batch_size = 4  # pairs in a step over all devices (original: 4 on each)
  config.accumulate = 1  # parts a batch is computed in one after the other, to save memory; the step is the same

  config.model = model = ConfigDict()
  model.init_from = ""  # weights directory or training run to start from; "" starts from random weights
  model.variant = "vit_large"  # architecture of a random start: vit_large, small, tiny
  model.square = 0  # side S of prompt and query in pixels; 0 is what the weights or the variant have
  model.image_mean = ()  # channel means of images and colored targets, 1.0 = 255; () is what the weights have
  model.image_std = ()  # standard deviations, likewise
  model.drop_path_rate = 0.1  # of the last block, rising linearly from 0
  model.dtype = "auto"  # what is computed in: float32, bfloat16; auto is bfloat16 on accelerators
  model.remat = "full"  # of each block, computed anew in the backward pass: full, dots (not the linear layers) or none
  model.attention = "auto"  # implementation, of model/attention.py; auto is the best for the device

  config.data = data = ConfigDict()
  # what is read; docs/data.md has pictures of the folders
  data.source = "folder"  # folder, class_folders, masks, coco, tfds; or tasks: drawn at random, to pretrain on
  data.ramp = 0  # for tasks: steps until they may be of any difficulty
  data.path = "data"  # the dataset's folder, for source=folder with {train,val}/{images,labels}; gs:// and s3:// too
  data.train_split = "train"  # name of the part to train on: a folder in the path, a TFDS split
  data.val_split = "val"  # name of the part to validate with
  data.num_train = -1  # use only so many training images, first by name; -1 is all (original: data_count)
  data.image_key = "image"  # for tfds: the feature that holds the image
  data.label_key = "segmentation_mask"  # for tfds: the feature that holds the label
  data.bad_files = "error"  # a file that cannot be read: error stops and names it, skip passes over it and counts
  data.bad_share = 0.01  # for skip: share of the training images that may be bad before the run stops all the same
  data.cache_mb = 0  # MB of decoded images to keep in each process that reads; 0 is none
  # what labels mean
  data.num_classes = 2  # background included
  data.class_names = ()  # of classes 1, 2, ...: which masks or COCO categories to take; () takes all
  data.labels = "binary"  # binary (above the threshold is class 1), index, or table (the table's i-th is class i)
  data.threshold = 0  # for binary; JPEG masks hold noise near 0 and 255 and want 127
  data.table = ()  # for table: values (0, 128, 255), or colors ((0, 0, 0), (255, 0, 0))
  data.ignore = ()  # values or colors of labels that count neither in the loss nor in a score
  # which sample prompts which
  data.groups = ""  # prefix:SEPARATOR, folder, field:KEY, csv:FILE or classes; "" makes one group of all
  data.same_group = 1.0  # share of positive pairs whose prompt is of the query's group
  data.same_class = 0.0  # share of positive pairs whose prompt holds a class of the query's
  data.negative = 0.0  # share of pairs whose prompt shows a class that the query lacks: the answer is background
  data.balanced = False  # draw queries by class, each class equally often, instead of each image once an epoch
  data.prompts = 1  # prompts for each query, whose features are averaged: a step costs so many times as much
  # what the network is given
  data.palette = "random"  # random (all classes), black_background (random foreground) or fixed
  data.mask_ratio = 0.75  # share of all patches hidden in training; 0.4 was found to fail
  data.lower_half_share = 0.0  # share of training pairs that hide the query's half instead, as evaluation does
  data.resize = 1024  # side samples are resized to before a random crop of the square; 0 resizes to the square
  data.resize_mode = "fixed"  # fixed: to a square, whatever the shape; shorter: the shorter side, shape kept
  data.scale = (1.0, 1.0)  # least and most random factor on that size
  data.foreground_crop = 0.0  # probability that the crop is placed where foreground is
  data.flip_horizontal = True
  data.flip_vertical = True
  data.rotate90 = False  # turns by 0, 90, 180 or 270 degrees
  data.brightness = 0.1  # factor drawn from 1 - b .. 1 + b
  data.contrast = 0.1
  data.saturation = 0.1
  data.hue = 0.0  # shift drawn from -h..h of the color circle
  data.blur = 0.5  # Gaussian standard deviation in pixels, drawn from 0..blur
  data.noise = 0.0  # standard deviation of noise in gray levels, drawn from 0..noise
  data.jpeg_quality = 100  # quality of compression drawn from q..100; 100 is none
  data.num_threads = -1  # reading and transforming ahead, in each process; -1 is one for each core, 16 at most
  data.num_workers = 0  # worker processes; 0 reads in the training process

  config.optim = optim = ConfigDict()
  optim.name = "adamw"  # adamw, or muon for a start from random weights
  optim.clip_norm = 0.0  # gradients are scaled down to this global norm; 0 is off
  optim.schedule = "cycles"  # of the learning rate: cycles of cosines, or cosine: one that ends with the run
  optim.peak = 1e-4  # learning rate after the first warm-up
  optim.minimum = 1e-8  # at both ends of a cosine
  optim.warmup = 500  # steps of linear warm-up before each cosine
  optim.first_cycle = 5000  # for cycles: steps of the first, warm-up included
  optim.cycle_mult = 1.2  # for cycles: growth of the part after the warm-up from one to the next
  optim.decay = 0.5  # for cycles: factor on the peak from one to the next
  optim.layer_decay = 1.0  # factor on the learning rate from a block to the one below it; 1 is off, BEiT and MAE 0.65
  optim.b1 = 0.9
  optim.b2 = 0.999
  optim.weight_decay = 0.01  # decoupled: each step takes this times the learning rate off a parameter
  optim.decay_all = False  # decay biases, norms, positions and tokens too (original: True)
  optim.freeze = ()  # regular expressions; parameters in whose names one is found are not trained
  optim.ema = 0.0  # decay of an average of the parameters, which is what is evaluated and kept as best; 0 is none

  config.adapter = adapter = ConfigDict()
  adapter.kind = "none"  # what is trained beside a frozen network: none (all of it), lora, or prompt: a learned one
  adapter.rank = 8  # for lora: of the update of each kernel
  adapter.alpha = 8.0  # for lora: the update is scaled by alpha / rank
  adapter.targets = LORA_TARGETS  # for lora: which kernels of each block

  config.mesh = mesh = ConfigDict()
  mesh.data = -1  # devices that hold copies of the parameters; -1 is all that fsdp leaves
  mesh.fsdp = 1  # devices that share one copy

  config.log_every = 10  # steps between lines in metrics.jsonl
  config.eval_every = 500  # steps between evaluations on the val folder (original: once an epoch)
  config.eval_pairs = 64  # validation queries in an evaluation; -1 is all
  config.stop_after = 0  # evaluations without a better mIoU after which the run ends; 0 is never
  config.profile_steps = 0  # steps to trace into RUN/profile, after a few to warm up; 0 is none
  config.panel_every = 100  # steps between panels of training pairs (original: 5); 0 is never
  config.checkpoint_every = 500  # steps between checkpoints
  config.keep_checkpoints = 2  # the newest so many are kept
  config.keep_every = 0  # so many steps apart one is kept for good; 0 is none
  return config


# Least and most, both allowed.
_RANGES = {
  "seed": (0, 2**32 - 1),
  "num_steps": (1, math.inf),
  "batch_size": (1, math.inf),
  "accumulate": (1, math.inf),
  "model.square": (0, math.inf),
  "model.drop_path_rate": (0, 0.99),
  "data.ramp": (0, math.inf),
  "data.num_classes": (2, 255),
  "data.threshold": (0, 255),
  "data.num_train": (-1, math.inf),
  "data.mask_ratio": (0.001, 1),
  "data.lower_half_share": (0, 1),
  "data.resize": (0, math.inf),
  "data.brightness": (0, 1),
  "data.contrast": (0, 1),
  "data.saturation": (0, 1),
  "data.bad_share": (0, 1),
  "data.cache_mb": (0, math.inf),
  "data.same_group": (0, 1),
  "data.same_class": (0, 1),
  "data.negative": (0, 1),
  "data.prompts": (1, math.inf),
  "data.foreground_crop": (0, 1),
  "data.hue": (0, 0.5),
  "data.blur": (0, math.inf),
  "data.noise": (0, 255),
  "data.jpeg_quality": (1, 100),
  "data.num_threads": (-1, math.inf),
  "data.num_workers": (0, math.inf),
  "optim.clip_norm": (0, math.inf),
  "optim.peak": (0, math.inf),
  "optim.minimum": (0, math.inf),
  "optim.cycle_mult": (1, math.inf),
  "optim.warmup": (0, math.inf),
  "optim.decay": (0, 1),
  "optim.layer_decay": (0.01, 1),
  "optim.b1": (0, 1),
  "optim.b2": (0, 1),
  "optim.weight_decay": (0, math.inf),
  "optim.ema": (0, 0.999999),
  "adapter.rank": (1, math.inf),
  "adapter.alpha": (0.001, math.inf),
  "mesh.data": (-1, math.inf),
  "mesh.fsdp": (1, math.inf),
  "log_every": (1, math.inf),
  "eval_every": (1, math.inf),
  "eval_pairs": (-1, math.inf),
  "panel_every": (0, math.inf),
  "stop_after": (0, math.inf),
  "profile_steps": (0, math.inf),
  "checkpoint_every": (1, math.inf),
  "keep_checkpoints": (1, math.inf),
  "keep_every": (0, math.inf),
}


def check_config(config: ConfigDict) -> None:
  """Refuses a configuration that `default_config` does not know, or whose values cannot be meant.

  Raises:
    InputError: names the key, what was found and what was expected.
  """
  _check_keys(config, default_config(), "config")
  one_of = {
    "data.source": (*KINDS, "tasks"),
    "data.resize_mode": RESIZE_MODES,
    "data.bad_files": BAD_FILES,
    "data.palette": PALETTE_MODES,
    "data.labels": LABEL_MODES,
    "optim.name": tuple(OPTIMIZERS),
    "optim.schedule": tuple(SCHEDULES),
    "adapter.kind": ("none", *ADAPTERS),
    "model.dtype": ("auto", "float32", "bfloat16"),
    "model.attention": ("auto", *IMPLEMENTATIONS),
    "model.remat": get_args(Remat),
  }
  for key, allowed in one_of.items():
    group, name = key.split(".")
    if config[group][name] not in allowed:
      raise InputError(f"config.{key}: found {config[group][name]!r}, expected one of {', '.join(allowed)}")
  for key, (least, most) in _RANGES.items():
    value = functools.reduce(lambda group, name: group[name], key.split("."), config)
    if not least <= value <= most:
      expected = f"at least {least}" if most == math.inf else f"{least} to {most}"
      raise InputError(f"config.{key}: found {value}, expected {expected}")
  if config.keep_every % config.checkpoint_every:
    raise InputError(
      f"config.keep_every: found {config.keep_every}, expected 0 or a multiple of "
      f"config.checkpoint_every={config.checkpoint_every}"
    )
  if config.eval_pairs == 0:
    raise InputError("config.eval_pairs: found 0, expected at least 1, or -1 for all")
  low, high = config.data.scale if len(config.data.scale) == 2 else (0, 0)
  if not 0 < low <= high:
    raise InputError(f"config.data.scale: found {config.data.scale}, expected two factors, the smaller first")
  for name in ("image_mean", "image_std"):
    if len(config.model[name]) not in (0, 3):
      raise InputError(f"config.model.{name}: found {config.model[name]}, expected three numbers or ()")


def _check_keys(config: ConfigDict, known: ConfigDict, where: str) -> None:
  for key in config:
    if key not in known:
      near = difflib.get_close_matches(key, known, n=3) or sorted(known)
      raise InputError(f"{where}.{key}: unknown key, expected one of {', '.join(near)}")
  for key, default in known.items():
    if key not in config:
      raise InputError(f"{where}.{key}: missing, expected a {type(default).__name__}")
    if isinstance(default, ConfigDict):
      _check_keys(config[key], default, f"{where}.{key}")


def adapter_of(config: ConfigDict) -> Adapter | None:
  """The adapter that config.adapter describes, if any.

  Raises:
    InputError: other values of the configuration do not go with it; names the key.
  """
  kind = config.adapter.kind
  if kind == "none":
    return None
  if not config.model.init_from:
    raise InputError("config.model.init_from: found '', expected weights for an adapter to go with")
  if config.optim.freeze:
    raise InputError(f"config.optim.freeze: found {config.optim.freeze}, expected () with an adapter: all is frozen")
  if config.optim.name != "adamw":
    raise InputError(
      f"config.optim.name: found {config.optim.name}, expected adamw with an adapter: it has no matrices of features"
    )
  if kind == "lora":
    # On a command line the names come as one text with commas.
    targets = tuple(name.strip() for text in config.adapter.targets for name in text.split(","))
    with naming("config.adapter"):
      return LoRA(config.adapter.rank, float(config.adapter.alpha), targets)
  # A learned prompt answers with colors of its own, to queries that are hidden as at inference.
  for key, expected in (("palette", "fixed"), ("lower_half_share", 1.0), ("prompts", 1), ("negative", 0.0)):
    if config.data[key] != expected:
      raise InputError(f"config.data.{key}: found {config.data[key]}, expected {expected} with adapter.kind=prompt")
  return LearnedPrompt()
