"""Docstrings open as sentences do: no "Of ...", "Those ..." or "What ..." whose noun a reader has to look for."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
OPENERS = {
  *("as", "by", "for", "from", "how", "in", "of", "that", "those"),
  *("what", "where", "whether", "which", "whose", "with"),
}


def sources() -> Iterator[Path]:
  yield from sorted(ROOT.glob("*.py"))
  for folder in ("seggpt_jax", "configs", "benchmarks", "pretraining"):
    yield from sorted((ROOT / folder).rglob("*.py"))


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
  """Yields line and text of every docstring of a file."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
      text = ast.get_docstring(node)
      if text:
        yield node.body[0].lineno, text


def test_no_docstring_opens_with_a_word_that_hangs_in_the_air():
  found = [
    f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0]}"
    for path in sources()
    for line, text in docstrings(path)
    if text.split()[0].strip("`,:;.").lower() in OPENERS
  ]
  assert not found, f"{len(found)} docstrings:\n" + "\n".join(found)
