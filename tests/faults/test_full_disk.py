"""A disk that fills up while a command writes: one line, status 1, and the rerun resumes where there is room again."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.faults import small_disk
from seggpt_jax.errors import InputError, MachineError
from seggpt_jax.files import write_whole, writing
from tests.training.test_checkpoints import can_mount  # noqa: F401 - a fixture

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """Ten images of noise, of 200 KB each, with label maps."""
  folder = tmp_path_factory.mktemp("photos")
  for i in range(10):
    pixels = np.random.default_rng(i).integers(0, 256, (260, 260, 3), np.uint8)
    for kind, values in (("images", pixels), ("labels", np.pad(np.ones((60, 60), np.uint8), 100))):
      path = folder / "train" / kind / f"{i}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(values).save(path)
  return folder


def filled_then_freed(place, command, again):
  """Runs a command on a full disk, makes room, and runs another one; returns the output of both and what is there."""
  script = f"""
dd if=/dev/zero of={place}/filler bs=1024 count=3500 2>/dev/null
{command}; echo "first $?"
rm {place}/filler
{again}; echo "second $?"
find {place} -type f
"""
  return small_disk(place, ["sh", "-c", script], 4)


COMMANDS = {
  "infer": (
    "infer --model-path {model} --dataset-dir {photos}/train --prompt-img-dir {photos}/train/images "
    "--prompt-label-dir {photos}/train/labels --save overlay --outdir {place}/out",
    " --resume",
    "overlay/9.png",
  ),
  "prepare to a folder": (
    "prepare --path {photos} --num_classes 2 --split train --format folder --outdir {place}/out",
    "",
    "train/images/9.png",
  ),
  "prepare to records": (
    "prepare --path {photos} --num_classes 2 --split train --format records --outdir {place}/out",
    "",
    "dataset_info.json",
  ),
}


@pytest.mark.usefixtures("can_mount")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_on_a_full_disk_ends_in_one_line_and_goes_on_when_there_is_room(
  photos, weights_directory, tmp_path, name
):
  arguments, resume, last = COMMANDS[name]
  places = {"photos": photos, "place": tmp_path, "model": weights_directory}
  command = f"{sys.executable} -m seggpt_jax {arguments.format(**places)}"
  done = filled_then_freed(tmp_path, command, command + resume)
  assert "first 1" in done.stdout and "second 0" in done.stdout, (done.stdout[-1500:], done.stderr[-3000:])
  assert "Traceback" not in done.stderr
  (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
  assert "the disk is full" in line
  assert last in done.stdout


@pytest.mark.usefixtures("can_mount")
def test_weights_that_do_not_fit_leave_nothing_behind(tmp_path):
  program = """
import sys
import numpy as np
from benchmarks.nano import NANO
from seggpt_jax.errors import MachineError
from seggpt_jax.model import parameters, weights
shapes = {name: leaf.shape for name, leaf in parameters.abstract(NANO)[1].items()}
params = {name: np.random.default_rng(0).normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
params["more"] = np.random.default_rng(0).normal(size=2**20)
try:
  weights.save_weights(sys.argv[1] + "/weights", params, NANO)
except MachineError as error:
  print("refused:", error)
"""
  (tmp_path / "program.py").write_text(program)
  place = tmp_path / "disk"
  place.mkdir()
  script = f"PYTHONPATH={ROOT} {sys.executable} {tmp_path}/program.py {place}; find {place} | sort"
  done = small_disk(place, ["sh", "-c", script], 2)
  assert f"refused: {place}/weights: the disk is full; make room and rerun" in done.stdout, done
  assert done.stdout.splitlines()[-1] == str(place)


def test_a_failing_disk_and_a_missing_permission_are_told_apart(tmp_path):
  for error, raised, text in (
    (OSError(28, "No space left on device"), MachineError, "the disk is full; make room"),
    (RuntimeError("write failed: No space left on device"), MachineError, "the disk is full; make room"),
    (OSError(5, "Input/output error"), MachineError, "the disk fails"),
    (PermissionError(13, "Permission denied"), InputError, "cannot be written: Permission denied"),
  ):
    with pytest.raises(raised, match=text), writing("out"):
      raise error
  with pytest.raises(KeyError), writing("out"):
    raise KeyError("a bug")

  def fail(file):
    file.write(b"half")
    raise OSError(28, "No space left on device")

  write_whole(tmp_path / "a.txt", lambda file: file.write(b"whole"))
  with pytest.raises(MachineError):
    write_whole(tmp_path / "a.txt", fail)
  assert (
    [path.name for path in tmp_path.glob("[!.]*")] == ["a.txt"]
    and not list(tmp_path.glob(".a.txt*"))
    and (tmp_path / "a.txt").read_text() == "whole"
  )
