"""Weights by their Hugging Face name: fetched and converted once, and one clear line where that is not possible."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx

from benchmarks.hub_server import COMMIT, serve
from benchmarks.nano import NANO
from seggpt_jax.errors import InputError
from seggpt_jax.model import hub, parameters, torch_files, weights
from seggpt_jax.model.seggpt import SegGPT

FIND = (
  "import sys, json\n"
  "from seggpt_jax.errors import InputError\n"
  "from seggpt_jax.model import weights\n"
  "for name in sys.argv[1:]:\n"
  "  try: print(weights.find_weights(name))\n"
  "  except InputError as error: print('error:', error)\n"
)


@pytest.fixture(scope="module")
def params() -> dict[str, np.ndarray]:
  return {k: np.asarray(v) for k, v in parameters.split(SegGPT(NANO, rngs=nnx.Rngs(0)))[1].items()}


def find(home, address, *names, warnings=False, **env) -> list[str]:
  """Finds weights in a process of its own, since huggingface_hub reads its settings when it is imported."""
  env = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", **env}
  done = subprocess.run([sys.executable, "-c", FIND, *names], env=env, cwd=home, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  told = [line for line in done.stderr.splitlines() if "hub does not answer" in line] if warnings else []
  return [*told, *done.stdout.splitlines()]


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("BAAI/seggpt-vit-large", ("BAAI/seggpt-vit-large", "main", "")),
    ("hf://a/b@v1", ("a/b", "v1", "")),
    ("hf://BAAI/SegGPT/seggpt_vit_large.pth", ("BAAI/SegGPT", "main", "seggpt_vit_large.pth")),
    ("hf://a/b@v1/c/d.safetensors", ("a/b", "v1", "c/d.safetensors")),
    ("a/b/c", None),
    ("weights.d/vit.pth", None),
    ("../a", None),
    ("/a/b", None),
    ("small", None),
  ],
)
def test_names_of_the_hub_are_told_from_paths(name, expected):
  assert hub.parse(name) == expected


def test_folder_that_exists_makes_a_name_a_path(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "runs").mkdir()
  with pytest.raises(InputError, match=r"runs/typo: not found, expected a weights directory.*Hugging Face name"):
    weights.find_weights("runs/typo")


@pytest.mark.parametrize("name", ["hf://a", "hf://a/b/c.txt", "hf://"])
def test_address_that_names_nothing_is_refused(name):
  with pytest.raises(InputError, match="expected hf://OWNER/NAME"):
    weights.find_weights(name)


def test_local_pytorch_files_are_converted_once(tmp_path, params, monkeypatch):
  monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
  torch_files.write(tmp_path / "w.safetensors", dict(params), NANO, "baai")
  torch_files.write(tmp_path / "hf", dict(params), NANO, "hf")
  for source in ("w.safetensors", "hf"):
    found = weights.find_weights(tmp_path / source)
    before = (found / "digests.json").stat().st_mtime_ns
    assert weights.find_weights(tmp_path / source) == found
    assert (found / "digests.json").stat().st_mtime_ns == before
    for name, value in weights.load_params(tmp_path / source).items():
      np.testing.assert_array_equal(value, params[name])


def test_weights_of_the_hub_are_fetched_resumed_and_kept(tmp_path, params):
  """Breaks the connection of the first download; the second start needs no network."""
  torch_files.write(tmp_path / "hf", dict(params), NANO, "hf")
  weights.save_weights(tmp_path / "ours", params, NANO)
  (tmp_path / "ours" / "README.md").write_text("card")
  (tmp_path / "home").mkdir()
  names = ("mine/nano", "hf://mine/ours@main", "hf://mine/nano/model.safetensors")
  with serve({"mine/nano": tmp_path / "hf", "mine/ours": tmp_path / "ours"}, {"model.safetensors": 5000}) as (
    address,
    log,
  ):
    first = find(tmp_path / "home", address, *names)
    problems = find(
      tmp_path / "home", address, "no/such", "mine/gated", "mine/nano@v9", "hf://mine/nano@v9", "hf://mine/nano/x.pth"
    )
  fetches = [line for line in log if line.startswith(f"GET mine/nano/resolve/{COMMIT}/model.safetensors")]
  assert len(fetches) == 2, fetches  # the one that broke off, and the one that ends it; the second name fetches nothing
  assert not any("README" in line for line in log)
  assert first[0].endswith(f"seggpt_jax/mine--nano/{COMMIT}/model")
  for found in first:
    for name, value in weights.load_params(found).items():
      np.testing.assert_array_equal(value, params[name])
  assert all(line.startswith("error:") for line in problems)
  for line, expected in zip(
    problems,
    ("neither a local path nor", "access is restricted", "no revision 'v9'", "no revision 'v9'", "no such file"),
    strict=True,
  ):
    assert expected in line
  assert find(tmp_path / "home", address, *names) == first
  missing = find(tmp_path / "home", address, "other/one")[0]
  assert f"{address}/other/one/resolve/main/model.safetensors and config.json beside it by hand" in missing
  assert "HF_HUB_OFFLINE is set" in find(tmp_path / "home", address, "other/one", HF_HUB_OFFLINE="1")[0]


def test_a_refusal_is_not_hidden_by_what_was_fetched_before_but_a_failing_hub_is(tmp_path, params):
  """With 401, 403 or 404, older weights would be read in silence; with 503, they are read with a warning."""
  torch_files.write(tmp_path / "hf", dict(params), NANO, "hf")
  (tmp_path / "home").mkdir()
  repositories = {"mine/nano": tmp_path / "hf"}
  with serve(repositories) as (address, _):
    first = find(tmp_path / "home", address, "mine/nano")
    repositories["mine/nano"] = 503
    failing = find(tmp_path / "home", address, "mine/nano", warnings=True)
    del repositories["mine/nano"]
    assert "neither a local path nor" in find(tmp_path / "home", address, "mine/nano")[0]
  assert failing[-1:] == first
  assert "mine/nano: the hub does not answer" in failing[0] and f"read as fetched before, {COMMIT[:8]}" in failing[0]
  offline = find(tmp_path / "home", address, "mine/nano", HF_HUB_OFFLINE="1", warnings=True)
  assert offline == first  # asked for, so there is nothing to warn of
