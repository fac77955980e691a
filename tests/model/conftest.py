"""Pairs of equal networks, built once."""

import peers as peers_lib
import pytest


@pytest.fixture(scope="session", params=list(peers_lib.TINY))
def peers(request) -> peers_lib.Peers:
  """Each tiny architecture in turn."""
  return peers_lib.build(**peers_lib.TINY[request.param])


@pytest.fixture(scope="session")
def square() -> peers_lib.Peers:
  """The tiny architecture nearest to the release."""
  return peers_lib.build(**peers_lib.TINY["square"])
