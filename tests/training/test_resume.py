"""Resuming: a run keeps its pairs, and no other task or optimizer takes over its checkpoints."""

import copy

import pytest

from configs import defects, small
from seggpt_jax.errors import InputError
from seggpt_jax.training.resume import changed_keys, keep_pairs, store_config


@pytest.fixture
def run(tmp_path):
  """A run directory with a checkpoint, but without a stored configuration."""
  (tmp_path / "checkpoints" / "100").mkdir(parents=True)
  return tmp_path


@pytest.fixture
def config():
  """The configuration of the run."""
  config = small.get_config()
  config.data.path = "boards"
  return config


def test_a_run_keeps_its_pairs_where_the_new_start_does_not_set_them(run, config):
  assert keep_pairs(run / "new", config) == config
  first = copy.deepcopy(config)
  first.data.update(same_class=0.0, unanswerable="keep", prompt_foreground=0.0)
  store_config(run, first)
  kept = keep_pairs(run, config)
  assert (kept.data.same_class, kept.data.unanswerable, kept.data.prompt_foreground) == (0.0, "keep", 0.0)
  config.data.unanswerable, config.data.prompt_foreground = "ignore", 0.5
  kept = keep_pairs(run, config)
  assert (kept.data.same_class, kept.data.unanswerable, kept.data.prompt_foreground) == (0.0, "ignore", 0.5)
  assert changed_keys(run, kept) == ["data.unanswerable", "data.prompt_foreground"]


def test_a_run_keeps_the_scale_that_its_first_start_measured(run):
  config = defects.get_config()
  measured = copy.deepcopy(config)
  measured.data.update(zoom=0.5, prompt_grid=2)
  store_config(run, measured)
  kept = keep_pairs(run, config).data
  assert (kept.zoom, kept.prompt_grid) == (0.5, 2)


def test_what_was_stored_is_what_is_read(run, config):
  store_config(run, config)
  assert changed_keys(run, config) == []
  config.optim.peak, config.model.drop_path_rate = 5e-4, 0.3
  assert changed_keys(run, config) == ["model.drop_path_rate", "optim.peak"]


def test_a_threshold_of_0_reads_labels_as_none_does(run, config):
  config.data.labels, config.data.threshold = "binary", 0
  store_config(run, config)
  config.data.threshold = -1
  assert changed_keys(run, config) == []
  config.data.threshold = 127
  with pytest.raises(InputError, match=r"config.data.threshold: found 127, expected 0 as the run"):
    changed_keys(run, config)


@pytest.mark.parametrize(
  ("key", "value"),
  [("data.num_classes", 3), ("data.labels", "binary"), ("optim.name", "adamw"), ("optim.ema", 0.9)],
)
def test_another_task_or_another_form_of_optimizer_state_is_refused(run, config, key, value):
  store_config(run, config)
  config.update_from_flattened_dict({key: value})
  with pytest.raises(InputError, match=f"config.{key}: found {value}, expected .* as the run in .* has"):
    changed_keys(run, config)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("{", r"config.json: found no JSON \(.*\), expected the run's configuration"),
    ("[]", "config.json: found list, expected the run's configuration"),
  ],
)
def test_a_stored_configuration_that_cannot_be_read_is_named(run, config, text, message):
  (run / "config.json").write_text(text)
  with pytest.raises(InputError, match=message):
    changed_keys(run, config)


def test_a_folder_without_checkpoints_is_a_new_run(tmp_path, config):
  store_config(tmp_path, config)
  config.data.num_classes = 7
  assert changed_keys(tmp_path, config) == []
