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

# Modules that may import upward: `python -m seggpt_jax`, and the old paths of commands, which call the new ones.
ENTRIES = {
  "seggpt_jax.__main__",
  "seggpt_jax.data.boards",
  "seggpt_jax.data.inspect",
  "seggpt_jax.data.prepare",
  "seggpt_jax.inference.retrieval",
  "seggpt_jax.model.merge",
  "seggpt_jax.model.pack",
}
# Libraries that were commands under the same path: their `if __name__ == "__main__"` calls the new command.
OLD_COMMANDS = {"seggpt_jax.evaluation.in_context", "seggpt_jax.evaluation.inspection"}


def module_name(path: Path) -> str:
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported_names(tree: ast.AST, skip: str) -> Iterator[str]:
  """Yields what a module imports, inside functions too, except under an `if` on `skip`."""
  for node in ast.iter_child_nodes(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, "relative import"
      yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif not (isinstance(node, ast.If) and skip in ast.unparse(node.test)):
      yield from imported_names(node, skip)


def imports_of(name: str) -> set[str]:
  """Returns the modules of the package that a module imports."""
  skip = "__name__" if name in OLD_COMMANDS else "TYPE_CHECKING"
  found = set()
  for target in imported_names(ast.parse(MODULES[name].read_text()), skip):
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
  for name in MODULES.keys() - ENTRIES:
    for target in imports_of(name):
      if ROOMS.index(room_of(target)) < ROOMS.index(room_of(name)):
        upward.append(f"{name} imports {target}")
  assert not upward, "\n".join(sorted(upward))


def test_entries_are_nothing_but_entries():
  """An exception for a command must not become a way around the order."""
  for name in ENTRIES & MODULES.keys():
    assert len(MODULES[name].read_text().splitlines()) <= 12, name
    importers = [other for other in MODULES if name in imports_of(other)]
    assert not importers, f"{name} is imported by {importers}"
  assert not ENTRIES - MODULES.keys()


def test_no_module_imports_itself_in_a_circle():
  """Counts imports inside functions too: they only hide a circle."""
  graph = {name: imports_of(name) for name in MODULES.keys() - ENTRIES}
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
