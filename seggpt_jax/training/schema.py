"""The schema of a training configuration: every key with its default, meaning, range and choices.

`config.default_config`, `config.check_config` and the help text of the command line are all made from `KEYS`. Values in
brackets after "original" are those of the original fine-tuning tool where it differs.
"""

from __future__ import annotations

from typing import get_args

from seggpt_jax.data.augment import FLIPS
from seggpt_jax.data.read_ahead import MOST_WORKERS
from seggpt_jax.formats.labels import LABEL_MODES
from seggpt_jax.formats.recognize import KINDS, OUTLINES
from seggpt_jax.model.adapters import KINDS as ADAPTERS
from seggpt_jax.model.adapters import LORA_TARGETS
from seggpt_jax.model.attention.dispatch import IMPLEMENTATIONS
from seggpt_jax.model.seggpt import Remat
from seggpt_jax.palette import PALETTE_MODES
from seggpt_jax.training.keys import Condition, Key, with_any, with_value, without
from seggpt_jax.training.optimizer import OPTIMIZERS, SCHEDULES

_STEPS = 10**9  # steps are counted in 32 bits
_VALUES = (0, (0, 0, 0))  # of label files: gray values or colors
_DECAY = 0.999999  # a moving average with a decay of 1 never moves

_SHOWS_PROMPTS = with_value("adapter.kind", "none", "lora")
_RESIZES = without("data.zoom")
_ZOOMS = with_any("data.zoom")
# COCO annotations are polygons: there are no label images.
_READS_LABELS = with_value("data.source", "folder", "class_folders", "masks", "voc", "tfds")
_READS_PIXELS = with_any("loss.smooth_l1", "loss.cross_entropy")
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
  Key(
    "accumulate",
    1,
    "Micro-batches that a batch is computed in, one after the other, to save memory; the step stays the same.",
    1,
    2**20,
  ),
  # ----------------------------------------------------------------------------------------------------- the network
  Key("model.init_from", "", "Weights to start from: a path, packaged name or hf://OWNER/NAME; '' starts at random."),
  Key(
    "model.variant",
    "vit_large",
    "Architecture of a random start: vit_large, small or tiny.",
    conditions=without("model.init_from"),
  ),
  Key("model.square", 0, "Side S of prompt and query in pixels; 0 takes that of the weights or the variant.", 0, 4096),
  Key("model.drop_path_rate", 0.1, "Drop path rate of the last block; it rises linearly from 0 at the first.", 0, 0.99),
  Key(
    "model.dtype",
    "auto",
    "Number format of the computation; auto is bfloat16 on accelerators and float32 on CPUs.",
    choices=("auto", "float32", "bfloat16"),
  ),
  Key(
    "model.remat",
    "full",
    "Parts of each block that the backward pass recomputes: full, dots (all but the linear layers) or none.",
    choices=get_args(Remat),
  ),
  Key(
    "model.attention",
    "auto",
    "Implementation of attention; auto is the best one for the device.",
    choices=("auto", *IMPLEMENTATIONS),
  ),
  # ---------------------------------------------------------------------------------------------- which data is read
  Key("data.source", "folder", "Form of the dataset; docs/data.md shows the folders.", choices=tuple(KINDS)),
  Key(
    "data.path",
    "data",
    "Folder of the dataset, with {train,val}/{images,labels} for source=folder; gs:// and s3:// work too.",
  ),
  Key("data.train_split", "train", "Part of the dataset to train on: a folder in data.path, or a TFDS split."),
  Key("data.val_split", "val", "Part of the dataset to validate with."),
  Key(
    "data.num_train",
    -1,
    "Number of training images to use, the first by name; -1 uses all (original: data_count).",
    -1,
    10**9,
  ),
  Key(
    "data.bad_share",
    0.0,
    "Share of a split's files that may be unreadable or without a partner and are skipped; 0 stops at the first.",
    0,
    1,
  ),
  Key(
    "data.cache_mb",
    0,
    "Megabytes of decoded images to keep in memory, in each process that reads; 0 keeps none.",
    0,
    10**7,
  ),
  # ------------------------------------------------------------------------------------------------ what labels mean
  Key("data.num_classes", 2, "Number of classes, background included.", 2, 255),
  Key(
    "data.class_names",
    (),
    "Names of classes 1, 2, ...: the masks or categories to take; () takes all.",
    conditions=with_value("data.source", "masks", *OUTLINES),
    entries=("",),
  ),
  Key(
    "data.labels",
    "binary",
    "Meaning of label values: binary (above the threshold is class 1), index, or table (its i-th value is class i).",
    choices=LABEL_MODES,
  ),
  Key(
    "data.threshold",
    -1,
    "Largest background value, 127 for JPEG masks; -1 refuses masks of other than 0 and one more value.",
    -1,
    255,
    conditions=(*_READS_LABELS, *with_value("data.labels", "binary")),
  ),
  Key(
    "data.table",
    (),
    "Values (0, 128, 255) or colors ((0, 0, 0), (255, 0, 0)) of classes 0, 1, ...",
    0,
    2**16 - 1,
    conditions=(*_READS_LABELS, *with_value("data.labels", "table")),
    entries=_VALUES,
  ),
  Key(
    "data.ignore",
    (),
    "Label values or colors that count neither in the loss nor in a score.",
    0,
    2**16 - 1,
    conditions=_READS_LABELS,
    entries=_VALUES,
  ),
  # ------------------------------------------------------------------------------------- which sample prompts which
  Key(
    "data.groups",
    "",
    "Groups of samples that prompt each other: prefix:SEPARATOR, folder, field:KEY, csv:FILE or classes; '' is one.",
  ),
  Key(
    "data.same_class",
    1.0,
    "Share of positive pairs whose prompt shows a class of the query (original: 0).",
    0,
    1,
    conditions=(*_SHOWS_PROMPTS, *_RESIZES),
  ),
  Key(
    "data.unanswerable",
    "background",
    "Rule for a class of the query that no prompt shows; the original keeps it.",
    choices=("background", "ignore", "keep"),
    conditions=_SHOWS_PROMPTS,
  ),
  Key(
    "data.negative",
    0.0,
    "Share of pairs whose prompt shows a class that the query lacks: the answer is background.",
    0,
    1,
  ),
  Key(
    "data.prompts",
    1,
    "Prompts for each query, whose features are averaged; a step costs that many times more.",
    1,
    1000,
  ),
  # --------------------------------------------------------------------------------------- what the network is given
  Key(
    "data.palette",
    "random",
    "Colors of the classes: random, black_background (random foreground) or fixed.",
    choices=PALETTE_MODES,
  ),
  Key(
    "data.mask_ratio",
    0.75,
    "Share of all patches that is hidden in training; 0.4 was found to fail.",
    0.001,
    1,
    conditions=_HIDES_AT_RANDOM,
  ),
  Key(
    "data.lower_half_share",
    0.0,
    "Share of training pairs that hide the whole query instead of random patches, as evaluation does.",
    0,
    1,
  ),
  Key(
    "data.zoom",
    0.0,
    "Factor from image pixels to the network's, for crops and later for tiles; 0 is off, -1 measures objects.",
    -1,
    8,
  ),
  Key(
    "data.prompt_grid",
    0,
    "Cells along a side of a prompt, each around an object of another class; 0 is the fewest that show all classes.",
    0,
    16,
    conditions=_ZOOMS,
  ),
  Key(
    "data.resize",
    1024,
    "Side in pixels that samples are resized to before the random crop; 0 resizes to the square of the network.",
    0,
    8192,
    conditions=_RESIZES,
  ),
  Key("data.scale", (1.0, 1.0), "Smallest and largest random factor on that size.", 0.01, 10, entries=(0.0,)),
  Key("data.foreground_crop", 0.0, "Probability that the query's crop is placed on foreground.", 0, 1),
  Key(
    "data.prompt_foreground",
    1.0,
    "Probability that a prompt's crop is placed on a class that the query's crop shows (original: 0).",
    0,
    1,
    conditions=(*_SHOWS_PROMPTS, *_RESIZES),
  ),
  Key(
    "data.flips",
    "both",
    "Mirrors every second time: none, horizontal (left and right), vertical, both, or turns (both, and right angles).",
    choices=FLIPS,
  ),
  Key(
    "data.color",
    (0.1, 0.1, 0.1),
    "Brightness, contrast and saturation x: each factor is drawn from 1 - x to 1 + x.",
    0,
    1,
    entries=(0.0,),
  ),
  Key(
    "data.blur",
    0.5,
    "Largest standard deviation in pixels of the Gaussian blur; each is drawn from 0 up to it.",
    0,
    100,
  ),
  Key(
    "data.num_workers",
    0,
    "Worker processes that read, at most 16 or four for each core; 0 reads in the training process.",
    0,
    MOST_WORKERS,
  ),
  # ----------------------------------------------------------------------------------------------------- the loss
  Key("loss.smooth_l1", 1.0, "Weight of the smooth L1 of the colors, the original's only loss.", 0, 1e6),
  Key(
    "loss.cross_entropy",
    0.0,
    "Weight of the cross-entropy of classes, by the distances of colors to the palette.",
    0,
    1e6,
  ),
  Key("loss.dice", 0.0, "Weight of the soft Dice loss of each canvas's foreground, of the same classes.", 0, 1e6),
  Key(
    "loss.foreground",
    0.0,
    "Least share of the foreground in a canvas's pixel weights, as far as weights of 20 reach; 0 is off.",
    0,
    0.99,
    conditions=_READS_PIXELS,
  ),
  # ------------------------------------------------------------------------------------------- how weights change
  Key("optim.name", "adamw", "Optimizer; muon is for a start from random weights.", choices=tuple(OPTIMIZERS)),
  Key("optim.clip_norm", 0.0, "Global norm that larger gradients are scaled down to; 0 is off.", 0, 1e6),
  Key(
    "optim.schedule",
    "cycles",
    "Learning rate: cycles of cosines, each with half the peak, or cosine for a single one that ends with the run.",
    choices=tuple(SCHEDULES),
  ),
  Key("optim.peak", 1e-4, "Learning rate after the first warm-up; it falls to 1e-8.", 0, 100),
  Key(
    "optim.warmup",
    500,
    "Steps of linear warm-up before each cosine; at most a tenth of the run with optim.first_cycle=0.",
    0,
    _STEPS,
  ),
  Key(
    "optim.first_cycle",
    5000,
    "Steps of the first cycle, warm-up included; 0 makes one cycle as long as the run.",
    0,
    _STEPS,
    conditions=_CYCLES,
  ),
  Key(
    "optim.layer_decay",
    1.0,
    "Factor on the learning rate from a block to the one below it; 1 is off, BEiT and MAE have 0.65.",
    0.01,
    1,
  ),
  Key("optim.b2", 0.999, "Decay of the average of squared gradients.", 0, _DECAY),
  Key(
    "optim.weight_decay",
    0.01,
    "Decoupled weight decay: each step takes this times the learning rate off a parameter.",
    0,
    1000,
  ),
  Key("optim.decay_all", False, "Decay biases, norms, positions and tokens too (original: True)."),
  Key(
    "optim.freeze",
    (),
    "Regular expressions; parameters whose names match one anywhere are not trained.",
    conditions=with_value("adapter.kind", "none"),
    entries=("",),
  ),
  Key(
    "optim.ema",
    0.0,
    "Decay of a moving average of the parameters, which is evaluated and kept as best; 0 is off.",
    0,
    _DECAY,
  ),
  # -------------------------------------------------------------------------------------------------------- adapters
  Key(
    "adapter.kind",
    "none",
    "What is trained: none (the network), lora, prompt (a learned prompt) or head (a classifier without prompts).",
    choices=("none", *ADAPTERS, "head"),
  ),
  Key("adapter.rank", 8, "Rank of the update of each kernel.", 1, 2**16, conditions=with_value("adapter.kind", "lora")),
  Key(
    "adapter.alpha",
    8.0,
    "Scale of the update, which is multiplied by alpha / rank.",
    0.001,
    1e6,
    conditions=with_value("adapter.kind", "lora"),
  ),
  Key(
    "adapter.targets",
    LORA_TARGETS,
    f"Kernels of each block to update, some of {', '.join(LORA_TARGETS)}.",
    conditions=with_value("adapter.kind", "lora"),
    entries=("",),
  ),
  # --------------------------------------------------------------------------------------------------------- devices
  Key("mesh.data", -1, "Devices that each hold a copy of the parameters; -1 is all that mesh.fsdp leaves.", -1, 2**20),
  Key("mesh.fsdp", 1, "Devices that share one copy of the parameters.", 1, 2**20),
  # --------------------------------------------------------------------------------------------- records of the run
  Key(
    "tracker",
    "tensorboard",
    "Also logs numbers and panels to: tensorboard (an event file in RUN), wandb, trackio, or none.",
    choices=("tensorboard", "wandb", "trackio", "none"),
  ),
  Key("log_every", 10, "Steps between lines in metrics.jsonl.", 1, _STEPS),
  Key(
    "eval_every", 500, "Steps between evaluations and panels of training pairs; the original's is an epoch.", 1, _STEPS
  ),
  Key("eval_pairs", 64, "Validation queries in an evaluation; -1 is all.", -1, _STEPS),
  Key("stop_after", 0, "Evaluations without a better mIoU after which the run ends; 0 is never.", 0, _STEPS),
  Key("profile_steps", 0, "Steps to profile into RUN/profile, after a few to warm up; 0 profiles no step.", 0, 1000),
  Key("checkpoint_every", 500, "Steps between checkpoints; the two newest are kept.", 1, _STEPS),
  Key("keep_every", 0, "Steps between checkpoints that are kept for good; 0 keeps no others.", 0, _STEPS),
)
