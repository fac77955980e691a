"""Collectives of a compiled program: a wrong number of bytes would make every predicted network time wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.collectives import Collective, bandwidth, find_collectives, loops_without_count
from benchmarks.peaks import CHIPS


def compiled(function, into, out, *shapes):
  mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "fsdp"))
  into = tuple(NamedSharding(mesh, PartitionSpec(*spec)) for spec in into)
  out = NamedSharding(mesh, PartitionSpec(*out))
  arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return jax.jit(function, in_shardings=into, out_shardings=out).lower(*arguments).compile().as_text()


def test_a_gather_carries_the_whole_array():
  program = compiled(lambda x: x + 1, [("fsdp",)], (), (16, 8))
  assert find_collectives(program) == [Collective("all-gather", 16 * 8 * 4, 4, 1)]


def test_a_sum_over_the_outer_axis_joins_distant_devices():
  program = compiled(lambda x: x.sum(0), [("data",)], (), (16, 8))
  assert find_collectives(program) == [Collective("all-reduce", 8 * 4, 2, 4)]


@pytest.mark.parametrize(
  ("line", "expected"),
  [
    ("%r = f32[2,8]{1,0} reduce-scatter(%x), replica_groups=[2,4]<=[8]", Collective("reduce-scatter", 256, 4, 1)),
    (
      "%a = (bf16[4]{0}, /*index=1*/f32[2]{0}) all-reduce(%x, %y), replica_groups={{0,2},{1,3}}",
      Collective("all-reduce", 16, 2, 2),
    ),
    ("ROOT %g = bf16[8]{0} all-gather(%x), replica_groups=[4,2]<=[2,4]T(1,0)", Collective("all-gather", 16, 2, 4)),
    (
      "%g = u8[8]{0} all-gather(%x), replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}",
      Collective("all-gather", 8, 4, 2),
    ),
    (
      "%g = u8[8]{0} all-gather(%x), replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a'}",
      Collective("all-gather", 8, 4, 1),
    ),
    (
      "%p = f32[4]{0} collective-permute(%x), source_target_pairs={{0,1},{1,7},{7,0}}",
      Collective("collective-permute", 16, 2, 7),
    ),
  ],
)
def test_every_form_of_a_line_is_read(line, expected):
  assert find_collectives(line) == [expected]


def test_bytes_that_a_ring_sends():
  assert Collective("all-reduce", 800, 8, 1).sent == 1400
  assert Collective("all-gather", 800, 8, 1).sent == 700
  assert Collective("collective-permute", 800, 2, 1).sent == 800


def test_unknown_forms_are_refused():
  with pytest.raises(ValueError, match="replica_groups"):
    find_collectives("%a = f32[4]{0} all-reduce(%x), replica_groups=mesh['a'=8] {'a':(1)2}")


def test_operations_that_are_split_into_start_and_end_count_once():
  gather = "%g = ((bf16[4]{0}), (bf16[8]{0})) all-gather-start(%x), replica_groups={{0,1}}"
  permute = "%p = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}"
  assert find_collectives(f"{gather}\n%d = bf16[8]{{0}} all-gather-done(%g)") == [Collective("all-gather", 16, 2, 1)]
  assert find_collectives(permute) == [Collective("collective-permute", 16, 2, 1)]


def test_those_in_a_loop_count_as_often_as_it_runs():
  line = "  %a = f32[4]{0} all-reduce(%x), replica_groups={{0,1}}"
  loop = "while(%t), condition=%c, body=%b"
  for count, rounds in ((', backend_config={"known_trip_count":{"n":"3"}}', 3), ("", 1)):
    program = (
      f"%b (p: f32[4]) -> f32[4] {{\n{line}\n}}\n\nENTRY %main (p: f32[4]) -> f32[4] {{\n  %w = {loop}{count}\n}}"
    )
    assert find_collectives(program) == [Collective("all-reduce", 16, 2, 1)] * rounds
    assert loops_without_count(program) == (rounds == 1)
  limit = "%c (p: s32[]) -> pred[] {\n  %n = s32[] constant(5)\n  ROOT %l = pred[] compare(%p, %n), direction=LT\n}\n"
  assert len(find_collectives(limit + program)) == 5


def test_an_operation_that_runs_beside_others_counts_once():
  gather = "  %g = bf16[8]{0} all-gather(%x), channel_id=7, replica_groups={{0,1}}\n}\n"
  calls = "".join(f"  %s.{part} = bf16[8]{{0}} fusion(%x), calls=%f{part}\n" for part in range(3))
  parts = "".join(f"%f{part} (x: bf16[4]) -> bf16[8] {{\n{gather}" for part in range(3))
  program = f"{parts}ENTRY %main (x: bf16[4]) -> bf16[8] {{\n{calls}}}"
  assert find_collectives(program) == [Collective("all-gather", 16, 2, 1)]


def test_collectives_over_nodes_are_as_fast_as_their_network_cards():
  h200 = next(chip for chip in CHIPS if chip.name == "H200")
  assert bandwidth(h200, 8) == 450e9
  assert bandwidth(h200, 256) == 400e9  # eight cards of 50 GB/s in every node
  assert bandwidth(h200, 32, stride=8) == 50e9  # one member, one card
  assert bandwidth(next(chip for chip in CHIPS if chip.name == "TPU v5e"), 256) == 200e9
