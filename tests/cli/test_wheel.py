"""The built wheel works by itself: installed in an environment of its own, used from an empty folder."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from pathlib import Path

import pytest

import seggpt_jax

pytestmark = pytest.mark.slow  # .ci/run runs them after the suite

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """The wheel, built without a network from a copy of the files that belong to it."""
  folder = tmp_path_factory.mktemp("wheel")
  copy = folder / "source"
  copy.mkdir()
  names = ("pyproject.toml", "README.md", "LICENSE", "seggpt_jax", "configs")
  subprocess.run(["cp", "-r", *(str(ROOT / name) for name in names), copy], check=True)
  command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
  subprocess.run([*command, "--wheel-dir", folder / "dist", copy], check=True)
  (built,) = (folder / "dist").iterdir()
  return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
  """The folder of programs of a new environment that has the wheel, and borrows everything else from this one."""
  environment = tmp_path_factory.mktemp("environment")
  venv.create(environment, with_pip=False)
  packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))
  command = [sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "install", "--quiet"]
  subprocess.run([*command, "--no-deps", "--no-index", wheel], check=True)
  # These come after the packages of the new environment. An editable install of this package adds itself to the end of
  # the import machinery, and what is found on a path goes before it.
  (packages / "borrowed.pth").write_text("\n".join(site.getsitepackages()))
  return environment / "bin"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("empty")


def run(program, *arguments, cwd):
  environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "XLA_FLAGS")}
  done = subprocess.run([program, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return done


def test_the_wheel_holds_every_module_config_and_packaged_file(wheel):
  """A new room, or a new config, must not be missing from what people install."""
  inside = set(zipfile.ZipFile(wheel).namelist())
  expected = {str(path.relative_to(ROOT)) for path in (ROOT / "seggpt_jax").rglob("*.py")}
  expected |= {f"seggpt_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
  expected |= {f"seggpt_jax/app/page/{path.name}" for path in (ROOT / "seggpt_jax" / "app" / "page").iterdir()}
  expected |= {f"seggpt_jax/packaged/{name}.safetensors" for name in ("small", "drawn")} | {"seggpt_jax/py.typed"}
  assert not expected - inside, f"missing in pyproject.toml, tool.setuptools.packages: {sorted(expected - inside)}"


def test_the_installed_package_is_the_one_in_use(installed, folder):
  code = "import seggpt_jax; print(seggpt_jax.__file__)"
  assert run(installed / "python", "-c", code, cwd=folder).stdout.startswith(str(installed.parent))
  assert run(installed / "seggpt", "--version", cwd=folder).stdout == f"seggpt-jax {seggpt_jax.__version__}\n"


def test_from_an_empty_folder_to_segmented_images(installed, folder):
  """Draws boards, inspects them, trains three steps on a packaged config, and segments with packaged weights."""
  seggpt = installed / "seggpt"
  run(seggpt, "boards", "boards", "--num-train=8", "--num-val=2", "--size=64", "--labels=etched", cwd=folder)
  said = run(seggpt, "inspect", "boards", "--groups=classes", cwd=folder).stdout
  assert "config.data.num_classes=2" in said and (folder / "inspect" / "inspect.png").is_file()
  options = ("num_steps=3", "batch_size=2", "data.path=boards", "data.num_classes=2", "data.num_workers=1")
  run(seggpt, "train", "--config", "small", "--workdir", "run", *(f"--config.{key}" for key in options), cwd=folder)
  assert json.loads((folder / "run" / "config.json").read_text())["num_steps"] == 3
  prompts = ("--prompt-img-dir", "boards/train/images", "--prompt-label-dir", "boards/train/labels")
  for model, outdir in (("small", "before"), ("run", "after")):
    where = ("--model-path", model, "--dataset-dir", "boards/val", "--outdir", outdir)
    run(seggpt, "infer", *where, *prompts, cwd=folder)
    assert json.loads((folder / outdir / "metrics.json").read_text())["images"] == 2


def test_importing_the_package_is_fast(installed, folder):
  """At most 0.3 s more than Python itself needs to start, the best of five."""

  def seconds(code: str) -> float:
    start = time.perf_counter()
    run(installed / "python", "-c", code, cwd=folder)
    return time.perf_counter() - start

  plain, imported = (min(seconds(code) for _ in range(5)) for code in ("pass", "import seggpt_jax"))
  assert imported - plain < 0.3
  code = "import sys, seggpt_jax; dir(seggpt_jax); print(*sys.modules)"
  assert not {"jax", "numpy", "absl"} & set(run(installed / "python", "-c", code, cwd=folder).stdout.split())
