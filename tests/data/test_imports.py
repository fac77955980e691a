"""The data package runs in worker processes and on machines without an accelerator: importing it starts no device."""

import pkgutil
import subprocess
import sys

import seggpt_jax.data

CHECK = """
import importlib, sys
for name in sys.argv[1:]:
  importlib.import_module(name)
if "jax" in sys.modules:
  from jax._src import xla_bridge
  assert not xla_bridge.backends_are_initialized()
"""


def test_importing_every_module_of_data_starts_no_device():
  names = [f"seggpt_jax.data.{module.name}" for module in pkgutil.iter_modules(seggpt_jax.data.__path__)]
  assert "seggpt_jax.data.pipeline" in names
  # Workers also read drawn pictures.
  modules = [*names, "seggpt_jax.synthetic.boards", "pretraining.tasks"]
  done = subprocess.run([sys.executable, "-c", CHECK, *modules], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
