"""Pairs of equal networks, built once."""

import pytest
import torch

from tests import peers as peers_lib

torch.set_num_threads(1)  # operations are tiny, and several tests run at once


@pytest.fixture(scope="session")
def square() -> peers_lib.Peers:
  """The tiny architecture that is closest to the release."""
  return peers_lib.build(**peers_lib.TINY["square"])


@pytest.fixture(scope="session")
def oblong() -> peers_lib.Peers:
  """The tiny architecture with the fewest blocks."""
  return peers_lib.build(**peers_lib.TINY["oblong"])


@pytest.fixture(scope="session")
def coarse() -> peers_lib.Peers:
  """The tiny architecture with large patches and an odd number of columns."""
  return peers_lib.build(**peers_lib.TINY["coarse"])


@pytest.fixture(scope="session", params=list(peers_lib.TINY))
def peers(request) -> peers_lib.Peers:
  """Each tiny architecture in turn."""
  return request.getfixturevalue(request.param)
