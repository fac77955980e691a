"""Compiler options, the notice before compiling, and the folder of compiled programs."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from seggpt_jax import compilation

FACTORS = jnp.ones((512, 160)), jnp.ones((160, 640))


def fusions(compiled):
  return [line for line in compiled.as_text().splitlines() if "ynn_fusion" in line]


def test_products_are_left_to_eigen_on_cpus():
  function = compilation.jit(lambda a, b: a @ b)
  assert function(*FACTORS).shape == (512, 640)
  assert not fusions(function.compiled().lower(*FACTORS).compile())


def test_a_decorated_function_keeps_its_name_and_static_arguments():
  @compilation.jit(static_argnames="count")
  def repeated(x, count):
    """Repeats an array."""
    return jnp.concatenate([x] * count)

  assert (repeated.__name__, repeated.__doc__) == ("repeated", "Repeats an array.")
  assert repeated(jnp.zeros(3), count=2).shape == (6,)


def test_an_option_that_xla_does_not_know_is_left_out_and_said_once(monkeypatch, caplog):
  """Options come and go between versions of jaxlib."""
  monkeypatch.setattr(compilation, "_CPU_OPTIONS", {"xla_cpu_no_such_thing": True})
  compilation._known_options.cache_clear()
  try:
    assert compilation.options("cpu") == compilation.options("cpu") == {}
    assert caplog.text.count("compiling without xla_cpu_no_such_thing") == 1
  finally:
    compilation._known_options.cache_clear()
  assert compilation.options("tpu") == {}


@pytest.mark.parametrize("chosen", [None, "", "mine"])
def test_programs_are_kept_where_the_user_says_else_in_the_cache_folder(chosen, tmp_path):
  """Runs in another process, because the folder is a setting of the whole process."""
  environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
  environment.pop("JAX_COMPILATION_CACHE_DIR")
  if chosen is not None:
    environment["JAX_COMPILATION_CACHE_DIR"] = chosen and str(tmp_path / chosen)
  program = (
    "from seggpt_jax.compilation import keep_programs; keep_programs()\n"
    "import jax; jax.jit(lambda x: x + 1)(jax.numpy.ones(3)).block_until_ready()"
  )
  subprocess.run([sys.executable, "-c", program], env=environment, check=True)
  kept = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*-cache")}
  assert kept == {None: {"seggpt_jax"}, "": set(), "mine": {"mine"}}[chosen]
  assert jax.config.jax_compilation_cache_dir  # this process still uses the folder of the test suite


def test_the_notice_names_the_program_and_the_time_that_was_measured():
  """Measured first calls on two cores: 11, 3 and 11 s forward, 30, 12 and 60 s in training, at depths 4, 8 and 24."""
  assert compilation.compile_notice("the network", 8, training=False) == (
    "compiling the network, about 3 seconds the first time"
  )
  assert "the training step, about 60 seconds" in compilation.compile_notice("the training step", 24, training=True)
  assert "about 36 seconds" in compilation.compile_notice("the training step", 16, training=True)
  assert "about 30 seconds" in compilation.compile_notice("the training step", 4, training=True)
