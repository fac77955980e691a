"""Numbers, paths and surroundings of commands that cannot be right: one line and status 2, before any work."""

import functools
import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from PIL import Image

from benchmarks.fuzz_targets import commands
from seggpt_jax.cli import packaged_configs
from seggpt_jax.cli.main import COMMANDS
from seggpt_jax.errors import InputError
from seggpt_jax.inference.options import InferenceOptions
from tests.test_rooms import FLAGS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """A dataset whose names are not ASCII."""
  folder = tmp_path_factory.mktemp("data")
  for split in ("train", "val"):
    for name in ("é", "日本"):
      for kind, values in (("images", np.zeros((16, 16, 3), np.uint8)), ("labels", np.eye(16, dtype=np.uint8))):
        path = folder / split / kind / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
  return folder


def defined(name, monkeypatch):
  """Returns the flags of a command."""
  module = importlib.import_module(f"seggpt_jax.cli.{name.replace('-', '_')}")
  values = flags.FlagValues()
  for define in (
    "DEFINE",
    "DEFINE_integer",
    "DEFINE_float",
    "DEFINE_string",
    "DEFINE_multi_string",
    "DEFINE_list",
    "DEFINE_enum",
    "DEFINE_bool",
  ):
    original = getattr(flags, define)

    def into_values(*arguments, original=original, **options):
      return original(*arguments, flag_values=values, **options)

    monkeypatch.setattr(flags, define, into_values)
  if name == "train":
    define_config = config_flags.DEFINE_config_file
    monkeypatch.setattr(config_flags, "DEFINE_config_file", functools.partial(define_config, flag_values=values))
    monkeypatch.setattr(flags, "FLAGS", values)
  groups = module.define_flags()
  return [values[holder.name] for holders in groups.values() for holder in holders]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_numeric_flag_has_both_bounds(name, monkeypatch):
  for flag in defined(name, monkeypatch):
    # `AnnotationOptions` checks its own.
    if flag.flag_type() in ("int", "float") and flag.name != "polygon_tolerance":
      assert flag.parser.lower_bound is not None and flag.parser.upper_bound is not None, flag.name


def test_flags_stay_within_their_budget():
  counts = {}
  for name in COMMANDS:
    with pytest.MonkeyPatch.context() as patch:
      counts[name] = len(defined(name, patch))
  assert sum(counts.values()) <= FLAGS, counts


SEEDS = {
  "infer": {"split": "1000000", "sensitivity": "nan", "least_area": -1, "overlap": "nan", "polygon_tolerance": "inf"}
  | {"stitch_width": 10**9, "top_k": 10**9},
  "boards": {"num_train": 10**12, "size": 10**6, "scale": "nan", "most": 10**9, "seed": -1},
  "evaluate-inspection": {"thresholds": "nan,0,1", "top_k": 10**9},
  "prepare": {"shorter_side": -1, "val_share": "nan", "outdir": "x" * 300},
  "retrieve": {"top_k": 10**9, "output": ""},
  "evaluate": {"split": 1000, "shots": 0, "episodes": 10**9, "shard": "3/2"},
  "train": {"config.data.num_workers": 1000, "config.data.scale": "('a','b')", "workdir": "x" * 300}
  | {
    "config.batch_size": 2**40,
    "config.optim.peak": "nan",
    "config.data.path": "x" * 300,
    "distributed": "here:1,0,9",
  },
  "inspect": {"max_images": -1, "num_classes": 256, "outdir": ""},
}


@pytest.mark.parametrize("name", SEEDS)
def test_values_that_cannot_be_right_end_in_one_line_that_names_the_flag(name, data, tmp_path):
  (tmp_path / "fss").mkdir()
  right = commands.seed(name, tmp_path)
  right = {flag: str(value).replace(str(tmp_path / "data"), str(data)) for flag, value in right.items()}
  for flag, value in SEEDS[name].items():
    status, errors = commands.run(name, commands.arguments({**right, flag: str(value)}))
    assert status == 2 and errors.count("error: ") == 1 and "Traceback" not in errors, (flag, status, errors)
    line = next(line for line in errors.splitlines() if line.startswith("error: "))
    assert flag.rpartition(".")[2] in line.replace("-", "_") or str(value)[:5] in line, line


@pytest.mark.parametrize("value", [0, -1, 101, 10**6, (1, 1), (), (1, 0)])
def test_splits_have_bounds_in_python_too(value):
  with pytest.raises(InputError, match=r"split: found .*, expected an integer of at least 1, .* none above 100"):
    InferenceOptions(split=value)


@pytest.mark.parametrize("content", [b"root:x:0:0:root\n", bytes(9), b"\xff\xfe", b"", b"{}", b"get_config = 3\n"])
def test_a_file_that_is_no_config_is_refused(tmp_path, content):
  (tmp_path / "passwd").write_bytes(content)
  with pytest.raises(InputError, match=r"^--config: ") as caught:
    packaged_configs.load(str(tmp_path / "passwd"))
  assert "\n" not in str(caught.value)


def seggpt(*arguments, **environment):
  kept = {name: os.environ[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH") if name in os.environ}
  return subprocess.run(
    [sys.executable, "-m", "seggpt_jax", *map(str, arguments)],
    **{"cwd": ROOT, "env": kept | environment, "capture_output": True, "check": False},
  )


def test_names_that_a_terminal_cannot_show_do_not_end_a_command(data, tmp_path):
  done = seggpt(
    *("inspect", data, f"--outdir={tmp_path}/ö"),
    **{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"},
  )
  assert done.returncode == 0 and (tmp_path / "ö/inspect.json").is_file(), done.stderr
  assert b"/inspect.png" in done.stdout and b"output cannot" not in done.stderr
  done = seggpt("inspect", f"{tmp_path}/日本", PYTHONIOENCODING="ascii")
  assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and b"\\u65e5" in done.stderr


def test_commands_work_without_a_temporary_folder(data, tmp_path):
  done = seggpt("inspect", data, f"--outdir={tmp_path}/out", TMPDIR="/nowhere", MPLCONFIGDIR="/proc/x")
  assert done.returncode == 0 and (tmp_path / "out/inspect.png").is_file(), done.stderr


def test_compiled_programs_are_not_kept_where_nothing_can_be_written(tmp_path):
  (tmp_path / "file").touch()
  program = "import jax; from seggpt_jax.compilation import keep_programs; keep_programs()\n"
  program += "print(jax.config.jax_compilation_cache_dir)"
  done = subprocess.run(
    [sys.executable, "-c", program],
    **{
      "cwd": ROOT,
      "env": {"PATH": "", "XDG_CACHE_HOME": str(tmp_path / "file")},
      "capture_output": True,
      "text": True,
    },
  )
  assert done.stdout == "None\n", done.stderr
  assert len(done.stderr.splitlines()) == 1 and "compiled programs are not kept for the next run" in done.stderr
