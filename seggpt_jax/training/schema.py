"""The schema of a training configuration: every key with its default, meaning, range and choices.

`config.default_config`, `config.check_config` and the help text of the command line are all made from `KEYS`. Values in
brackets after "original" are those of the original fine-tuning tool where it differs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

from seggpt_jax.data.augment import FLIPS
from seggpt_jax.data.read_ahead import MOST_WORKERS
from seggpt_jax.formats.labels import LABEL_MODES
from seggpt_jax.formats.recognize import KINDS, OUTLINES
from seggpt_jax.model.adapters import HEADS, LORA_TARGETS
from seggpt_jax.model.adapters import KINDS as ADAPTERS
from seggpt_jax.model.attention.dispatch import IMPLEMENTATIONS
from seggpt_jax.model.seggpt import Remat
from seggpt_jax.palette import PALETTE_MODES
from seggpt_jax.training.optimizer import OPTIMIZERS, SCHEDULES

Values = Mapping[str, Any]  # flat: {"data.source": "folder", ...}

_KINDS = {bool: "True or False", int: "an integer", float: "a finite number", str: "a string"}
_LONGEST_TEXT, _LONGEST_TUPLE = 4096, 10_000


class Condition(NamedTuple):
  """A condition on other keys, without which a key has no effect: in words, and a function of all values by key."""

  text: str
  holds: Callable[[Values], bool]


@dataclasses.dataclass(frozen=True)
class Key:
  """One key of the configuration."""

  name: str  # dotted name, such as "data.resize"
  default: Any  # value where a config file says nothing. A key counts as set when its value differs from this one
  meaning: str  # one line for the help text
  minimum: int | float | None = None  # smallest value allowed, of each entry for a tuple; None where there is no limit
  maximum: int | float | None = None  # largest value allowed, of each entry for a tuple; None where there is no limit
  choices: tuple[str, ...] = ()  # all values allowed; empty where the value is free
  when: tuple[Condition, ...] = ()  # conditions that must all hold, or the key has no effect and may not be set
  entries: tuple[Any, ...] = ()  # for a tuple, an example of each type that an entry may have

  @property
  def applies(self) -> str:
    """The conditions in words; empty for a key that always has an effect."""
    return ", ".join(condition.text for condition in self.when)

  @property
  def allowed(self) -> str:
    """The allowed values in words; empty where the value is free."""
    if self.choices:
      return f"one of {', '.join(self.choices)}"
    if self.minimum is None:
      return "" if self.maximum is None else f"at most {self.maximum}"
    if self.maximum is None:
      return f"at least {self.minimum}"
    # Nobody looks for a value near a limit of thousands, which only keeps out slips.
    small = self.maximum < 1000
    return f"{self.minimum} to {self.maximum}" if small else f"at least {self.minimum}, at most {self.maximum:,.15g}"

  def has_effect(self, values: Values) -> bool:
    """Returns whether the key has an effect with the other values, which are given by dotted key."""
    return all(condition.holds(values) for condition in self.when)

  def wrong_type(self, value: Any) -> str | None:
    """Returns what was expected of a value of another type than the default, or None for one of the right type."""
    if not isinstance(self.default, tuple):
      return None if _has_type(value, self.default) else _KINDS[type(self.default)]
    if (
      isinstance(value, list | tuple)
      and len(value) <= _LONGEST_TUPLE
      and all(any(_has_type(entry, example) for example in self.entries) for entry in value)
    ):
      return None
    kinds = " or ".join(_kind(example) for example in self.entries)
    return f"a list of at most {_LONGEST_TUPLE} entries, each {kinds}"

  def problem(self, value: Any) -> str | None:
    """Returns what was expected of a value that is not allowed, or None for one that is."""
    if self.choices:
      return None if value in self.choices else self.allowed
    if expected := self.wrong_type(value):
      return f"{expected}, {self.allowed}" if self.allowed else expected
    for each in _numbers(value):
      if not (self.minimum is None or each >= self.minimum) or not (self.maximum is None or each <= self.maximum):
        return self.allowed
    return None


def _has_type(value: Any, example: Any) -> bool:
  """Returns whether a value has the type of an example. Integers may stand for others; strings are printable."""
  if isinstance(example, tuple):
    return isinstance(value, list | tuple) and len(value) == len(example) and all(map(_has_type, value, example))
  if isinstance(example, bool) or isinstance(value, bool):
    return isinstance(example, bool) and isinstance(value, bool)
  if isinstance(example, float):
    # Integers beyond the range of a float would overflow.
    return isinstance(value, int | float) and abs(value) < 1e308 and math.isfinite(value)
  if isinstance(example, str):
    return isinstance(value, str) and len(value) <= _LONGEST_TEXT and "\0" not in value and len(value.splitlines()) < 2
  return isinstance(value, type(example))


def _kind(example: Any) -> str:
  """Returns the type of an example in words."""
  return f"{len(example)} integers" if isinstance(example, tuple) else _KINDS[type(example)]


def _numbers(value: Any) -> list[int | float]:
  """Returns the numbers in a value, of all entries of a tuple."""
  if isinstance(value, list | tuple):
    return [number for entry in value for number in _numbers(entry)]
  return [value] if isinstance(value, int | float) else []


def _with_value(key: str, *choices: Any) -> tuple[Condition]:
  """Returns the condition that another key has one of these values."""
  words = " or ".join(map(str, choices))
  return (Condition(f"with {key}={words}", lambda values: values[key] in choices),)


def _with_any(*keys: str) -> tuple[Condition]:
  """Returns the condition that one of several other keys is neither zero nor empty."""
  return (Condition(f"with {' or '.join(keys)}", lambda values: any(values[key] for key in keys)),)


def _without(key: str) -> tuple[Condition]:
  """Returns the condition that another key is zero or empty."""
  return (Condition(f"without {key}", lambda values: not values[key]),)


_STEPS = 10**9  # steps are counted in 32 bits
_VALUES = (0, (0, 0, 0))  # of label files: gray values or colors
_DECAY = 0.999999  # a moving average with a decay of 1 never moves

_LORA = _with_value("adapter.kind", "lora")
_SHOWS_PROMPTS = _with_value("adapter.kind", "none", "lora")
_RESIZES, _ZOOMS = _without("data.zoom"), _with_any("data.zoom")
_CHOOSES = (*_SHOWS_PROMPTS, *_RESIZES)
_TRACKERS = ("tensorboard", "wandb", "trackio", "none")
# COCO annotations are polygons: there are no label images.
_READS_LABELS = _with_value("data.source", "folder", "class_folders", "masks", "voc", "tfds")
_HIDES_AT_RANDOM = (Condition("with data.lower_half_share below 1", lambda v: v["data.lower_half_share"] < 1),)
# A single cycle as long as the run is what optim.schedule=cosine has anyway, so 0 does not contradict it.
_CYCLES = (
  Condition("with optim.schedule=cycles", lambda v: v["optim.schedule"] == "cycles" or not v["optim.first_cycle"]),
)

KEYS: tuple[Key, ...] = (
  # --------------------------------------------------------------------------------------------------------- the run
  Key("seed", 0, "Seed of initialization, data order, augmentation and drop path.", 0, 2**32 - 1),
  Key("num_steps", 6700, "Optimizer steps of the whole run; the default is two cosine cycles.", 1, _STEPS),
  Key("batch_size", 4, "Pairs in a step, over all devices (original: 4 on each device).", 1, 2**20),
  Key("accumulate", 1, "Micro-batches that a batch is computed in to save memory; the step stays the same.", 1, 2**20),
  # ----------------------------------------------------------------------------------------------------- the network
  Key("model.init_from", "", "Weights to start from: a path, packaged name or hf://OWNER/NAME; '' starts at random."),
  Key(
    "model.variant", "vit_large", "Network of a random start: vit_large, small, ...", when=_without("model.init_from")
  ),
  Key("model.square", 0, "Side S of prompt and query in pixels; 0 takes that of the weights or the variant.", 0, 4096),
  Key("model.drop_path_rate", 0.1, "Drop path rate of the last block; it rises linearly from 0 at the first.", 0, 0.99),
  Key("model.dtype", "auto", "Number format; auto: bfloat16 on accelerators.", choices=("auto", "float32", "bfloat16")),
  Key("model.remat", "full", "What the backward pass recomputes; dots keeps linear layers.", choices=get_args(Remat)),
  Key("model.attention", "auto", "Implementation; auto is the device's best.", choices=("auto", *IMPLEMENTATIONS)),
  # ---------------------------------------------------------------------------------------------- which data is read
  Key("data.source", "folder", "Form of the dataset; docs/data.md shows the folders.", choices=tuple(KINDS)),
  Key("data.path", "data", "Folder of the dataset, local, gs:// or s3://; it has {train,val}/{images,labels}."),
  Key("data.train_split", "train", "Part of the dataset to train on: a folder in data.path, or a TFDS split."),
  Key("data.val_split", "val", "Part of the dataset to validate with."),
  Key("data.num_train", -1, "Training images, the first by name; -1 is all (original: data_count).", -1, 10**9),
  Key("data.bad_share", 0.0, "Share of a split's files that may be bad, and are skipped; 0 stops at the first.", 0, 1),
  Key("data.cache_mb", 0, "Megabytes of decoded images to keep, in each process that reads; 0 keeps none.", 0, 10**7),
  # ------------------------------------------------------------------------------------------------ what labels mean
  Key("data.num_classes", 2, "Number of classes, background included.", 2, 255),
  Key(
    *("data.class_names", (), "Names of classes 1, 2, ...: the masks or categories to take; () takes all."),
    **{"when": _with_value("data.source", "masks", *OUTLINES), "entries": ("",)},
  ),
  Key("data.labels", "binary", "Meaning of label values; binary: above the threshold is class 1.", choices=LABEL_MODES),
  Key(
    "data.threshold",
    -1,
    "Largest background value, 127 for JPEG masks; -1 refuses masks of other than 0 and one more value.",
    *(-1, 255),
    when=(*_READS_LABELS, *_with_value("data.labels", "binary")),
  ),
  Key(
    *("data.table", (), "Values (0, 128, 255) or colors ((0, 0, 0), (255, 0, 0)) of classes 0, 1, ...", 0, 2**16 - 1),
    **{"when": (*_READS_LABELS, *_with_value("data.labels", "table")), "entries": _VALUES},
  ),
  Key(
    *("data.ignore", (), "Label values or colors that count neither in the loss nor in a score.", 0, 2**16 - 1),
    **{"when": _READS_LABELS, "entries": _VALUES},
  ),
  # ------------------------------------------------------------------------------------- which sample prompts which
  Key("data.groups", "", "Which prompt each other: prefix:SEP, folder, field:KEY, csv:FILE or classes; '' is all."),
  Key("data.same_class", 1.0, "Share of positive pairs with a class in common (original: 0).", 0, 1, when=_CHOOSES),
  Key(
    *("data.unanswerable", "background", "Rule for a class of the query that no prompt shows; the original keeps it."),
    **{"choices": ("background", "ignore", "keep"), "when": _SHOWS_PROMPTS},
  ),
  Key("data.negative", 0.0, "Share of pairs whose prompt shows what the query lacks: the answer is background.", 0, 1),
  Key("data.prompts", 1, "Prompts for each query, whose features are averaged; a step costs that much more.", 1, 1000),
  # --------------------------------------------------------------------------------------- what the network is given
  Key("data.palette", "random", "Colors of classes; black_background: random foreground.", choices=PALETTE_MODES),
  Key("data.mask_ratio", 0.75, "Share of patches that training hides; 0.4 fails.", 0.001, 1, when=_HIDES_AT_RANDOM),
  Key("data.lower_half_share", 0.0, "Share of training pairs that hide the whole query, as evaluation does.", 0, 1),
  Key("data.zoom", 0.0, "Factor from an image's pixels to the network's; 0 is off, -1 measures objects.", -1, 8),
  Key("data.prompt_grid", 0, "Cells along a side of a prompt; 0 is the fewest for all classes.", 0, 16, when=_ZOOMS),
  Key("data.resize", 1024, "Side of samples before the crop; 0 is the network's square.", 0, 8192, when=_RESIZES),
  Key("data.scale", (1.0, 1.0), "Smallest and largest random factor on that size.", 0.01, 10, entries=(0.0,)),
  Key("data.foreground_crop", 0.0, "Probability that the query's crop is placed on foreground.", 0, 1),
  Key("data.prompt_foreground", 1.0, "Share of prompts cropped to a class of the query.", 0, 1, when=_CHOOSES),
  Key("data.flips", "both", "Mirrors at random; turns: both, and right angles.", choices=FLIPS),
  Key(
    *("data.color", (0.1, 0.1, 0.1), "Brightness, contrast and saturation x: factors are drawn from 1 - x to 1 + x."),
    **{"minimum": 0, "maximum": 1, "entries": (0.0,)},
  ),
  Key("data.blur", 0.5, "Largest standard deviation of the Gaussian blur in pixels; drawn from 0 on.", 0, 100),
  Key("data.num_workers", 0, "Processes that read, up to four for each core; 0 reads in this one.", 0, MOST_WORKERS),
  # ----------------------------------------------------------------------------------------------------- the loss
  Key("loss.smooth_l1", 1.0, "Weight of the smooth L1 of the colors, the original's only loss.", 0, 1e6),
  Key("loss.cross_entropy", 0.0, "Weight of the cross-entropy of classes, by distances to their colors.", 0, 1e6),
  Key("loss.dice", 0.0, "Weight of the soft Dice loss of each canvas's foreground, of the same classes.", 0, 1e6),
  Key(
    *("loss.foreground", 0.0, "Least share of foreground in weights of pixels, up to 20; 0 is off.", 0, 0.99),
    when=_with_any("loss.smooth_l1", "loss.cross_entropy"),
  ),
  # ------------------------------------------------------------------------------------------- how weights change
  Key("optim.name", "adamw", "Optimizer; muon is for a start from random weights.", choices=tuple(OPTIMIZERS)),
  Key("optim.clip_norm", 0.0, "Global norm that larger gradients are scaled down to; 0 is off.", 0, 1e6),
  Key("optim.schedule", "cycles", "Learning rate: cosine cycles of halving peaks, or one cosine.", choices=SCHEDULES),
  Key("optim.peak", 1e-4, "Learning rate after the first warm-up; it falls to 1e-8.", 0, 100),
  Key("optim.warmup", 500, "Steps of linear warm-up; at most a tenth of the run with first_cycle=0.", 0, _STEPS),
  Key("optim.first_cycle", 5000, "Steps of the first cycle; 0 makes one as long as the run.", 0, _STEPS, when=_CYCLES),
  Key("optim.layer_decay", 1.0, "Factor on the rate from a block to the one below; 1 is off, BEiT has 0.65.", 0.01, 1),
  Key("optim.b2", 0.999, "Decay of the average of squared gradients.", 0, _DECAY),
  Key("optim.weight_decay", 0.01, "Decoupled: each step takes this times the learning rate off a parameter.", 0, 1000),
  Key("optim.decay_all", False, "Decay biases, norms, positions and tokens too (original: True)."),
  Key(
    *("optim.freeze", (), "Regular expressions; parameters whose names match one anywhere are not trained."),
    **{"when": _with_value("adapter.kind", "none"), "entries": ("",)},
  ),
  Key("optim.ema", 0.0, "Decay of a moving average of the parameters, which is kept as best; 0 is off.", 0, _DECAY),
  # -------------------------------------------------------------------------------------------------------- adapters
  Key("adapter.kind", "none", "What is trained; none is the whole network.", choices=("none", *ADAPTERS, *HEADS)),
  Key("adapter.rank", 8, "Rank of the update of each kernel.", 1, 2**16, when=_LORA),
  Key("adapter.alpha", 8.0, "Scale of the update, which is multiplied by alpha / rank.", 0.001, 1e6, when=_LORA),
  Key(
    *("adapter.targets", LORA_TARGETS, f"Kernels of each block to update, some of {', '.join(LORA_TARGETS)}."),
    **{"when": _LORA, "entries": ("",)},
  ),
  # --------------------------------------------------------------------------------------------------------- devices
  Key("mesh.data", -1, "Devices that each hold a copy of the parameters; -1 is all that mesh.fsdp leaves.", -1, 2**20),
  Key("mesh.fsdp", 1, "Devices that share one copy of the parameters.", 1, 2**20),
  # --------------------------------------------------------------------------------------------- records of the run
  Key("tracker", "tensorboard", "Also logs to this; tensorboard is a file in RUN.", choices=_TRACKERS),
  Key("log_every", 10, "Steps between lines in metrics.jsonl.", 1, _STEPS),
  Key("eval_every", 500, "Steps between evaluations, with panels of pairs; the original's is an epoch.", 1, _STEPS),
  Key("eval_pairs", 64, "Validation queries in an evaluation; -1 is all.", -1, _STEPS),
  Key("stop_after", 0, "Evaluations without a better mIoU after which the run ends; 0 is never.", 0, _STEPS),
  Key("profile_steps", 0, "Steps to profile into RUN/profile, after a few to warm up; 0 profiles no step.", 0, 1000),
  Key("checkpoint_every", 500, "Steps between checkpoints; the two newest are kept.", 1, _STEPS),
  Key("keep_every", 0, "Steps between checkpoints that are kept for good; 0 keeps no others.", 0, _STEPS),
)
