"""The configuration: a misspelled key, or a value that is wrong or does nothing, must not cost a night of training."""

import importlib.util
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from seggpt_jax.errors import InputError
from seggpt_jax.model.config import VARIANTS
from seggpt_jax.training import setup
from seggpt_jax.training.config import check_config, default_config, expand_paths
from seggpt_jax.training.optimizer import _cosine_cycles, _make_schedule
from seggpt_jax.training.schema import KEYS

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))


def load(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_the_repository_is_valid_and_says_how_to_run_it(path):
  module = load(path)
  check_config(module.get_config())
  assert f"seggpt train --config {path.stem}" in module.__doc__


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_every_key_is_explained_in_one_sentence_and_its_default_is_allowed(key):
  assert re.fullmatch(r"[A-Z][^\n]*\.", key.meaning) and len(key.meaning) < 120
  assert key.problem(key.default) is None


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("data.palette", "gray", "config.data.palette: found 'gray', expected one of random, black_background, fixed"),
    ("data.labels", "rgb", "config.data.labels: found 'rgb'"),
    ("model.dtype", "float16", "config.model.dtype: found 'float16'"),
    ("model.attention", "flash", "config.model.attention: found 'flash', expected one of auto, reference, folded"),
    ("data.num_classes", 1, "config.data.num_classes: found 1, expected 2 to 255"),
    ("data.num_classes", 300, "config.data.num_classes: found 300, expected 2 to 255"),
    ("data.mask_ratio", 1.5, "config.data.mask_ratio: found 1.5, expected 0.001 to 1"),
    ("data.color", (0.1,), r"config.data.color: found \(0.1,\), expected brightness, contrast, saturation"),
    ("data.flips", "all", "config.data.flips: found 'all', expected one of none, horizontal, vertical, both, turns"),
    ("batch_size", 0, "config.batch_size: found 0, expected at least 1"),
    ("data.source", "zip", "config.data.source: found 'zip', expected one of folder, class_folders, masks, coco"),
    ("data.scale", (2.0, 0.5), r"config.data.scale: found \(2.0, 0.5\), expected two factors, the smaller first"),
    ("data.scale", (1.0,), r"config.data.scale: found \(1.0,\), expected two factors"),
    ("data.negative", 1.5, "config.data.negative: found 1.5, expected 0 to 1"),
    ("optim.schedule", "linear", "config.optim.schedule: found 'linear', expected one of cycles, cosine"),
    ("optim.first_cycle", -1, "config.optim.first_cycle: found -1, expected at least 0"),
    ("optim.layer_decay", 0.0, "config.optim.layer_decay: found 0.0, expected 0.01 to 1"),
    ("optim.ema", 1.0, "config.optim.ema: found 1.0, expected 0 to 0.999999"),
    ("data.zoom", -0.5, "config.data.zoom: found -0.5, expected a factor above 0, 0, or -1"),
    ("data.zoom", -2.0, "config.data.zoom: found -2.0, expected -1 to 8"),
    (
      "loss.smooth_l1",
      0.0,
      "config.loss: found 0 for smooth_l1, cross_entropy and dice, expected at least one above 0",
    ),
    ("accumulate", 0, "config.accumulate: found 0, expected at least 1"),
    ("eval_every", 0, "config.eval_every: found 0, expected at least 1"),
  ],
)
def test_wrong_values_are_refused_by_name(key, value, message):
  config = default_config()
  config.update_from_flattened_dict({key: value})
  with pytest.raises(InputError, match=message):
    check_config(config)


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_every_key_refuses_values_of_another_type(key):
  """Found out before anything is allocated, not by a traceback of a library."""
  example = key.default
  wrong = [None, {}, {1}, b"x", object(), math.nan, math.inf, -math.inf, 10**400, [[[[]]]]]
  if not isinstance(example, str):
    wrong += ["x", "", "1"]
  else:
    wrong += [1, 1.0, True, "a\0b", "a\nb", "x" * 5000]
  if not isinstance(example, tuple):
    wrong += [(), (1,), [1, 2], ("a", "b")]
  else:
    wrong += [1, (None,), ((),), ([1],), (True,), (math.nan,), (1,) * 10_001, ("a\0",)]
  wrong += [0, 1, 0.0, 1.5] if isinstance(example, bool) else [True, False]
  if isinstance(example, int):
    wrong += [1.0, 0.5]
  for value in wrong:
    config = default_config().to_dict()
    group, _, name = key.name.rpartition(".")
    (config[group] if group else config)[name] = value
    with pytest.raises(InputError, match=f"config.{key.name}: ") as caught:
      check_config(ConfigDict(config))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_every_number_has_bounds_and_is_refused_beyond_them(key):
  if isinstance(key.default, bool | str) or "" in key.entries:
    return
  assert key.minimum is not None and key.maximum is not None
  for value in (key.maximum + 1, key.minimum - 1, 2**70, -(2**70)):
    found = (value,) if isinstance(key.default, tuple) else type(key.default)(value)
    assert key.problem(found) == key.allowed
  for value in (key.minimum, key.maximum):
    assert key.problem((value,) if isinstance(key.default, tuple) else value) is None


