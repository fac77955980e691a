"""A dataset for runs of the nano network."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parent))

import nano


@pytest.fixture(scope="session")
def nano_data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("nano") / "data"
  nano.write_dataset(folder)
  return folder
