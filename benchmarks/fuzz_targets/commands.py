"""Runs commands with many lists of flags, each in a process of its own, up to where real work would begin.

One server process imports the commands and forks for each list, so that a try takes milliseconds. It starts no JAX
device, since processes with threads cannot be forked safely.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import traceback
import unittest.mock
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

_SECONDS = 20  # of processor time for one try

# The function of each command that would begin the work.
_WORK = {
  "boards": ("seggpt_jax.cli.boards.write_boards",),
  "calibrate": ("seggpt_jax.cli.inference_flags.Predictor.from_checkpoint",),
  "demo": ("seggpt_jax.cli.demo._run",),
  "evaluate": ("seggpt_jax.cli.evaluate.parts.run",),
  "evaluate-inspection": ("seggpt_jax.cli.inference_flags.Predictor.from_checkpoint",),
  "infer": ("seggpt_jax.cli.inference_flags.Predictor.from_checkpoint", "seggpt_jax.cli.prompt_flags.load_model"),
  "inspect": ("seggpt_jax.cli.inspect.draw_samples",),
  "prepare": ("seggpt_jax.cli.prepare.prepare",),
  "retrieve": ("seggpt_jax.cli.retrieve.write_mappings",),
  "train": ("seggpt_jax.cli.train.train",),
}
NAMES = tuple(_WORK)


def seed(name: str, folder: Path) -> dict[str, Any]:
  """Returns flags of a command that are right, by name; "" is for arguments that are no flags.

  Args:
    name: the command.
    folder: holds a folder dataset `data`.
  """
  data, out = str(folder / "data"), str(folder / "out")
  prompts = {"prompt_img_dir": f"{data}/train/images", "prompt_label_dir": f"{data}/train/labels"}
  network = {"model_path": "small", "dataset_dir": f"{data}/val", **prompts}
  judged = {"split": "2", "overlap": 0.1, "flips": "none"}
  tiles = {**judged, "seg_type": "semantic"}
  point = {"sensitivity": "1.5,2", "least_area": 3}
  reading = {"labels": "index", "ignore": "255"}
  dataset = {"path": data, "kind": "folder", "num_classes": 3}
  folder_of = {"": data, "kind": "folder", "num_classes": 3}
  return {
    "boards": {"num_train": 2, "num_val": 1, "size": 64, "scale": 1.0, "most": 2, "seed": 0, "": out},
    "calibrate": {**network, "catch": 0.9, "top_k": 1, **judged, **reading},
    "demo": {"workdir": out, "num_steps": 1},
    "evaluate": {
      **{"benchmark": "fss1000", "model_path": "small", "data_dir": str(folder / "fss"), "outdir": out, "split": 1},
      **{"shots": 1, "seed": 0, "episodes": 1, "shard": "1/2"},
    },
    "evaluate-inspection": {
      **network,
      **{"outdir": out, "top_k": 1, "thresholds": "0.3,0.1,0.5"},
      **judged,
    },
    "infer": {
      **network,
      **{"outdir": out, "top_k": 1, "prompts": "first", "save": "label,coco", "polygon_tolerance": 1.0},
      **{"class_names": "a", "shard": "1/2", **tiles, **point, **reading},
    },
    "inspect": {**folder_of, **reading, "split": "train,val", "groups": "prefix:_", "max_images": 3, "outdir": out},
    "prepare": {
      **{**dataset, **reading, "outdir": out, "format": "folder", "shorter_side": 16},
      **{"split": "train", "val_share": 0.5, "groups": ""},
    },
    "retrieve": {
      **{**network, "output": f"{out}.json", "negative_output": f"{out}_not.json", "top_k": 1, "groups": "class"},
      "cache": "",
    },
    "train": {
      **{"config": "small", "workdir": out, "distributed": "off", "config.data.path": data},
      **{"config.num_steps": 5, "config.batch_size": 2, "config.data.scale": "(0.5,2.0)", "config.data.num_workers": 0},
      **{"config.data.labels": "index", "config.optim.peak": 0.1, "config.data.flips": "both"},
    },
  }[name]


def arguments(values: Mapping[str, Any]) -> list[str]:
  """Returns a command line; it has no NUL characters, which the system allows in none."""
  texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
  line = [text if not name else f"--{name}={text}" for name, text in texts.items()]
  return [text.replace("\0", "").encode("utf-8", "replace").decode() for text in line]


def run(name: str, line: list[str]) -> tuple[int, str]:
  """Runs a command up to its work.

  Args:
    name: the command.
    line: its arguments.

  Returns:
    Its status, 0 if it came to its work, and what it wrote to stderr.
  """
  server = _server()
  server.stdin.write(json.dumps([name, line]) + "\n")
  server.stdin.flush()
  status, errors = json.loads(server.stdout.readline())
  return status, errors


@functools.cache
def _server() -> subprocess.Popen:
  """Starts the process that runs commands, in a folder of its own; it ends with this one."""
  root = Path(__file__).parents[2]
  environment = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
  return subprocess.Popen(
    [sys.executable, "-m", "benchmarks.fuzz_targets.commands"],
    **{"cwd": root, "env": environment, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True},
  )


def _serve(folder: str) -> None:
  os.chdir(folder)
  modules = {
    name: importlib.import_module(path[0].rpartition(".cli.")[0] + ".cli." + name.replace("-", "_"))
    for name, path in _WORK.items()
  }
  for request in sys.stdin:
    name, line = json.loads(request)
    with open("stderr.txt", "w+b") as errors:
      child = os.fork()
      if not child:
        _run(modules[name], name, line, errors.fileno())
      _, status = os.waitpid(child, 0)
      errors.seek(0)
      text = errors.read().decode(errors="replace")
    print(json.dumps([os.waitstatus_to_exitcode(status), text]), flush=True)


def _run(module: Any, name: str, line: list[str], errors: int) -> NoReturn:
  """Runs a command in this process, which ends."""
  from seggpt_jax.cli import runner

  status = 70
  try:
    nothing = os.open(os.devnull, os.O_RDWR)
    for number, target in enumerate((nothing, nothing, errors)):
      os.dup2(target, number)
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS + 1))
    for work in _WORK[name]:
      unittest.mock.patch(work, side_effect=SystemExit(0)).start()
    if name == "train":
      unittest.mock.patch(_WORK[name][0], side_effect=_check_training).start()
    runner.run(module, f"seggpt {name}", line)
  except SystemExit as end:
    status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
  except BaseException:
    os.write(2, traceback.format_exc().encode())
  finally:
    os._exit(status)


def _check_training(config: Any, workdir: str) -> NoReturn:
  """Checks what `train` checks before it starts a device."""
  from seggpt_jax.training import resume
  from seggpt_jax.training.config import check_config, expand_paths

  config = expand_paths(config)
  check_config(config)
  resume.changed_keys(Path(workdir), resume.keep_pairs(Path(workdir), config))
  raise SystemExit(0)


if __name__ == "__main__":
  with tempfile.TemporaryDirectory() as scratch:
    _serve(scratch)
