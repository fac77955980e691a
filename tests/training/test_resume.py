"""Resuming: yesterday's run goes on with today's code, and no other task or optimizer takes over its checkpoints."""

import copy
import json
import shutil
from pathlib import Path

import pytest

from configs import defects_small, small
from seggpt_jax.errors import InputError
from seggpt_jax.training.config import check_config, default_config
from seggpt_jax.training.resume import changed_keys, keep_pairs, store_config

# Stored by an earlier version for configs/small.py, with values that do nothing and would be refused today:
# model.variant, data.threshold, data.ramp and adapter.rank.
OLD_RUN = Path(__file__).parent / "old_run_config.json"


@pytest.fixture
def run(tmp_path):
  """A run directory with a checkpoint, but without a stored configuration."""
  (tmp_path / "checkpoints" / "100").mkdir(parents=True)
  return tmp_path


@pytest.fixture
def config():
  """The configuration of today that belongs to the old run."""
  config = small.get_config()
  config.data.path = "boards"
  return config


def test_an_old_run_with_values_that_do_nothing_is_resumed_without_a_change(run, config):
  """Its cycle of 501 steps for a run of 500 is what optim.first_cycle=0 means today.

  Its square was that of the packaged weights, which had 96 pixels then; the configuration says 96 now.
  """
  shutil.copy(OLD_RUN, run / "config.json")
  check_config(config)
  config = keep_pairs(run, config)
  assert changed_keys(run, config) == ["model.square"]
  config.model.square = 0
  assert changed_keys(run, config) == []
  assert config.optim.first_cycle == 0 and json.loads(OLD_RUN.read_text())["optim"]["first_cycle"] == 501
  config.num_steps = 1000
  assert changed_keys(run, config) == ["num_steps", "optim.first_cycle"]


def test_a_run_keeps_its_pairs_where_the_new_start_does_not_set_them(run, config):
  """Runs from before the keys existed draw any sample as a prompt; rerunning their command must go on with that."""
  assert keep_pairs(run / "new", config) == config
  shutil.copy(OLD_RUN, run / "config.json")
  kept = keep_pairs(run, config)
  assert (kept.data.same_class, kept.data.unanswerable, kept.data.prompt_foreground) == (0.0, "keep", 0.0)
  config.data.unanswerable, config.data.prompt_foreground = "ignore", 0.5
  kept = keep_pairs(run, config)
  assert (kept.data.same_class, kept.data.unanswerable, kept.data.prompt_foreground) == (0.0, "ignore", 0.5)
  assert changed_keys(run, kept) == ["model.square", "data.unanswerable", "data.prompt_foreground"]


def test_a_run_keeps_the_scales_that_its_first_start_measured(run):
  """Runs from before the second scale existed have one, also where the configuration measures a second one today."""
  config = defects_small.get_config()
  measured = copy.deepcopy(config)
  measured.data.update(zoom=0.5, prompt_grid=2, coarse_zoom=0.2, coarse_classes=(4, 5))
  store_config(run, measured)
  kept = keep_pairs(run, config).data
  assert (kept.zoom, kept.prompt_grid, kept.coarse_zoom, kept.coarse_classes) == (0.5, 2, 0.2, (4, 5))
  stored = json.loads((run / "config.json").read_text())
  del stored["data"]["coarse_zoom"], stored["data"]["coarse_classes"]
  (run / "config.json").write_text(json.dumps(stored))
  kept = keep_pairs(run, config).data
  assert (kept.zoom, kept.coarse_zoom, kept.coarse_classes) == (0.5, 0.0, ())


def test_what_was_stored_is_what_is_read(run, config):
  store_config(run, config)
  assert changed_keys(run, config) == []
  config.optim.peak, config.model.drop_path_rate = 5e-4, 0.3
  assert changed_keys(run, config) == ["model.drop_path_rate", "optim.peak"]


def test_a_run_from_before_thresholds_could_be_left_out_is_resumed(run, config):
  """It stored 0 as the default, which reads the same labels as no threshold does today."""
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
  shutil.copy(OLD_RUN, run / "config.json")
  config.update_from_flattened_dict({key: value})
  with pytest.raises(InputError, match=f"config.{key}: found {value}, expected .* as the run in .* has"):
    changed_keys(run, config)


def test_a_run_from_before_some_keys_existed_is_resumed_as_it_was(run):
  """It decayed all parameters, which is said; it had no average and froze nothing, which cannot change."""
  config = default_config()
  values = json.loads(config.to_json())
  for key in ("schedule", "layer_decay", "decay_all", "freeze", "ema"):
    del values["optim"][key]
  del values["accumulate"]
  values["model"]["remat"] = True
  (run / "config.json").write_text(json.dumps(values))
  assert changed_keys(run, config) == ["optim.decay_all"]
  for key, value, message in (
    ("ema", 0.9, r"config.optim.ema: found 0.9, expected 0.0 as the run in"),
    ("freeze", ("pos_embed",), r"config.optim.freeze: found \['pos_embed'\], expected \[\] as the run in"),
  ):
    changed = config.copy_and_resolve_references()
    changed.optim[key] = value
    with pytest.raises(InputError, match=message):
      changed_keys(run, changed)


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
  shutil.copy(OLD_RUN, tmp_path / "config.json")
  config.data.num_classes = 7
  assert changed_keys(tmp_path, config) == []
