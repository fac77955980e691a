"""Training as users start it: real processes, real files, exit statuses and one-line errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from seggpt_jax.synthetic.boards import write_boards
from tests.commands import seggpt
from tests.xla_flags import QUICK

ROOT = Path(__file__).parents[2]


def command(script, *args):
  """Runs a root script on one device, as on a laptop."""
  environment = {**os.environ, "XLA_FLAGS": QUICK}
  return subprocess.run(
    [sys.executable, script, *map(str, args)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
  )


@pytest.fixture(scope="module")
def boards(tmp_path_factory):
  directory = tmp_path_factory.mktemp("data") / "boards"
  write_boards(directory, num_train=8, num_val=4, seed=0, size=64, labels="etched")
  return directory


def test_train_resume_and_segment(boards, tmp_path):
  run = tmp_path / "run"
  arguments = ["--config", "configs/demo.py", "--workdir", run, f"--config.data.path={boards}"]
  arguments += ["--config.eval_every=2", "--config.checkpoint_every=2", "--config.batch_size=4", "--config.log_every=1"]
  first = command("train.py", *arguments, "--config.num_steps=2")
  assert first.returncode == 0, first.stderr
  assert "done" in first.stdout and "pairs/s" in first.stderr
  second = command("train.py", *arguments, "--config.num_steps=3")
  assert second.returncode == 0, second.stderr
  assert "resumed at step 2" in second.stdout + second.stderr
  steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").open()]
  assert steps == [1, 2, 2, 3, 3]
  done = command(
    *("infer.py", "--model-path", run, "--dataset-dir", boards / "val", "--outdir", tmp_path / "out"),
    *("--prompt-img-dir", boards / "train" / "images", "--prompt-label-dir", boards / "train" / "labels"),
  )
  assert done.returncode == 0, done.stderr
  assert len(list((tmp_path / "out" / "label").iterdir())) == 4
  assert json.loads((tmp_path / "out" / "metrics.json").read_text())["images"] == 4


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "--config: missing"),
    (["--config", "configs/small.py"], "--workdir: missing"),
    (["--config", "configs/none.py", "--workdir", "run"], "--config: file configs/none.py not found"),
    (["--config", "configs/small.py", "--workdir", "run", "--config.data.foo=1"], "--config.data.foo: unknown key"),
    (["--config", "configs/small.py", "--workdir", "run", "--config.num_steps=many"], "--config.num_steps=many"),
    (["--config", "configs/small.py", "--workdir", "run", "extra"], "found argument 'extra'"),
    (["--nosuchflag"], "nosuchflag"),
    (["--config", "configs/base.py", "--workdir", "run"], "or convert the released weights with `seggpt convert"),
  ],
)
def test_wrong_input_is_status_2_and_one_line(arguments, message):
  done = seggpt("train", *arguments, cwd=ROOT)
  assert done.returncode == 2
  assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1


def test_help_is_no_failure():
  done = command("infer.py", "--help")
  assert done.returncode == 0 and "--mapping" in done.stdout
  done = seggpt("infer", "--split", 2)
  assert done.returncode == 2
  assert done.stderr.startswith("error: --model-path, --outdir: missing")
