"""The sharding table: a rule that misses its parameter wastes memory on every device."""

import jax
import pytest
from jax.sharding import PartitionSpec

from seggpt_jax.errors import InputError
from seggpt_jax.model import parameters
from seggpt_jax.model.config import VARIANTS
from seggpt_jax.training import sharding


def test_all_but_one_percent_of_vit_large_is_split_over_fsdp():
  mesh = sharding.make_mesh(data=2, fsdp=4)
  _, params = parameters.abstract(VARIANTS["vit_large"])
  whole = sum(value.size for value in params.values())
  copied = sum(
    value.size
    for name, value in params.items()
    if sharding._param_sharding(mesh, name, value.shape).is_fully_replicated
  )
  assert copied < 0.01 * whole


def test_a_dimension_that_does_not_divide_stays_whole():
  mesh = sharding.make_mesh(data=1, fsdp=8)
  assert sharding._param_sharding(mesh, "blocks.0.mlp.fc1.kernel", (96, 100)).spec == PartitionSpec(None, None)
  assert sharding._param_sharding(mesh, "blocks.0.mlp.fc1.kernel", (96, 64)).spec == PartitionSpec(None, "fsdp")
  assert sharding._param_sharding(mesh, "blocks.0.norm1.scale", (96,)).spec == PartitionSpec()


def test_the_mesh_takes_all_devices_or_says_what_is_wrong():
  assert dict(sharding.make_mesh(data=-1, fsdp=2).shape) == {"data": 4, "fsdp": 2}
  with pytest.raises(InputError, match="found 3 x 2, expected them to multiply to 8 devices"):
    sharding.make_mesh(data=3, fsdp=2)
  with pytest.raises(InputError, match="found 2 x 3, expected"):
    sharding.make_mesh(data=-1, fsdp=3)


def test_optimizer_state_lies_where_its_parameters_lie():
  mesh = sharding.make_mesh(data=1, fsdp=8)
  kernel = jax.ShapeDtypeStruct((32, 64), "float32")
  tree = ({"mu": {"blocks.0.attn.qkv.kernel": kernel}}, jax.ShapeDtypeStruct((), "int32"))
  moments, count = sharding.tree_sharding(mesh, tree)
  assert moments["mu"]["blocks.0.attn.qkv.kernel"].spec == PartitionSpec(None, "fsdp")
  assert count.is_fully_replicated
