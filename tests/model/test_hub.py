"""Weights by their Hugging Face name: fetched and converted once, and one clear line where that is not possible."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

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
# As FIND, without the seconds of a conversion.
FETCH = (
  "import sys, shutil\n"
  "from seggpt_jax.errors import InputError, MachineError\n"
  "from seggpt_jax.model import hub\n"
  "for name in sys.argv[1:]:\n"
  "  try: print(hub.fetch(name, hub.parse('hf://' + name.removeprefix('hf://')), shutil.copytree))\n"
  "  except (InputError, MachineError) as error: print('error:', error)\n"
)
CHUNK = 4096
# The library writes pieces of 10 MB.
SMALL_PIECES = f"from huggingface_hub import constants\nconstants.DOWNLOAD_CHUNK_SIZE = {CHUNK}\n"


@pytest.fixture(scope="module")
def params() -> dict[str, np.ndarray]:
  return {k: np.asarray(v) for k, v in parameters.split(SegGPT(NANO, rngs=nnx.Rngs(0)))[1].items()}


@pytest.fixture(scope="module")
def served(tmp_path_factory, params) -> Path:
  folder = tmp_path_factory.mktemp("hub") / "hf"
  torch_files.write(folder, dict(params), NANO, "hf")
  return folder


@pytest.fixture
def home(tmp_path) -> Path:
  (tmp_path / "a home").mkdir()  # people's folders have spaces
  return tmp_path / "a home"


def find(home, address, *names, warnings=False, code=FIND, **env) -> list[str]:
  """Finds weights in a process of its own, since huggingface_hub reads its settings when it is imported."""
  process = start(home, address, *names, code=code, **env)
  found, errors = process.communicate()
  assert process.returncode == 0, errors
  told = [line for line in errors.splitlines() if "hub does not answer" in line] if warnings else []
  return [*told, *found.splitlines()]


def start(home, address, *names, code=FIND, **env) -> subprocess.Popen:
  """Starts a process in which the library reads its settings. Ctrl-C reaches it even if the tests ignore it."""
  code = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{code}"
  env = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", **env}
  return subprocess.Popen(
    [sys.executable, "-c", code, *names], env=env, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("hf://BAAI/seggpt-vit-large", ("BAAI/seggpt-vit-large", "main", "")),
    ("BAAI/seggpt-vit-large", None),
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


@pytest.mark.parametrize("name", ["runs/typo", "weights/vit_large"])
def test_a_path_that_is_not_there_is_never_asked_for_on_the_hub(name):
  """A missing folder of weights would become a download, or an error about tokens."""
  with pytest.raises(InputError, match=rf"{name}: not found, expected .* small or drawn .*`seggpt convert`"):
    weights.find_weights(name)


@pytest.mark.parametrize("name", ["hf://a", "hf://a/b/c.txt", "hf://", "https://host/weights.pth", "gs://a/b"])
def test_address_that_names_nothing_is_refused(name):
  with pytest.raises(InputError, match="no address that weights are read from, expected a path, hf://OWNER/NAME"):
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


def sent(log: list[str], file: str = "model.safetensors") -> int:
  """Returns the bytes of a file that the server has sent."""
  return sum(int(line.split()[1]) for line in log if line.startswith("sends ") and line.endswith(file))


def assert_same(name: str | os.PathLike, params: dict[str, np.ndarray]) -> None:
  for key, value in weights.load_params(name).items():
    np.testing.assert_array_equal(value, params[key])


def test_weights_of_the_hub_are_fetched_resumed_and_kept(tmp_path, params):
  """Breaks the connection of the first download; the second start needs no network."""
  torch_files.write(tmp_path / "hf", dict(params), NANO, "hf")
  weights.save_weights(tmp_path / "ours", params, NANO)
  (tmp_path / "ours" / "README.md").write_text("card")
  (tmp_path / "home").mkdir()
  names = ("hf://mine/nano", "hf://mine/ours@main", "hf://mine/nano/model.safetensors")
  with serve({"mine/nano": tmp_path / "hf", "mine/ours": tmp_path / "ours"}, {"model.safetensors": 5000}) as (
    address,
    log,
  ):
    first = find(tmp_path / "home", address, *names, code=SMALL_PIECES + FIND)
    problems = find(
      *(tmp_path / "home", address, "hf://no/such", "hf://mine/gated", "hf://mine/nano@v9", "hf://mine/nano/x.pth")
    )
  fetches = [line for line in log if line.startswith(f"GET mine/nano/resolve/{COMMIT}/model.safetensors")]
  # The interrupted fetch, the fetch that ends it, and the fetch of the third name, as the download is deleted by then.
  assert len(fetches) == 3, fetches
  assert not any("README" in line for line in log)
  assert first[0].endswith(f"seggpt_jax/mine--nano/{COMMIT}/model")
  for found in first:
    assert_same(found, params)
  assert not [path for path in (tmp_path / "home").rglob("*.safetensors") if path.is_file()]  # kept once, converted
  assert all(line.startswith("error:") for line in problems)
  for line, expected in zip(
    problems,
    ("no repository", "access is restricted", "no revision 'v9'", "no such file"),
    strict=True,
  ):
    assert expected in line
  assert find(tmp_path / "home", address, *names) == first
  missing = find(tmp_path / "home", address, "hf://other/one")[0]
  assert f"{address}/other/one/resolve/main/model.safetensors and config.json next to it by hand" in missing
  assert "HF_HUB_OFFLINE is set" in find(tmp_path / "home", address, "hf://other/one", HF_HUB_OFFLINE="1")[0]


def test_a_refusal_is_not_hidden_by_what_was_fetched_before_but_a_failing_hub_is(tmp_path, served):
  """With 401, 403 or 404, older weights would be read in silence; with 503, they are read with a warning."""
  (tmp_path / "home").mkdir()
  repositories = {"mine/nano": served}
  with serve(repositories) as (address, _):
    first = find(tmp_path / "home", address, "mine/nano", code=FETCH)
    repositories["mine/nano"] = 503
    failing = find(tmp_path / "home", address, "mine/nano", code=FETCH, warnings=True)
    del repositories["mine/nano"]
    assert "not found, no repository" in find(tmp_path / "home", address, "mine/nano", code=FETCH)[0]
  assert failing[-1:] == first
  assert "mine/nano: the hub does not answer" in failing[0] and f"read as fetched before, {COMMIT[:8]}" in failing[0]
  offline = find(tmp_path / "home", address, "mine/nano", code=FETCH, HF_HUB_OFFLINE="1", warnings=True)
  assert offline == first  # asked for, so there is nothing to warn of


def wait_for(condition, process: subprocess.Popen) -> None:
  end = time.monotonic() + 120
  while not condition():
    assert process.poll() is None and time.monotonic() < end, process.communicate()
    time.sleep(0.02)


def assert_fetched(found: str, served: Path) -> None:
  assert (Path(found) / "model.safetensors").read_bytes() == (served / "model.safetensors").read_bytes()
  assert not list(Path(found).parents[1].glob("downloads"))


def killed_half_way(home, address, served: Path, file="model.safetensors", by=signal.SIGKILL) -> None:
  """Kills a download of mine/nano when half of a file has come."""
  half = (served / file).stat().st_size // 2
  process = start(home, address, "mine/nano", code=SMALL_PIECES + FETCH)
  folder = home / "seggpt_jax" / "mine--nano" / "downloads" / COMMIT
  # The last pieces may be in buffers.
  wait_for(lambda: any(each.stat().st_size >= half - 4 * CHUNK for each in folder.rglob("*.incomplete")), process)
  process.send_signal(by)
  process.communicate()
  assert not (folder / file).exists()


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_download_costs_its_unfinished_file_and_leaves_nothing(tmp_path, home, by):
  shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
  sharded = tmp_path / "sharded"
  sharded.mkdir()
  for name, content in (("config.json", b"{}"), (shards[0], bytes(30_000)), (shards[1], b"a" * 60_000)):
    (sharded / name).write_bytes(content)
  with serve({"mine/nano": sharded}, stall={shards[1]: 30_000}) as (address, log):
    killed_half_way(home, address, sharded, shards[1], by)
    (found,) = find(home, address, "mine/nano", code=FETCH)
  assert (sent(log, shards[0]), sent(log, shards[1])) == (30_000, 30_000 + 60_000)
  assert sorted(each.name for each in Path(found).iterdir()) == sorted(["config.json", *shards])
  assert all((Path(found) / name).read_bytes() == (sharded / name).read_bytes() for name in shards)
  assert not (home / "seggpt_jax/mine--nano/downloads").exists()


def test_two_processes_at_once_fetch_once(served, home):
  """The second one waits for the first, and says so."""
  size = (served / "model.safetensors").stat().st_size
  waits = threading.Event()
  with serve({"mine/nano": served}, pause={"model.safetensors": (size // 2, waits.is_set)}) as (address, log):
    first = start(home, address, "mine/nano", code=SMALL_PIECES + FETCH)
    wait_for(lambda: sent(log), first)
    second = start(home, address, "mine/nano", code=FETCH)
    assert "in use by another process" in next(line for line in second.stderr if "seggpt_jax" in line)
    waits.set()
    found = {process.communicate()[0] for process in (first, second)}
    assert sent(log) == size, log
  assert len(found) == 1
  assert_fetched(found.pop().strip(), served)


def test_files_of_the_hubs_own_cache_are_used_and_stay(served, home):
  get = "import sys; from huggingface_hub import hf_hub_download as get; print(get('mine/nano', 'model.safetensors'))"
  with serve({"mine/nano": served}) as (address, log):
    cached = start(home, address, code=get).communicate()[0].strip()
    before = sent(log)
    (found,) = find(home, address, "mine/nano", code=FETCH)
    assert sent(log) == before > 0
  assert_fetched(found, served)
  assert os.path.isfile(cached)


def test_renamed_repository_is_followed_and_the_token_stays_with_the_hub(served, home):
  """The hub redirects old names, and large files to storage elsewhere."""
  repositories = {"mine/new": served}
  with serve({"mine/nano": served}) as (storage, there), serve(repositories) as (address, here):
    repositories["mine/old"] = f"{address}/mine/new"
    (found,) = find(home, address, "mine/old", code=FETCH, HF_TOKEN="secret")
    assert_fetched(found, served)
    large = f"mine/new/resolve/{COMMIT}/model.safetensors"
    assert f"GET {large}" in here and f"token for {large}" in here
    away = {"Location": f"{storage}/{large.replace('new', 'nano')}", **told(served)}
    answers = {f"mine/away/resolve/{COMMIT}/model": (302, away, b"")}
    with serve({"mine/away": served}, answers=answers) as (other, asked):
      (found,) = find(home, other, "mine/away", code=FETCH, HF_TOKEN="secret")
    assert_fetched(found, served)
    assert f"token for mine/away/resolve/{COMMIT}/model.safetensors" in asked
    assert sent(there) and not any("token" in line for line in there)


def told(served: Path) -> dict[str, str]:
  """Returns the headers with which the hub describes a large file, also where it redirects to storage."""
  data = (served / "model.safetensors").read_bytes()
  return {"X-Repo-Commit": COMMIT, "X-Linked-Etag": hashlib.sha256(data).hexdigest(), "X-Linked-Size": str(len(data))}


PAGE = (200, {"Content-Type": "text/html"}, b"<!DOCTYPE html><title>Log in</title>")
API = "api/models/mine/nano"


def test_failure_is_one_line_that_says_what_to_do(served, home):
  api, large = "api/models/mine/", f"/resolve/{COMMIT}/model"
  cases = {
    f"{api}a": ((429, {"Retry-After": "77"}, b""), "rerun the command in 77 s, and set HF_TOKEN for a higher limit"),
    f"{api}b": ((403, {}, b""), "or correct HF_TOKEN"),
    f"{api}c": (PAGE, "(not a hub's, but for example a web page of a proxy"),
    f"{api}d": ((200, {}, b"[]"), "(not a hub's"),
    f"{api}e": ((502, {}, b""), "cannot be fetched: Server error '502"),
    f"mine/f{large}": (PAGE, "rerun the command"),
    f"mine/g{large}": ((200, told(served), b"short"), "rerun the command"),
    f"mine/h{large}": ((403, {}, b""), "or correct HF_TOKEN"),
    f"mine/i{large}": (
      (302, {"Location": "http://127.0.0.1:9/x", **told(served)}, b""),
      "cannot be fetched, no usable answer from",
    ),
    f"mine/j{large}": (
      (200, told(served), bytes((served / "model.safetensors").stat().st_size)),
      "is not what the hub's digest says",
    ),
  }
  names = [f"mine/{letter}" for letter in "abcdefghij"]
  hasty = f"import time\ntime.sleep = lambda _: None\n{FETCH}"  # the library waits between its tries
  answers = {key: answer for key, (answer, _) in cases.items()}
  with serve(dict.fromkeys(names, served), answers=answers) as (address, _):
    lines = find(home, address, *names, code=hasty)
    answers.clear()
    for found in find(home, address, *names, code=FETCH):
      assert_fetched(found, served)
  for line, name, (_, expected) in zip(lines, names, cases.values(), strict=True):
    assert line.startswith(f"error: {name}: ") and expected in line


def test_login_page_of_a_network_does_not_hide_what_was_fetched_before(served, home):
  answers = {}
  with serve({"mine/nano": served}, answers=answers) as (address, _):
    first = find(home, address, "mine/nano", code=FETCH)
    for answers[API] in (PAGE, (429, {"Retry-After": "9"}, b"")):
      again = find(home, address, "mine/nano", code=FETCH, warnings=True)
      assert again[-1:] == first and "the hub does not answer" in again[0]


def test_name_that_the_hub_cannot_have_is_refused(home):
  (line,) = find(home, "http://127.0.0.1:9", "hf://mine/a--b", code=FETCH)
  assert line.startswith("error: hf://mine/a--b: mine/a--b cannot be a repository")


@pytest.mark.parametrize("proxy", ["nonsense://x", "socks5://127.0.0.1:9"])
def test_proxy_that_cannot_be_used_is_named(served, home, proxy):
  with serve({"mine/nano": served}) as (address, _):
    (line,) = find(home, address, "mine/nano", code=FETCH, ALL_PROXY=proxy, NO_PROXY="", no_proxy="")
  assert line.startswith("error: mine/nano: ") and "proxy" in line.lower()


def test_paths_out_of_a_repository_are_refused(served, home):
  digest = hashlib.sha256(b"x").hexdigest()
  lfs = {"size": 1, "sha256": digest, "pointerSize": 1}
  names = ["digests.json", "../../../../outside"]
  info = {"id": "mine/nano", "sha": COMMIT, "siblings": [{"rfilename": each, "size": 1, "lfs": lfs} for each in names]}
  answers = {API: (200, {}, json.dumps(info).encode()), f"mine/nano/resolve/{COMMIT}": (200, {}, b"x")}
  with serve({"mine/nano": served}, answers=answers) as (address, _):
    (line,) = find(home, address, "mine/nano", code=FETCH)
  assert "expected a path inside it" in line and not (home / "outside").exists()


def test_a_cache_that_needs_nothing_new_is_not_written_to(served, home):
  """Clusters share a cache that is mounted read-only."""
  with serve({"mine/nano": served}) as (address, _):
    first = find(home, address, "mine/nano", code=FETCH)
    before = {path: path.stat().st_mtime_ns for path in (home / "seggpt_jax").rglob("*")}
    assert find(home, address, "mine/nano", code=FETCH) == first
  assert before == {path: path.stat().st_mtime_ns for path in (home / "seggpt_jax").rglob("*")}


def test_cache_that_cannot_be_written_is_named(served, home):
  (home / "file").write_text("")
  with serve({"mine/nano": served}) as (address, _):
    (line,) = find(home, address, "mine/nano", code=FETCH, HF_HOME=str(home / "file" / "cache"))
  assert line.startswith("error: ") and "file/cache/seggpt_jax: cannot be written: " in line


def test_full_disk_ends_in_one_line_and_leaves_nothing(served, home):
  full = (
    "import errno, os\n"
    "from huggingface_hub import file_download\n"
    "get = file_download.http_get\n"
    "class Full:\n"
    "  def __init__(self, out): self.out = out\n"
    "  def write(self, data):\n"
    "    self.out.write(data[:8192])\n"
    "    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
    "def http_get(url, out, **options): get(url, Full(out) if 'model.safe' in url else out, **options)\n"
    "file_download.http_get = http_get\n"
  )
  with serve({"mine/nano": served}) as (address, _):
    (line,) = find(home, address, "mine/nano", code=full + FETCH)
    assert line.startswith("error: ") and "the disk is full; make room and rerun the same command" in line
    assert not list(home.rglob("*.incomplete"))
    (found,) = find(home, address, "mine/nano", code=FETCH)
  assert_fetched(found, served)


def test_interrupted_conversion_fetches_nothing_again(served, home, params):
  kill = (
    "import os, sys\n"
    "from seggpt_jax.model import torch_files, weights\n"
    "weights.save_weights = lambda path, *_: os.kill(os.getpid(), 9)\n"
    "weights.find_weights(sys.argv[1])\n"
  )
  with serve({"mine/nano": served}) as (address, log):
    process = start(home, address, "hf://mine/nano", code=kill)
    process.communicate()
    assert process.returncode == -9
    before = sent(log)
    (found,) = find(home, address, "hf://mine/nano")
    assert sent(log) == before
  assert_same(found, params)
  assert not list(home.rglob("*.safetensors"))
