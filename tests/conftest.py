"""What every test runs under: eight simulated devices, checked shapes, and no silent broadcasting."""

import os

# Before JAX is imported anywhere: the suite must see what a user with eight devices sees, on the CPU.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

from jaxtyping import install_import_hook

# Checks the annotated shapes and dtypes of every call into the package.
install_import_hook("seggpt_jax", "beartype.beartype")

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
