"""The `seggpt` command: what it prints for people who look around, and who mistype."""

import subprocess
import sys
from pathlib import Path

import pytest

import seggpt_jax
from seggpt_jax.cli import packaged_configs
from seggpt_jax.cli.main import COMMANDS, main
from seggpt_jax.errors import InputError
from tests.commands import seggpt

ROOT = Path(__file__).parents[2]


def ended(capsys, *arguments):
  """Runs the command in this process; status, stdout and stderr."""
  with pytest.raises(SystemExit) as caught:
    main(arguments)
  said = capsys.readouterr()
  return caught.value.code, said.out, said.err


def test_the_overview_lists_every_command_with_a_summary(capsys):
  for arguments in ((), ("--help",), ("-h",), ("help",)):
    status, out, err = ended(capsys, *arguments)
    assert (status, err) == (0, "")
    listed = [line.split()[0] for line in out.splitlines() if line.startswith("  ")]
    assert listed == list(COMMANDS)


def test_the_version_and_a_mistyped_command(capsys):
  assert ended(capsys, "--version") == (0, f"seggpt-jax {seggpt_jax.__version__}\n", "")
  assert ended(capsys, "trian") == (2, "", "error: trian: unknown command, expected train (seggpt --help)\n")
  status, _, err = ended(capsys, "nonsense")
  assert status == 2 and err.startswith("error: nonsense: unknown command, expected inspect, prepare, train")


def test_help_of_train_lists_each_flag_and_the_common_keys_once_and_all_on_demand():
  from seggpt_jax.cli.train import COMMON
  from seggpt_jax.training.schema import KEYS

  done = seggpt("train", "--help")
  assert (done.returncode, done.stderr) == (0, "")
  lines = done.stdout.splitlines()
  for flag in ("  --config CONFIG", "  --workdir PATH", "  --distributed TEXT"):
    assert sum(line.startswith(flag) for line in lines) == 1
  shown = [key.name for key in KEYS if any(line.startswith(f"  {key.name}=") for line in lines)]
  assert sorted(shown) == sorted(COMMON) and "--helpfull lists all" in done.stdout
  done = seggpt("train", "--helpfull")
  lines = done.stdout.splitlines()
  for key in KEYS:
    assert sum(line.startswith(f"  {key.name}=") for line in lines) == 1, key.name
  text = " ".join(done.stdout.split())
  assert (
    "(one of none, horizontal, vertical, both, turns)" in text and "(0.001 to 1" in text and "base, defects" in text
  )
  assert "absl" not in text and "flagfile" not in text


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["convert", "--too=hf", "a", "b"], "--too: unknown flag, expected --to (--help)"),
    (["infer", "--nothing-like-it"], "--nothing-like-it: unknown flag, --help lists the flags"),
    (["merge", "a", "b"], "found 2 arguments, expected 3: WEIGHTS RUN OUTPUT (--help)"),
    (["boards", ""], "DIRECTORY: found an empty value, expected a path"),
    (["boards", "x", "--num-train=none"], "--num-train=none: invalid literal for int()"),
    (["train", "--config=smal", "--workdir=w"], "--config: file smal not found, expected a config file or one of"),
    (["train", "--config=small", "--config.data.pth=x"], "--config.data.pth: unknown key, expected --config.data.path"),
    (["train", "--config.num_steps=1", "--config=small"], "--config: found --config.num_steps before it"),
    (["train", "--config.num_steps=1"], "--config: missing, expected it before the keys"),
    (["train", "--config=small", "--workdir="], "--workdir=: found an empty value, expected a path"),
  ],
)
def test_wrong_command_lines_end_with_status_2_and_one_line(arguments, message):
  done = seggpt(*arguments)
  assert (done.returncode, done.stdout) == (2, "")
  assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("flag", ["-?", "--help=1", "-helpfull"])
def test_every_spelling_of_help_prints_the_same_text(flag):
  done = seggpt("boards", "--num-train=1", flag)
  assert done.returncode == 0 and "--num-train" in done.stdout


@pytest.mark.parametrize(
  "script", ["evaluate.py", "convert_torch_weights.py", "demo.py", "-m seggpt_jax merge", "-m seggpt_jax.data.inspect"]
)
def test_a_script_of_the_repository_is_its_command(script):
  """Real processes; tests/cli/test_train.py runs train.py and infer.py."""
  line = [sys.executable, *script.split(), "--help"]
  done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0 and done.stdout.startswith("usage: ") and done.stderr == ""


def test_hyphens_underscores_and_the_home_directory_are_understood(tmp_path):
  options = ("~/drawn", "--num_train=1", "--num-val", "1", "--size=64", "--no-one-kind")
  done = seggpt("boards", *options, cwd=tmp_path, env={"HOME": str(tmp_path)})
  assert done.returncode == 0, done.stderr
  assert len(list((tmp_path / "drawn" / "train" / "images").iterdir())) == 1


# ------------------------------------------------------------------------------------------------------------- configs


def test_packaged_configs_are_found_from_any_folder_and_own_files_by_path(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert packaged_configs.names() == sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
  assert packaged_configs.load("small").model.init_from == "drawn"
  (tmp_path / "mine.py").write_text((ROOT / "configs" / "small.py").read_text().replace("112", "56"))
  assert packaged_configs.load("mine.py").data.resize == 56
  monkeypatch.setenv("HOME", str(tmp_path))
  assert packaged_configs.load("~/mine.py").data.resize == 56


def test_a_config_that_is_not_there_names_the_packaged_ones_with_the_nearest_first(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name, nearest in (("configs/base.py", "base"), ("demmo", "demo")):
    with pytest.raises(InputError, match=rf"--config: file {name} not found, expected .* one of the names {nearest}, "):
      packaged_configs.load(name)


@pytest.mark.parametrize(
  ("text", "argument", "message"),
  [
    ("def get_config(:", "", "own.py line 1 is not Python"),
    ("config = {}", "", "found no function get_config in own.py"),
    ("def get_config():\n  return 3", "", "get_config in own.py returned int, expected a ConfigDict"),
    ("import math\ndef get_config():\n  return math.sqrt(-1)", "", "own.py line 3 fails: ValueError: "),
    ("def get_config():\n  return 3", ":64", "found the argument '64', but get_config in own.py takes none"),
  ],
)
def test_a_config_file_that_does_not_work_is_one_line(tmp_path, monkeypatch, text, argument, message):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "own.py").write_text(text)
  with pytest.raises(InputError, match=f"^--config: {message}"):
    packaged_configs.load(f"own.py{argument}")


# --------------------------------------------------------------------------------------------------------- public face


def test_the_public_names_are_listed_and_described():
  assert set(seggpt_jax.__all__) <= set(dir(seggpt_jax))
  for name in seggpt_jax.__all__:
    assert getattr(seggpt_jax, name) is not None
    assert f"\n  {name} " in seggpt_jax.__doc__
  with pytest.raises(AttributeError, match="no attribute 'nothing'"):
    seggpt_jax.nothing  # noqa: B018
