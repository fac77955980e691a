"""A run with an adapter resumes only with the base weights it started from, wherever they are stored."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest

from benchmarks import nano
from seggpt_jax.errors import InputError
from seggpt_jax.model import weights
from seggpt_jax.model.adapter_files import load_adapted_model, load_adapter
from seggpt_jax.model.config import VARIANTS
from seggpt_jax.training import loop
from tests.loud_network import loud_params


@pytest.fixture
def config(nano_data, tmp_path):
  """Two steps of a LoRA for weights in tmp_path/base."""
  weights.save_weights(tmp_path / "base", loud_params(VARIANTS["nano"]), VARIANTS["nano"])
  config = nano.get_config()
  config.num_steps, config.batch_size, config.eval_every = 2, 8, 2
  config.data.path = str(nano_data)
  config.model.init_from, config.model.variant = str(tmp_path / "base"), "vit_large"
  config.adapter.kind, config.adapter.rank = "lora", 2
  return config


@pytest.mark.slow  # .ci/run runs it
def test_weights_that_have_moved_are_the_same_weights(config, tmp_path, capfd):
  loop.train(config, tmp_path / "run")
  shutil.move(tmp_path / "base", tmp_path / "moved")
  config.num_steps, config.model.init_from = 4, str(tmp_path / "moved")
  loop.train(config, tmp_path / "run")
  assert "resumed at step 2" in capfd.readouterr().out
  assert load_adapter(tmp_path / "run" / "checkpoints" / "4").base == str(tmp_path / "moved")
  load_adapted_model(tmp_path / "moved", tmp_path / "run")


@pytest.mark.slow  # .ci/run runs it
def test_other_weights_stop_the_run_under_another_path_and_under_the_same(config, tmp_path):
  loop.train(config, tmp_path / "run")
  config.num_steps = 4
  params = weights.load_params(tmp_path / "base")
  params["patch_embed.bias"] = params["patch_embed.bias"] + np.float32(1e-3)
  weights.save_weights(tmp_path / "other", params, VARIANTS["nano"])
  message = f"config.model.init_from: found weights other than {tmp_path / 'base'}, as it was when the adapter in "
  config.model.init_from = str(tmp_path / "other")
  with pytest.raises(InputError, match=re.escape(message + str(tmp_path / "run" / "checkpoints" / "2"))):
    loop.train(config, tmp_path / "run")
  shutil.rmtree(tmp_path / "base")
  shutil.move(tmp_path / "other", tmp_path / "base")
  config.model.init_from = str(tmp_path / "base")
  with pytest.raises(InputError, match=re.escape(message)):
    loop.train(config, tmp_path / "run")
  assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["2"]


@pytest.mark.parametrize("text", ["[]", '{"adapter": 5}', "{'a'"])
def test_a_description_that_is_none_is_a_damaged_checkpoint(config, tmp_path, text):
  loop.train(config, tmp_path / "run")
  (tmp_path / "run" / "checkpoints" / "2" / "adapter" / "metadata").write_text(text)
  config.num_steps = 4
  with pytest.raises(InputError, match="checkpoints/2: damaged, expected at least one whole checkpoint") as error:
    loop.train(config, tmp_path / "run")
  assert "\n" not in str(error.value)
