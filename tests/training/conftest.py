"""Provides a dataset for runs of the nano network."""

import pytest

from benchmarks import nano


@pytest.fixture(scope="session")
def nano_data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("nano") / "data"
  nano.write_dataset(folder)
  return folder
