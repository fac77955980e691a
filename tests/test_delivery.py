"""Delivery: GitHub actions are pinned by commit, and the container image has a health check."""

from __future__ import annotations

import http.server
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_actions_are_named_by_commit():
  """A tag can be moved to other code."""
  lines = [line for path in (ROOT / ".github/workflows").glob("*.yml") for line in path.read_text().splitlines()]
  used = [line for line in lines if "uses:" in line]
  assert used and [line for line in used if not re.search(r"@[0-9a-f]{40}  # v\d+(\.\d+)+$", line)] == []


@pytest.mark.parametrize(("command", "status", "healthy"), [("serve", 200, 1), ("serve", 503, 0), ("train", 503, 1)])
def test_the_health_check_of_the_image_asks_a_service(tmp_path, command, status, healthy):
  found = re.search(r"HEALTHCHECK .*? CMD (\[.*?\])\nENTRYPOINT", (ROOT / "Dockerfile").read_text(), re.DOTALL)
  program = json.loads(found[1].replace("\\\n", ""))[2].replace("/proc/1/cmdline", str(tmp_path / "line"))

  class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      self.send_response(status if self.path == "/health" else 404)
      self.end_headers()

  with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "line").write_text(f"python\0/usr/bin/seggpt\0{command}\0--port\0{server.server_port}\0")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    server.shutdown()
  assert (done.returncode == 0) == bool(healthy), done.stderr