def test_lists_of_numbers_for_tuples_and_whole_numbers_for_others_are_fine():
  config = default_config()
  config.data.scale, config.optim.peak = [1, 2], 1
  check_config(config)
  config.data.update(labels="table", table=[0, 65535], ignore=((1, 2, 3),))
  check_config(config)


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"data.scale": ("a", "b")}, r"config.data.scale: found \('a', 'b'\), expected a list .* each a finite number"),
    ({"data.num_workers": 1000}, "config.data.num_workers: found 1000, expected "),
    ({"data.resize": 8192, "data.scale": (1.0, 4.0)}, "config.data.scale: found 4.0 with data.resize=8192, expected"),
    ({"data.zoom": 1e-9}, "config.data.zoom: found 1e-09, expected a factor above 0, 0, or -1; at least 0.001"),
  ],
)
def test_values_that_cannot_be_right_are_refused(values, message):
  config = ConfigDict(default_config().to_dict(), type_safe=False)
  config.update_from_flattened_dict(values)
  with pytest.raises(InputError, match=message):
    check_config(config)


def test_a_batch_that_no_memory_holds_is_refused_and_one_of_a_cluster_is_not(monkeypatch):
  config = default_config()
  config.batch_size = 2**20
  check_config(config)
  monkeypatch.setattr(setup.os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 4 * 10**6}.get)
  with pytest.raises(
    InputError, match=r"config.batch_size: found 1048576 with data.prompts=1, expected a batch that fits"
  ):
    setup._check_batch_size(config, VARIANTS["vit_large"])
  config.batch_size = 1024
  setup._check_batch_size(config, VARIANTS["vit_large"])


def test_a_schedule_of_a_million_cycles_is_refused():
  """Each would become a part of the compiled program."""
  with pytest.raises(InputError, match=r"config.optim.first_cycle: found 2, expected longer cycles"):
    _cosine_cycles(1.0, 2, cycle_mult=1.0, warmup=0, decay=0.5, minimum=0.0, num_steps=10**9)


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "/".join(["x" * 200] * 30), "~nobody_at_all/data"])
def test_paths_that_no_file_can_have_are_refused_by_key(name):
  for key in ("data.path", "model.init_from"):
    config = default_config()
    config.update_from_flattened_dict({key: name})
    with pytest.raises(InputError, match=f"config.{key}: "):
      expand_paths(config)


# For each key: a value other than the default, values with which it has no effect, and values with which it has one.
WITHOUT_EFFECT = [
  ("model.variant", "small", {"model.init_from": "small"}, {}),
  ("data.class_names", ("crack",), {}, {"data.source": "coco"}),
  ("data.class_names", ("crack",), {"data.source": "class_folders"}, {"data.source": "masks"}),
  ("data.threshold", 127, {"data.labels": "index"}, {"data.source": "masks"}),
  ("data.table", (0, 255), {"data.labels": "index"}, {"data.labels": "table"}),
  ("data.ignore", (7,), {"data.source": "coco"}, {"data.source": "masks"}),
  ("data.unanswerable", "ignore", {"adapter.kind": "prompt"}, {}),
  ("data.mask_ratio", 0.5, {"data.lower_half_share": 1.0}, {"data.lower_half_share": 0.9}),
  ("data.prompt_grid", 2, {}, {"data.zoom": 0.5}),
  ("data.resize", 512, {"data.zoom": 0.5}, {}),
  ("data.same_class", 0.5, {"data.zoom": 0.5}, {}),
  ("data.prompt_foreground", 0.5, {"data.zoom": 0.5}, {}),
  ("loss.foreground", 0.3, {"loss.smooth_l1": 0.0, "loss.dice": 1.0}, {}),
  ("optim.first_cycle", 100, {"optim.schedule": "cosine"}, {}),
  ("optim.freeze", ("pos_embed",), {"adapter.kind": "lora"}, {}),
  ("adapter.rank", 4, {}, {"adapter.kind": "lora"}),
  ("adapter.alpha", 4.0, {"adapter.kind": "prompt"}, {"adapter.kind": "lora"}),
  ("adapter.targets", ("qkv",), {}, {"adapter.kind": "lora"}),
]


