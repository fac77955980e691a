"""A benchmark shared by processes and interrupted: nothing runs twice, runs do not mix, no table of unfinished work."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from seggpt_jax.errors import InputError
from seggpt_jax.evaluation import parts
from seggpt_jax.evaluation.parts import Finished
from seggpt_jax.inference.run_ledger import Shard


class Sums:
  """A benchmark without a network: every part is a number, and chosen parts fail."""

  name = "sums"

  def __init__(self, fails=(), **settings):
    self.settings, self.fails, self.done = {"model": "a", **settings}, fails, []

  def parts(self, shard):
    return [f"part-{index}" for index in range(5)][shard.index - 1 :: shard.count]

  def run(self, predictor, part, outdir):
    assert predictor == "network"
    if part in self.fails:
      raise InputError(f"{part}: broken")
    self.done.append(part)
    number = int(part[-1])
    return Finished({"number": number}, None if number == 1 else np.full((2, 3, 3), number, np.uint8))

  def results(self, finished):
    total = sum(values["number"] for values in finished.values())
    return {"total": total, "table": parts.Table("Sums", ["measured"], {"total": [total / 100]}, {})}


def run(benchmark, outdir, shard="1/1"):
  return parts.run(benchmark, lambda: "network", outdir, Shard.parse(shard))


def test_a_stopped_run_resumes_after_its_finished_parts(tmp_path):
  first, second = Sums(fails=["part-3"]), Sums()
  with pytest.raises(InputError, match="part-3: broken"):
    run(first, tmp_path)
  assert not (tmp_path / "results.json").exists()
  assert run(second, tmp_path) == {"benchmark": "sums", "settings": {"model": "a"}, "total": 10}
  assert (first.done, second.done) == (["part-0", "part-1", "part-2"], ["part-3", "part-4"])
  assert json.loads((tmp_path / "results.json").read_text())["total"] == 10
  # With all parts finished, the network is not loaded.
  assert parts.run(Sums(), lambda: pytest.fail("loaded"), tmp_path)["total"] == 10


def test_the_last_of_several_processes_makes_the_table(tmp_path):
  assert run(Sums(), tmp_path, "2/3") is None
  assert run(Sums(), tmp_path, "1/3") is None
  assert run(Sums(), tmp_path, "3/3")["total"] == 10
  sheet = np.asarray(Image.open(tmp_path / "examples.png"))
  np.testing.assert_array_equal(sheet[::2, 0, 0], [0, 2, 3, 4])  # in the order of the parts, whichever process ran them
  assert "| total | 10.0 |  |" in (tmp_path / "results.md").read_text()


def test_parts_of_another_run_are_not_mixed_in(tmp_path):
  run(Sums(fails=["part-1"], seed=0), tmp_path, "1/3")
  with pytest.raises(
    InputError, match=r"part-0\.json: found seed=0 of an earlier run, expected 1 .*; choose another --outdir"
  ):
    run(Sums(seed=1), tmp_path)
  with pytest.raises(InputError, match=r"part-0\.json: found seed=0 of an earlier run, expected None as asked for now"):
    run(Sums(), tmp_path)
  (tmp_path / "parts" / "part-0.json").write_text("{")
  with pytest.raises(InputError, match=r"part-0\.json: cannot be read .* delete it"):
    run(Sums(seed=0), tmp_path)


def test_a_folder_that_cannot_be_written_to_is_named_before_the_work(tmp_path):
  (tmp_path / "out").write_text("a file")
  benchmark = Sums()
  with pytest.raises(InputError, match="out/parts: cannot be written"):
    run(benchmark, tmp_path / "out")
  assert benchmark.done == []


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "a/b", "-1/2", "1/2/3", "1/0"])
def test_shards_are_one_of_n(text):
  assert (Shard.parse("2/4").index, Shard.parse("2/4").count) == (2, 4)
  with pytest.raises(InputError, match=r"--shard: found .*, expected i/n such as 2/4"):
    Shard.parse(text)
