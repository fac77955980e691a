"""The notebooks that people start from: committed without outputs, and every cell runs from top to bottom."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs_and_its_links_lead_somewhere(path):
  notebook = json.loads(path.read_text())
  assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
  assert notebook["metadata"].keys() == {"kernelspec", "language_info"}
  ids = [cell["id"] for cell in notebook["cells"]]
  assert len(set(ids)) == len(ids)
  for cell in notebook["cells"]:
    assert cell["metadata"] == {}
    if cell["cell_type"] == "code":
      assert (cell["outputs"], cell["execution_count"]) == ([], None), cell["id"]
    else:
      links = re.findall(r"\]\((?!https?:)([^)#]+)", "".join(cell["source"]))
      assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
  """Executes every cell as Jupyter does; the start notebook takes seven minutes on two cores."""
  import nbclient
  import nbformat

  command = tmp_path / "bin" / "seggpt"
  command.parent.mkdir()
  command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m seggpt_jax "$@"\n')
  command.chmod(0o755)
  monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
  monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
  monkeypatch.setenv("XLA_FLAGS", "")  # one device, as on a laptop
  (tmp_path / "work").mkdir()
  # A failed `!` line does not end a cell: IPython only keeps its exit status.
  check = "assert globals().get('_exit_code', 0) == 0, 'a command failed'"
  notebook = nbformat.read(path, 4)
  notebook.cells = [
    each
    for cell in notebook.cells
    for each in ([cell, nbformat.v4.new_code_cell(check)] if cell.cell_type == "code" else [cell])
  ]
  resources = {"metadata": {"path": str(tmp_path / "work")}}
  done = nbclient.NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=resources).execute()
  printed = "".join(output.get("text", "") for cell in done.cells for output in cell.get("outputs", []))
  before, after = (float(found) for found in re.findall(r"foreground IoU (0\.\d+)", printed))
  assert after > before, printed