@pytest.mark.parametrize(("key", "value", "idle", "active"), WITHOUT_EFFECT)
def test_a_key_without_effect_is_refused_with_the_reason(key, value, idle, active):
  """Otherwise somebody would tune a number that does nothing."""
  config = default_config()
  config.update_from_flattened_dict(idle)
  check_config(config)  # the default of the key is fine
  config.update_from_flattened_dict({key: value})
  with pytest.raises(InputError, match=f"config.{key}: found .*, expected the default .*: this key only has an effect"):
    check_config(config)
  config = default_config()
  config.update_from_flattened_dict({**active, key: value})
  check_config(config)


@pytest.mark.parametrize(("key", "value"), [("data.source", "coco"), ("optim.schedule", "cosine")])
def test_one_flag_beside_the_small_config_is_enough(key, value):
  """Its own values that do nothing then do no harm."""
  config = load(next(path for path in CONFIGS if path.stem == "small")).get_config()
  config.update_from_flattened_dict({key: value})
  check_config(config)


def test_every_key_with_a_condition_is_tested_above():
  assert {key.name for key in KEYS if key.applies} == {name for name, *_ in WITHOUT_EFFECT}


@pytest.mark.parametrize(
  ("name", "old"),
  [("demo", 201), ("small", 501)],
)
def test_learning_rates_of_the_small_configs_are_those_of_an_explicit_cycle(name, old):
  """Reference: `_cosine_cycles` with num_steps + 1 steps and the warm-up of the config; every step bit for bit."""
  config = load(next(path for path in CONFIGS if path.stem == name)).get_config()
  assert config.num_steps + 1 == old
  optim = config.optim
  expected = _cosine_cycles(
    optim.peak, old, cycle_mult=1.2, warmup=optim.warmup, decay=0.5, minimum=1e-8, num_steps=config.num_steps
  )
  steps = np.arange(config.num_steps)
  ours = jax.vmap(_make_schedule(optim, config.num_steps))(steps)
  np.testing.assert_array_equal(ours, jax.vmap(expected)(steps))


@pytest.mark.parametrize("num_steps", [12, 100, 3000])
def test_the_schedule_of_the_small_config_follows_the_number_of_steps(num_steps):
  """A shorter run warms up in a tenth of its steps; every run ends near the minimum, without a restart."""
  optim = load(next(path for path in CONFIGS if path.stem == "small")).get_config().optim
  rates = np.asarray(jax.vmap(_make_schedule(optim, num_steps))(np.arange(num_steps + 1)))
  top = min(20, num_steps // 10)
  assert rates.argmax() == top and rates.max() == pytest.approx(optim.peak)
  assert (np.diff(rates[top:]) < 0).all() and rates[-1] < 0.05 * optim.peak


def test_configs_of_the_repository_decay_as_their_results_did():
  for path in CONFIGS:
    optim = load(path).get_config().optim
    assert optim.decay_all or not optim.weight_decay, path


def test_unknown_and_missing_keys_of_a_config_file_are_refused():
  config = default_config()
  config.data.flip = True
  expected = r"config.data.flip: unknown key, expected data\.flips"
  with pytest.raises(InputError, match=expected):
    check_config(config)
  del config.data.flip
  config.optim.xyz = 1
  with pytest.raises(InputError, match=r"config.optim.xyz: unknown key, expected optim\.\w+"):
    check_config(config)
  config = default_config()
  del config.data.blur
  with pytest.raises(InputError, match=r"config.data.blur: missing, expected a float"):
    check_config(config)


def test_the_home_directory_is_expanded_in_paths(monkeypatch):
  monkeypatch.setenv("HOME", "/home/someone")
  config = default_config()
  config.data.path, config.model.init_from = "~/boards", "~/weights"
  expanded = expand_paths(config)
  assert (expanded.data.path, expanded.model.init_from) == ("/home/someone/boards", "/home/someone/weights")
  assert config.data.path == "~/boards"  # the caller's configuration is not changed
