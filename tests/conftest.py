"""Settings of every test: eight simulated devices, checked shapes, and no silent broadcasting."""

import os
import tempfile

from tests.xla_flags import QUICK

# These must be set before JAX is imported anywhere: the tests run on eight simulated CPU devices.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"  # no test touches the internet
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {QUICK}"

# Many tests train the same tiny network: the processes of one session share what any of them has compiled.
_SESSION = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(tempfile.gettempdir(), f"seggpt_jax_tests_{_SESSION}")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

from jaxtyping import install_import_hook

# Checks the annotated shapes and dtypes of every call into the package.
install_import_hook("seggpt_jax", "beartype.beartype")

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")

from hypothesis import settings

# Hypothesis draws the same examples in every run, so that no test fails once in twenty runs. First calls compile, and
# take longer than any deadline.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

import pytest


@pytest.fixture(autouse=True)
def warned_of_nothing():
  """Lets every test see warnings that an earlier one in the same process has already caused."""
  from seggpt_jax.errors import warn_once

  warn_once.cache_clear()


@pytest.fixture(scope="session")
def config():
  """The architecture of `model`."""
  from tests.loud_network import LOUD

  return LOUD


@pytest.fixture(scope="session")
def model(config):
  """A tiny network that predicts more than gray."""
  from tests.loud_network import loud_network

  return loud_network(config)


@pytest.fixture(scope="session")
def weights_directory(model, tmp_path_factory):
  """The weights of `model` on disk."""
  from seggpt_jax.model import parameters, weights

  directory = tmp_path_factory.mktemp("weights") / "loud"
  weights.save_weights(directory, parameters.split(model)[1], model.config)
  return directory


@pytest.fixture(scope="module")
def without_imagenet():
  """Puts pooled colors in the place of the ImageNet features, which take long to compile."""
  from seggpt_jax.model.imagenet import ImageNetFeatures
  from tests.tiny_matcher import cheap_features

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(ImageNetFeatures, "__call__", cheap_features)
    yield
