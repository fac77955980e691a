"""The configuration: a misspelled key or a value that cannot be meant must not cost a night of training."""

import importlib.util
from pathlib import Path

import pytest

from seggpt_jax.errors import InputError
from seggpt_jax.training.config import check_config, default_config

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_the_repository_is_known_and_says_how_to_run_it(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  check_config(module.get_config())
  assert f"train.py --config configs/{path.name}" in module.__doc__


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
    ("model.image_mean", (0.5,), r"config.model.image_mean: found \(0.5,\), expected three numbers"),
    ("batch_size", 0, "config.batch_size: found 0, expected at least 1"),
    ("data.source", "zip", "config.data.source: found 'zip', expected one of folder, class_folders, masks, coco, tfds"),
    ("data.resize_mode", "longer", "config.data.resize_mode: found 'longer', expected one of fixed, shorter"),
    ("data.scale", (2.0, 0.5), r"config.data.scale: found \(2.0, 0.5\), expected two factors, the smaller first"),
    ("data.scale", (1.0,), r"config.data.scale: found \(1.0,\), expected two factors"),
    ("data.negative", 1.5, "config.data.negative: found 1.5, expected 0 to 1"),
    ("data.bad_files", "ignore", "config.data.bad_files: found 'ignore', expected one of error, skip"),
    ("optim.schedule", "linear", "config.optim.schedule: found 'linear', expected one of cycles, cosine"),
    ("optim.decay", 2.0, "config.optim.decay: found 2.0, expected 0 to 1"),
    ("optim.layer_decay", 0.0, "config.optim.layer_decay: found 0.0, expected 0.01 to 1"),
    ("optim.ema", 1.0, "config.optim.ema: found 1.0, expected 0 to 0.999999"),
    ("accumulate", 0, "config.accumulate: found 0, expected at least 1"),
    ("eval_every", 0, "config.eval_every: found 0, expected at least 1"),
  ],
)
def test_values_that_cannot_be_meant_are_refused_by_name(key, value, message):
  config = default_config()
  config.update_from_flattened_dict({key: value})
  with pytest.raises(InputError, match=message):
    check_config(config)


def test_configs_of_the_repository_decay_as_their_results_did():
  for path in CONFIGS:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    optim = module.get_config().optim
    assert optim.decay_all or not optim.weight_decay, path


def test_unknown_and_missing_keys_of_a_config_file_are_refused():
  config = default_config()
  config.data.flip_horizontally = True
  with pytest.raises(
    InputError, match=r"config.data.flip_horizontally: unknown key, expected one such as data.flip_horizontal,"
  ):
    check_config(config)
  del config.data.flip_horizontally
  config.optim.xyz = 1
  with pytest.raises(InputError, match=r"config.optim.xyz: unknown key, expected one such as optim\.\w+"):
    check_config(config)
  config = default_config()
  del config.data.blur
  with pytest.raises(InputError, match=r"config.data.blur: missing, expected a float"):
    check_config(config)
