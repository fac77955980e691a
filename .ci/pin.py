"""Writes .ci/requirements.txt: what the tests install on Linux with Python 3.11, with the SHA-256 digest of each file.

  .venv/bin/python .ci/pin.py

Versions come from constraints.txt. PyTorch is left out: its CPU build has another file than the one that PyPI offers.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINE = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]


def main() -> None:
  wanted = ["--constraint", str(ROOT / "constraints.txt"), "torch", f"{ROOT}[demo,docs,test]"]
  report = json.loads(subprocess.run([*LINE, *wanted], check=True, capture_output=True).stdout)
  lines = []
  for package in report["install"]:
    name, version = package["metadata"]["name"].lower().replace("_", "-"), package["metadata"]["version"]
    digest = package["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
    if name != "torch" and digest:
      lines.append(f"{name}=={version} --hash=sha256:{digest}\n")
  (ROOT / ".ci" / "requirements.txt").write_text("# Written by .ci/pin.py\n" + "".join(sorted(lines)))


if __name__ == "__main__":
  main()
