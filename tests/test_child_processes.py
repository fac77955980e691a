"""Processes that were started for another one end with it; otherwise they would keep a machine busy for hours."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

FOLLOWING = """
import os, time
from seggpt_jax.child_processes import follow_parent
follow_parent()
print("SEGGPT_FOLLOWS_STDIN" in os.environ, flush=True)
time.sleep(60)
"""


@pytest.fixture
def following(monkeypatch):
  monkeypatch.setenv("SEGGPT_FOLLOWS_STDIN", "1")
  pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
  process = subprocess.Popen([sys.executable, "-c", FOLLOWING], **pipes)
  yield process
  process.kill()
  process.wait()
  process.stdout.close()


def test_a_process_gets_sigterm_when_its_parent_has_gone(following):
  # Processes that it starts have pipes of their own.
  assert following.stdout.readline() == "False\n"
  following.stdin.close()
  assert following.wait(30) == -signal.SIGTERM
