"""Rooms that worker processes and machines without an accelerator use: importing them starts no device."""

import pkgutil
import subprocess
import sys

import seggpt_jax.data
import seggpt_jax.formats

CHECK = """
import importlib, sys
for name in sys.argv[1:]:
  importlib.import_module(name)
if "jax" in sys.modules:
  from jax._src import xla_bridge
  assert not xla_bridge.backends_are_initialized()
"""


def test_importing_every_module_of_data_starts_no_device():
  rooms = (seggpt_jax.data, seggpt_jax.formats)
  names = [f"{room.__name__}.{module.name}" for room in rooms for module in pkgutil.iter_modules(room.__path__)]
  assert {"seggpt_jax.data.pipeline", "seggpt_jax.formats.images"} <= set(names)
  # Workers also read drawn pictures.
  modules = [*names, "seggpt_jax.synthetic.boards", "pretraining.tasks"]
  done = subprocess.run([sys.executable, "-c", CHECK, *modules], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
