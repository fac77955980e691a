"""Fills the reference pages from the program itself while mkdocs builds the site, so that they cannot go stale.

In a page, `<!-- run: seggpt train --help -->` becomes the output of that command, and `<!-- config keys -->` becomes a
table of every key of the training configuration.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

_RUN = re.compile(r"<!-- run: seggpt (.*?) -->")
_CONFIG_KEYS = "<!-- config keys -->"


def on_page_markdown(markdown: str, **_) -> str:
  """Replaces the marks in one page's Markdown."""
  commands = _RUN.findall(markdown)
  with ThreadPoolExecutor(2) as pool:
    outputs = dict(zip(commands, pool.map(_output, commands), strict=True))
  markdown = _RUN.sub(lambda found: outputs[found[1]], markdown)
  return markdown.replace(_CONFIG_KEYS, _config_tables()) if _CONFIG_KEYS in markdown else markdown


def _output(arguments: str) -> str:
  """Returns what `seggpt ARGUMENTS` prints, as a code block."""
  # The `seggpt` script may belong to another environment than the one that builds the site.
  command = [sys.executable, "-c", "from seggpt_jax.cli.main import main; main()", *shlex.split(arguments)]
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "100"}
  text = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
  if not text:
    raise ValueError(f"seggpt {arguments}: printed nothing, expected its help")
  return f"```text\n{text.strip()}\n```"


def _config_tables() -> str:
  """Returns one table of keys for each group of the configuration, such as `data` or `optim`."""
  from seggpt_jax.training.schema import KEYS

  def group_of(key) -> str:
    return key.name.rpartition(".")[0]

  tables = []
  for group, keys in itertools.groupby(sorted(KEYS, key=lambda key: group_of(key)), group_of):
    rows = [f"| `{key.name}` | `{key.default!r}` | {key.allowed} | {_meaning(key)} |" for key in keys]
    title = f"## `config.{group}`" if group else "## The run"
    tables += [title, "\n".join(["| key | default | values | meaning |", "|---|---|---|---|", *rows])]
  return "\n\n".join(tables)


def _meaning(key) -> str:
  text = f"{key.meaning} (only {key.applies})" if key.applies else key.meaning
  return text.replace("|", "\\|")
