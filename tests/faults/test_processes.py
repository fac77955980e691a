"""Real commands under conditions that go wrong: two runs at once, a closed terminal, an error that nobody foresaw."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seggpt_jax.errors import InputError
from seggpt_jax.files import exclusive

ROOT = Path(__file__).parents[2]


def run(*arguments, **options):
  return subprocess.run(
    [sys.executable, "-m", "seggpt_jax", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, **options
  )


@pytest.fixture
def dataset(tmp_path):
  for split, count in (("train", 4), ("val", 2)):
    for i in range(count):
      for folder, pixels in (
        ("images", np.random.default_rng(i).integers(0, 256, (40, 40, 3), np.uint8)),
        ("labels", np.pad(np.ones((20, 20), np.uint8), 10)),
      ):
        path = tmp_path / "data" / split / folder / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
  return tmp_path / "data"


def test_a_lock_is_exclusive_or_shared(tmp_path):
  with exclusive(tmp_path), pytest.raises(InputError, match="in use by another run"), exclusive(tmp_path):
    pass
  with exclusive(tmp_path, shared=True), exclusive(tmp_path, shared=True):
    pass
  with (
    exclusive(tmp_path, shared=True),
    pytest.raises(InputError, match="in use by another run"),
    exclusive(tmp_path),
  ):
    pass


def test_a_second_run_in_the_same_folder_is_refused(dataset, tmp_path):
  (tmp_path / "run").mkdir()
  (tmp_path / "out").mkdir()
  keys = (f"--config.data.path={dataset}", "--config.data.labels=index", "--config.num_steps=1")
  prompts = (f"--prompt-img-dir={dataset}/train/images", f"--prompt-label-dir={dataset}/train/labels")
  with exclusive(tmp_path / "run"), exclusive(tmp_path / "out"):
    training = run("train", "--config", "small", "--workdir", tmp_path / "run", *keys)
    inference = run("infer", "--model-path=drawn", f"--dataset-dir={dataset}/val", f"--outdir={tmp_path}/out", *prompts)
  for done, folder in ((training, "run"), (inference, "out")):
    assert done.returncode == 2, done.stderr
    assert f"{tmp_path}/{folder}: in use by another run; wait for it or stop it" in done.stderr
  assert not list((tmp_path / "out").iterdir()) and not list((tmp_path / "run/checkpoints").iterdir())


def test_the_work_goes_on_when_standard_output_is_closed(dataset, tmp_path):
  line = [sys.executable, "-m", "seggpt_jax", "inspect", f"{dataset}", f"--outdir={tmp_path}/out"]
  process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  process.stdout.close()
  errors = process.stderr.read()
  assert process.wait() == 0, errors
  assert "standard output cannot be written to" in errors and "Traceback" not in errors
  assert (tmp_path / "out/inspect.json").is_file() and (tmp_path / "out/inspect.png").is_file()
  with open("/dev/full", "w") as full:
    done = subprocess.run(line, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
  assert done.returncode == 0 and "standard output cannot be written to" in done.stderr


def test_the_work_goes_on_when_standard_error_is_closed(dataset, tmp_path):
  line = f"{sys.executable} -m seggpt_jax inspect {dataset} --outdir={tmp_path}"
  for name, redirection in (("full", "2>/dev/full >/dev/full"), ("closed", ">&- 2>&-"), ("pipe", "2>&1 | true")):
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {line}/{name} {redirection}"], cwd=ROOT)
    assert done.returncode == 0 and (tmp_path / name / "inspect.png").is_file(), name


def test_a_closed_terminal_does_not_end_the_work(dataset, tmp_path):
  code = "import os, signal; from seggpt_jax.cli import inspect, main; plain = inspect.main\n"
  code += "inspect.main = lambda folder: (os.kill(os.getpid(), signal.SIGHUP), plain(folder))\n"
  code += f"main.run('seggpt_jax.cli.inspect', 'x', ['{dataset}', '--outdir={tmp_path}/out'])"
  assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
  assert (tmp_path / "out/inspect.png").is_file()


def test_an_error_that_nobody_foresaw_is_one_line_and_a_file(tmp_path):
  program = """
import sys, types
from seggpt_jax.cli import runner
command = types.ModuleType("command", "Fails.")
command.define_flags = dict
def main(): raise KeyError("unforeseen")
command.main = main
runner.run(command, "seggpt fail", sys.argv[1:])
"""
  line = [sys.executable, "-c", program]
  done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env={"TMPDIR": str(tmp_path), "PATH": ""})
  assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
  assert done.stderr.startswith("error: KeyError: 'unforeseen'; traceback in ")
  (log,) = tmp_path.glob("seggpt_*.log")
  assert str(log) in done.stderr and "Traceback" in log.read_text()
  shown = subprocess.run([*line, "--verbosity=0"], cwd=ROOT, capture_output=True, text=True)
  assert shown.returncode == 1 and "Traceback" in shown.stderr
