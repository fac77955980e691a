"""Folders to run a network on."""

from __future__ import annotations

import pytest

from tests.inference.image_folders import make_folders


@pytest.fixture
def folders(tmp_path):
  return make_folders(tmp_path)
