"""The cost of digests: it is only known if one side compares the files and the other does not."""

import pytest

from benchmarks import loading, tables
from benchmarks.killed import nano_params
from benchmarks.nano import NANO
from seggpt_jax.errors import InputError
from seggpt_jax.model import digests, weights


def test_only_one_side_compares_the_files(tmp_path):
  weights.save_weights(tmp_path / "w", nano_params(), NANO)
  (tmp_path / "w/commit_success.txt").write_text("no array is read from this file")
  calls = loading.calls(tmp_path / "w")
  calls["without"]()
  with pytest.raises(InputError, match=r"commit_success\.txt is not what was written"):
    calls["with"]()
  with pytest.raises(digests.DamageError):
    calls["alone"]()


def test_a_row_of_the_table():
  row = {"variant": "small", "bytes": 12e6, "with": [2.0, 1.0, 4.0], "without": [1.9] * 3, "alone": [0.02], "others": 0}
  row |= {"device": "CPU, 2 cores", "share": -0.01}
  assert tables.loading_line(row) == "| small | 12 MB | 2 s | 1.9 s | 20 ms | 0% |"
  assert tables.loading_line(row | {"others": 0.5}).endswith("| 0% (void: others took 50% of the processors) |")
  assert tables.loading_line(row).count("|") == tables.LOADING_HEAD.splitlines()[0].count("|")
