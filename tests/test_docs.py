"""Every command and example that README.md and docs/ print works: nobody should copy a line that fails.

Commands run as printed, in a folder that holds small files under the names the pages use. Flags in `SMALLER` come after
the printed ones, to keep the run short. What needs a cluster, another dataset or hours is in `NOT_RUN` with the reason,
and only its flags and config keys are checked.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import seggpt_jax
from seggpt_jax.synthetic.boards import write_boards
from tests import commands as commands_in_forks
from tests.xla_flags import QUICK

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

# Beginnings of printed commands, and why they are not run.
NOT_RUN = {
  "seggpt app ": "serves until it is stopped; tests/app starts it",
  "seggpt serve": "runs until it is stopped; tests/cli/test_serve.py runs the page",
  "seggpt evaluate ": "needs PASCAL VOC; tests/evaluation runs it on small copies of every benchmark",
  "seggpt train --config base --workdir runs/pets": "needs the Oxford pets in TFDS format",
  "seggpt train --config base --workdir /shared": "needs a cluster",
  "seggpt train --config base --workdir /mnt": "needs a TPU slice",
  "seggpt train --config demo --workdir runs/two": "starts two processes; tests/training/test_distributed.py does it",
  "seggpt infer --model-path drawn --dataset-dir BRAIN": "needs the brain slices",
}

# Flags that keep a run short, by the beginning of the command; the first that fits is taken.
_FEW_STEPS = [
  *("--config.num_steps=1", "--config.batch_size=4", "--config.eval_pairs=2"),
  *("--config.data.resize=0", "--config.model.remat=none"),
]
SMALLER = {
  "seggpt boards": ["--num_train=8", "--num_val=2"],
  "seggpt train --config demo": [*_FEW_STEPS, "--config.model.init_from=weights/vit_large"],
  "seggpt train --config lora": [*_FEW_STEPS, "--config.optim.warmup=0"],
  "seggpt train --config in_context_tuning": [*_FEW_STEPS, "--config.optim.warmup=0"],
  "seggpt train --config defects": [flag for flag in _FEW_STEPS if "resize" not in flag],
  "seggpt train --config head": [*_FEW_STEPS, "--config.optim.warmup=0"],
  "seggpt train --config features": [*_FEW_STEPS, "--config.optim.warmup=0"],
  "seggpt train": _FEW_STEPS,
  "seggpt retrieve": ["--cache="],
}


# ------------------------------------------------------------------------------------------------------ reading pages


def blocks(page: Path, language: str) -> list[str]:
  """Returns the code blocks of a page in one language."""
  return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def commands(page: Path) -> list[list[str]]:
  """Returns the words of every command in the shell blocks of a page."""
  lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
  return [words for line in lines if (words := shlex.split(line, comments=True))]


def notebook_commands(path: Path) -> list[list[str]]:
  """Returns the `!seggpt` commands of a notebook; variables in braces stay, except those for several flags."""
  cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
  lines = [line.strip() for cell in cells for line in "".join(cell["source"]).replace("\\\n", " ").splitlines()]
  found = [shlex.split(line.removeprefix("!")) for line in lines if line.startswith("!")]
  return [[word for word in words if not word.endswith("_FLAGS}")] for words in found]


def seggpt_commands(words: list[str]) -> list[list[str]]:
  """Returns the `seggpt` commands in a line, also inside loops and quoted arguments of other programs."""
  for i, word in enumerate(words):
    if word == "seggpt":
      end = next((j for j in range(i, len(words)) if words[j] in ("&", ";", "done;", "done")), len(words))
      return [words[i:end]]
  return [found for word in words if "seggpt " in word for found in seggpt_commands(shlex.split(word))]


def fitting(table: dict[str, list[str] | str], command: list[str]) -> list[str] | str | None:
  """Returns the entry of a table whose key the command begins with."""
  return next((value for start, value in table.items() if (shlex.join(command) + " ").startswith(start)), None)


ALL = [(page, command) for page in PAGES for words in commands(page) for command in seggpt_commands(words)]
# tests/test_notebooks.py runs the commands of notebooks.
IN_NOTEBOOKS = [command for path in sorted(ROOT.glob("notebooks/*.ipynb")) for command in notebook_commands(path)]
CHECKED = [command for _, command in ALL if fitting(NOT_RUN, command)] + IN_NOTEBOOKS
RUN = [(page, command) for page, command in ALL if not fitting(NOT_RUN, command)]
# A page all of whose commands are on an earlier page, too, is not run again.
FIRST_PAGES = {shlex.join(command): page for page, command in reversed(RUN)}
PAGES_THAT_RUN = [page for page in PAGES if blocks(page, "python") or page in FIRST_PAGES.values()]


# ----------------------------------------------------------------------------------------------------- running commands


@pytest.fixture(scope="module")
def files(weights_directory, tmp_path_factory) -> Path:
  """Small files under the names that the pages use."""
  import av
  import torch

  from seggpt_jax.model import torch_weights, weights

  folder = tmp_path_factory.mktemp("files")
  write_boards(folder / "DATASET", num_train=12, num_val=2, seed=0, size=64, labels="etched", one_kind=True)
  labeled = sorted((folder / "DATASET" / "train" / "images").iterdir())
  for name, source in (("query.jpg", labeled[0]), ("prompt.jpg", labeled[1])):
    Image.open(source).save(folder / name)
  for name in ("prompt_label.png", "first.png"):
    shutil.copy(folder / "DATASET" / "train" / "labels" / labeled[1].name, folder / name)
  with av.open(str(folder / "street.mp4"), "w") as video:
    stream = video.add_stream("mpeg4", rate=5)
    stream.width = stream.height = 64
    for shift in (0, 4):
      pixels = np.roll(np.asarray(Image.open(labeled[1]).convert("RGB")), shift, 1)
      video.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
    video.mux(stream.encode())
  for name in ("weights/vit_large", "runs/mine"):
    shutil.copytree(weights_directory, folder / name)
  config = weights.load_config(weights_directory)
  tensors = torch_weights.to_torch(weights.load_params(weights_directory), config.depth, "baai")
  torch.save({"model": {name: torch.tensor(value) for name, value in tensors.items()}}, folder / "seggpt_vit_large.pth")
  return folder


def make_class_folders(folder: Path) -> None:
  """Turns DATASET into the layout of the original tool, with two products."""
  boards = folder / "boards"
  (folder / "DATASET").rename(boards)
  for split in ("train", "val"):
    for i, image in enumerate(sorted((boards / split / "images").iterdir())):
      for kind in ("image", "label"):
        target = folder / "DATASET" / split / f"product{i % 2}" / "scratch" / kind / image.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(boards / split / f"{kind}s" / image.name, target)


def make_yolo(folder: Path) -> None:
  """Makes YOLO from the images of DATASET, with a square of class 0 in each."""
  for split in ("train", "val"):
    images, labels = folder / "YOLO" / split / "images", folder / "YOLO" / split / "labels"
    shutil.copytree(folder / "DATASET" / split / "images", images)
    labels.mkdir()
    for image in images.iterdir():
      (labels / f"{image.stem}.txt").write_text("0 0.2 0.2 0.8 0.2 0.8 0.8 0.2 0.8\n")
  (folder / "YOLO" / "data.yaml").write_text("path: YOLO\ntrain: train/images\nval: val/images\nnames: [square]\n")


def run(folder: Path, *command: str) -> None:
  """Runs Python in a folder, on one device as on a laptop."""
  environment = {**os.environ, "XLA_FLAGS": QUICK, "PYTHONPATH": str(ROOT), "HOME": str(folder)}
  done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"


def seggpt(folder: Path, *arguments: str) -> None:
  done = commands_in_forks.seggpt(*arguments, cwd=folder, env={"XLA_FLAGS": QUICK, "HOME": str(folder)})
  assert done.returncode == 0, f"{shlex.join(arguments)}\n{done.stdout}\n{done.stderr}"


# `make test` runs the commands of the first page, `.ci/run` those of all.
_STARTING_PAGES = ("README",)


@pytest.mark.parametrize(
  "page",
  [pytest.param(page, marks=[] if page.stem in _STARTING_PAGES else pytest.mark.slow) for page in PAGES_THAT_RUN],
  ids=lambda page: page.stem,
)
def test_the_commands_and_examples_of_a_page_run_in_their_order(page, files, tmp_path):
  folder = tmp_path / "work"
  shutil.copytree(files, folder)
  if page.stem == "prepare":
    make_class_folders(folder)
  if page.stem == "coming_from_ultralytics":
    make_yolo(folder)
  if page.stem in ("README", "boards", "classes", "first", "tutorial", "retrieval"):
    # The page draws the dataset itself.
    shutil.move(folder / "DATASET", folder / "drawn before")
  printed = [command for its_page, command in RUN if its_page == page]
  if page.stem == "retrieval":
    # Boards are drawn last on this page, where it says what was measured.
    printed.sort(key=lambda command: command[1] != "boards")
  for command in printed:
    if command[1] == "convert" and (folder / command[3]).exists():
      shutil.rmtree(folder / command[3])  # a stand-in for what this command writes
    seggpt(folder, *command[1:], *(fitting(SMALLER, command) or []))
  for block in blocks(page, "python"):
    run(folder, "-c", block)


# tests/test_client.py runs the example of the client, which needs a service.
EXAMPLES = [
  path for path in sorted((ROOT / "seggpt_jax").rglob("*.py")) if ">>> " in path.read_text() and path.stem != "client"
]


@pytest.fixture(scope="module")
def predictor():
  return seggpt_jax.Predictor.from_checkpoint("small")


def run_examples(path: Path, names: dict[str, Any]) -> None:
  """Runs the examples in the docstrings of a module, which know these names and those of the module."""
  module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
  runner, printed = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS), []
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.FunctionDef | ast.ClassDef) and ">>>" in (text := ast.get_docstring(node) or ""):
      known = {**vars(module), **names}
      example = doctest.DocTestParser().get_doctest(text, known, node.name, str(path), node.lineno)
      runner.run(example, out=printed.append)
  assert runner.tries and not runner.failures, "".join(printed)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_of_docstrings_give_what_they_print(path, predictor, files, tmp_path, monkeypatch):
  """The reference shows them as code to copy."""
  shutil.copytree(files, tmp_path, dirs_exist_ok=True)
  monkeypatch.chdir(tmp_path)
  prompts = [("prompt.jpg", "prompt_label.png")]
  prediction = predictor.predict("query.jpg", prompts)
  names = {"seggpt_jax": seggpt_jax, "np": np, "Image": Image}
  run_examples(path, {**names, "predictor": predictor, "prompts": prompts, "prediction": prediction})


def test_the_main_names_have_an_example():
  for name in ("Predictor", "InferenceOptions", "instances", "load_model", "masked_smooth_l1", "trained_options"):
    assert "Examples:\n" in getattr(seggpt_jax, name).__doc__, name
  for function in (seggpt_jax.Predictor.from_checkpoint, seggpt_jax.Predictor.predict, seggpt_jax.Prediction.save):
    assert "Examples:\n" in function.__doc__, function


# ---------------------------------------------------------------------------------------------------- checking commands


def _value_of(flag: str, arguments: list[str]) -> str:
  """Returns the value of a flag, which is written as `--flag=value` or `--flag value`."""
  joined = [argument.partition("=")[2] for argument in arguments if argument.startswith(f"{flag}=")]
  return joined[0] if joined else arguments[arguments.index(flag) + 1]


def test_flags_and_keys_of_commands_that_are_not_run_exist(tmp_path):
  """A renamed flag or key, and one that is refused together with the others of its command, is found here."""
  from seggpt_jax.cli import packaged_configs
  from seggpt_jax.training.config import check_config

  known: dict[str, set[str]] = {}
  for _, name, *arguments in CHECKED:
    if name not in known:
      help_text = commands_in_forks.seggpt(name, "--help").stdout
      known[name] = set(re.findall(r"--(?:\[no\])?([\w-]+)", help_text))
    given = [argument.lstrip("-").split("=")[0] for argument in arguments if argument.startswith("--")]
    assert {flag for flag in given if not flag.startswith("config.")} <= known[name], (name, arguments)
    if name == "train":
      config = packaged_configs.load(_value_of("--config", arguments))
      for argument in arguments:
        if argument.startswith("--config."):
          key, value = argument.removeprefix("--config.").split("=", 1)
          default = config
          for part in key.split("."):
            default = default[part]
          value = value if isinstance(default, str) else ast.literal_eval(value)
          config.update_from_flattened_dict({key: value})
      check_config(config)


def test_other_printed_commands_exist():
  """Targets of make, extras of pip, flags of benchmarks, and files of pytest."""
  targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
  extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
  for page in PAGES:
    for words in commands(page):
      line = shlex.join(words)
      if seggpt_commands(words) or words[0] == "export":
        continue
      if words[0] == "make":
        assert words[1] in targets, line
      elif words[:2] == ["pip", "install"]:
        assert set(re.findall(r"\w+", words[2])) <= set(extras), line
      elif "pytest" in words:
        assert all((ROOT / word).exists() for word in words if word.startswith("tests")), line
      elif words[:2] == ["python", "-m"] and words[2].startswith("benchmarks."):
        source = (ROOT / f"{words[2].replace('.', '/')}.py").read_text()
        defined = set(re.findall(r'(?:DEFINE_\w+|add_argument)\(\s*"(?:--)?([\w-]+)"', source))
        assert {word[2:].split("=")[0] for word in words if word.startswith("--")} <= defined, line
      elif words[:2] == ["python", "-m"]:
        assert (ROOT / f"{words[2].replace('.', '/')}.py").is_file(), line
      else:
        assert any((ROOT / word).is_file() for word in words if word.endswith(".py")), line


def test_every_reason_not_to_run_a_command_is_used():
  assert [start for start in NOT_RUN if not any((shlex.join(c) + " ").startswith(start) for _, c in ALL)] == []


def test_every_subcommand_and_every_room_has_its_place_in_the_reference():
  from seggpt_jax.cli.main import COMMANDS

  reference = ROOT / "docs" / "reference"
  assert set(re.findall(r"^## seggpt ([\w-]+)", (reference / "commands.md").read_text(), re.M)) == set(COMMANDS)
  rooms = {path.parent.name for path in (ROOT / "seggpt_jax").glob("*/__init__.py")} - {"cli", "packaged"}
  assert {room for room in rooms if not (reference / f"{room}.md").is_file()} == set()
  rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "design.md").read_text(), re.M)
  assert set(rows) == rooms | {"cli"}


def test_every_configuration_key_that_a_page_names_exists():
  """Tables that translate from other programs would otherwise name keys that are gone."""
  from seggpt_jax.training.schema import KEYS

  groups = "|".join(sorted({key.name.split(".")[0] for key in KEYS if "." in key.name}))
  named = {
    (page.name, name)
    for page in PAGES
    for name in re.findall(rf"`(?:--)?(?:config\.)?((?:{groups})\.[a-z0-9_]+)", page.read_text())
    if name not in ("data.yaml", "model.safetensors")
  }
  assert {(page, name) for page, name in named if name not in {key.name for key in KEYS}} == set()
