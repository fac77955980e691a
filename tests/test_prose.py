"""Prose reads as native speakers write: docstrings open as sentences do, and no private phrase comes back."""

from __future__ import annotations

import ast
import re
import tokenize
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


# "is None" with a capital is code, and "a text file" is a kind of file.
BANNED = re.compile(
  r"\b(?:(?i:learnt|likewise|see there|whatever|lies under|as they come|of its own accord|goes on|going on|at work"
  r"|mended|broke off|breaks off|likeness|a text(?! (?:file|table))|whole numbers?|beside|(?:is|are) to be)"
  r"|(?i:is|are) none)\b"
)


def prose(path: Path) -> Iterator[tuple[int, str]]:
  """Yields line and text of every comment and string of a file, or of all of it if it is a page."""
  if path.suffix == ".md":
    yield 1, path.read_text()
    return
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
      yield node.lineno, node.value
  start, comments = 0, []
  with open(path, "rb") as file:
    for token in tokenize.tokenize(file.readline):
      if token.type == tokenize.COMMENT:
        start = start if comments else token.start[0]
        comments.append(token.string.strip("# "))
      elif comments and token.type != tokenize.NL:  # a sentence may run over several lines
        yield start, "\n".join(comments)
        comments = []


def test_no_phrase_comes_back_that_a_native_speaker_would_not_write():
  pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
  found = [
    f"{path.relative_to(ROOT)}:{line}: {match[0]}"
    for path in (*sources(), *pages)
    for line, text in prose(path)
    for match in BANNED.finditer(" ".join(text.split()))
  ]
  assert not found, f"{len(found)} phrases:\n" + "\n".join(found)
