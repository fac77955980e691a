"""The imports of the package follow its rooms: a room imports only rooms below it, and nothing in circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "seggpt_jax"

# From the roof down; "" stands for the modules beside the rooms, such as files.py and errors.py.
ROOMS = (
  *("cli", "app", "evaluation", "retrieval", "export", "training", "inference", "audit", "prepare", "synthetic"),
  *("model", "data", "metrics", ""),
)


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
