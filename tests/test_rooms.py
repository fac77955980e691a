"""The package follows its rooms: a room imports only rooms below it, without circles, and grows within budgets."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "seggpt_jax"

# From the roof down; "" stands for the modules next to the rooms, such as files.py and errors.py.
ROOMS = (
  *("cli", "app", "evaluation", "retrieval", "export", "training", "inference", "audit", "prepare", "synthetic"),
  *("model", "data", "formats", "metrics", ""),
)


# Budgets. Whoever adds an option retires another, or shows what it brings in a measured table and raises a number.
LINES = {
  **{"cli": 2760, "app": 4330, "evaluation": 1680, "retrieval": 780, "export": 490, "training": 3830},
  **{"inference": 4360, "audit": 2230, "prepare": 680, "synthetic": 700, "model": 3950, "data": 2660},
  **{"formats": 2920, "metrics": 440, "": 1375},
}
MOST_IN_A_MODULE = 400
# Modules that were longer when the limit came, with the lines that they had; the list only gets shorter.
LONGER = {}
KEYS, FLAGS, WORDS = 72, 147, 22_000  # of configurations, of all commands (tests/cli/test_bounds.py), of docs

MAIN = {"seggpt_jax.__main__"}  # `python -m seggpt_jax` is above all rooms


def module_name(path: Path) -> str:
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported_names(tree: ast.AST) -> Iterator[str]:
  """Yields what a module imports, inside functions too, except for types only."""
  for node in ast.iter_child_nodes(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, "relative import"
      yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
      yield from imported_names(node)


def imports_of(name: str) -> set[str]:
  """Returns the modules of the package that a module imports."""
  found = set()
  for target in imported_names(ast.parse(MODULES[name].read_text())):
    while target not in MODULES and "." in target:
      target = target.rpartition(".")[0]  # a name in a module
    if target in MODULES and target != name:
      found.add(target)
  return found


def room_of(name: str) -> str:
  parts = name.split(".")
  is_room = len(parts) > 2 or (len(parts) == 2 and (PACKAGE / parts[1]).is_dir())
  return parts[1] if is_room else ""


def test_every_folder_of_the_package_is_a_room():
  assert {room_of(name) for name in MODULES} <= set(ROOMS)


def test_no_room_imports_a_room_above_it():
  upward = []
  for name in MODULES.keys() - MAIN:
    for target in imports_of(name):
      if ROOMS.index(room_of(target)) < ROOMS.index(room_of(name)):
        upward.append(f"{name} imports {target}")
  assert not upward, "\n".join(sorted(upward))


def test_nothing_of_the_package_imports_what_is_outside_of_it():
  """The wheel holds neither `pretraining` nor `benchmarks`; `configs` is shipped inside the package."""
  outside = {"pretraining", "benchmarks", "tests", "configs"}
  found = [
    f"{path.relative_to(ROOT)} imports {target}"
    for path in (*MODULES.values(), *sorted((ROOT / "configs").glob("*.py")))
    for target in imported_names(ast.parse(path.read_text()))
    if target.partition(".")[0] in outside
  ]
  assert not found, "\n".join(found)


def test_no_module_imports_itself_in_a_circle():
  """Counts imports inside functions too: they only hide a circle."""
  graph = {name: imports_of(name) for name in MODULES.keys() - MAIN}
  done: set[str] = set()

  def visit(name: str, path: tuple[str, ...]) -> None:
    if name in path:
      pytest.fail("circle: " + " -> ".join((*path[path.index(name) :], name)))
    if name not in done:
      for target in sorted(graph[name]):
        visit(target, (*path, name))
      done.add(name)

  for name in sorted(graph):
    visit(name, ())


def lines_of(name: str) -> int:
  return len(MODULES[name].read_text().splitlines())


def test_no_room_outgrows_its_budget():
  lines = dict.fromkeys(ROOMS, 0)
  for name in MODULES:
    lines[room_of(name)] += lines_of(name)
  assert {room: count for room, count in lines.items() if count > LINES[room]} == {}


def test_no_module_is_too_long():
  assert {name for name in MODULES if lines_of(name) > LONGER.get(name, MOST_IN_A_MODULE)} == set()
  assert {name for name in LONGER if name not in MODULES or lines_of(name) <= MOST_IN_A_MODULE} == set(), "take it out"


def test_keys_and_words_stay_within_their_budgets():
  from seggpt_jax.training import schema

  assert len(schema.KEYS) <= KEYS
  pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
  assert sum(len(page.read_text().split()) for page in pages) <= WORDS
