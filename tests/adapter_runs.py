"""Run directories of adapters, written with the trainer's own checkpoints but without training."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from seggpt_jax.model import parameters, weights
from seggpt_jax.model.adapter_files import StoredAdapter
from seggpt_jax.model.adapters import Adapter
from seggpt_jax.model.config import SegGPTConfig
from seggpt_jax.training.checkpoints import Checkpoints
from seggpt_jax.training.step import TrainState


def learned_params(adapter: Adapter, config: SegGPTConfig, seed: int = 1) -> dict[str, np.ndarray]:
  """Returns an adapter's parameters as they may be after some training."""
  generator = np.random.default_rng(seed)
  _, shapes = parameters.abstract(config)
  own = adapter.init(shapes, config.canvas_size, jax.random.key(seed))
  return {name: value + generator.normal(0.0, 0.3, value.shape).astype(np.float32) for name, value in own.items()}


def write_run(
  folder: Path,
  adapter: Adapter,
  config: SegGPTConfig,
  base: str | os.PathLike,
  data: dict[str, Any] | None = None,
) -> dict[str, np.ndarray]:
  """Writes a run of three classes whose best step is 7.

  Args:
    folder: the new run directory.
    adapter: the adapter that was trained.
    config: the architecture that it was trained with.
    base: the weights that it was trained for.
    data: section `data` of the run's configuration.

  Returns:
    The adapter's parameters.
  """
  params = learned_params(adapter, config)
  fingerprint = parameters.fingerprint(weights.load_params(base))
  description = StoredAdapter(adapter, {}, config, fingerprint, str(base), 3).describe()
  checkpoints = Checkpoints(folder, config, 1, adapter=description)
  checkpoints.save_best(TrainState(np.int32(7), params, {}, {}))
  checkpoints.close()
  (folder / "config.json").write_text(json.dumps({"data": data or {"labels": "index"}}))
  return params
