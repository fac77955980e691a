"""Groups: images of one patient in both train and val would make the validation score too good."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seggpt_jax.data.groups import divide, group_names
from seggpt_jax.errors import InputError


class Named:
  """A source with names and labels but no images."""

  num_classes = 5

  def __init__(self, names, known=True, labels=()):
    self.names, self.known, self.labels = names, known, labels

  def __len__(self):
    return len(self.names)

  def __getitem__(self, index):
    raise AssertionError("nothing may be decoded")

  def name(self, index):
    return self.names[index]

  def label(self, index):
    return np.array([self.labels[index]], np.uint8)

  def classes(self, index):
    return tuple(sorted({c for c in self.labels[index] if c not in (0, 255)})) if self.known else None

  def label_stamp(self, index):
    return ""

  def field(self, index, key):
    if key != "patient":
      raise InputError("no such field")
    return f"P{index // 2}"


NAMES = ["a/x_1_1", "a/x_1_2", "b/x", "y_2"]


@pytest.mark.parametrize(
  "spec, groups",
  [
    ("", ["", "", "", ""]),
    ("prefix:_", ["x_1", "x_1", "x", "y"]),
    ("prefix:_1", ["x_1", "x", "x", "y_2"]),
    ("folder", ["a", "a", "b", ""]),
    ("field:patient", ["P0", "P0", "P1", "P1"]),
  ],
)
def test_groups_by_name_and_field(spec, groups):
  found = group_names(Named(NAMES), spec)
  assert found == groups
  assert len({id(group) for group in found}) == len(set(groups))


@pytest.mark.parametrize("known", [True, False])
def test_classes_are_a_group_whether_known_or_read(known):
  source = Named(list("abcd"), known, [[0, 3, 1], [1, 3, 255], [0, 0, 0], [2, 2, 2]])
  assert group_names(source, "classes") == ["1+3", "1+3", "", "2"]


def test_a_csv_file_names_the_groups(tmp_path):
  path = tmp_path / "groups.csv"
  path.write_text(
    "\ufeffpatient,name,group\n" + "".join(f"1,{name},g{i}\n" for i, name in enumerate(NAMES)) + "1,z,g9\n"
  )
  assert group_names(Named(NAMES), f"csv:{path}") == ["g0", "g1", "g2", "g3"]


def refused(match, make):
  with pytest.raises(InputError, match=match) as caught:
    make()
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  "text, match",
  [
    ("name,patient\n", "found columns name, patient, expected name and group"),
    ("name,group\ny_2,a\n", "found no line for 'a/x_1_1' and 2 more"),
    ("name,group\ny_2\n", "line 2: found 'y_2' without a group"),
    ("name,group\ny_2,a\ny_2,b\n", "found 'y_2' in groups 'a' and 'b'"),
    ("", "found columns , expected name and group"),
  ],
)
def test_wrong_csv_files_are_refused(tmp_path, text, match):
  (tmp_path / "g.csv").write_text(text)
  refused(match, lambda: group_names(Named(NAMES), f"csv:{tmp_path / 'g.csv'}"))


@pytest.mark.parametrize("spec", ["prefix", "prefix:", "folders", "folder:x", "field", "csv:", "classes:1", "patient"])
def test_unknown_specifications_list_what_there_is(spec):
  refused("expected one of prefix:SEP .*folder.*field:KEY.*csv:FILE.*classes", lambda: group_names(Named(NAMES), spec))


@given(st.lists(st.integers(0, 8), min_size=2, max_size=60), st.floats(0.01, 0.99), st.integers(0, 5))
def test_groups_stay_whole_and_the_share_is_as_close_as_any(numbers, share, seed):
  groups = [f"g{number}" for number in numbers]
  if len(set(groups)) < 2:
    return
  chosen = divide(groups, share, seed)
  inside = {group for group, each in zip(groups, chosen, strict=True) if each}
  outside = {group for group, each in zip(groups, chosen, strict=True) if not each}
  assert inside and outside and not inside & outside
  np.testing.assert_array_equal(chosen, divide(groups, share, seed))
  sizes = [groups.count(group) for group in set(groups)]
  possible = {0}
  for size in sizes:
    possible |= {size + other for other in possible}
  target = min(max(round(share * len(groups)), 1), len(groups) - 1)
  best = min(abs(each - target) for each in possible - {0, len(groups)})
  assert abs(int(chosen.sum()) - target) == best


def test_seeds_choose_differently():
  groups = [str(i // 3) for i in range(300)]
  assert len({divide(groups, 0.1, seed).tobytes() for seed in range(5)}) == 5
  assert divide(groups, 0.1, 0).sum() == 30


def test_one_group_cannot_be_divided():
  refused("groups: found one group, expected at least two to divide; name", lambda: divide([""] * 9, 0.1, 0))
  refused("val_share: found 1,", lambda: divide(["a", "b"], 1.0, 0))


def test_a_hundred_thousand_samples_are_divided_quickly():
  start = time.perf_counter()
  assert divide([str(i // 10) for i in range(100_000)], 0.1, 0).sum() == 10_000
  assert divide([str(int(i**0.5)) for i in range(100_000)], 0.1, 0).sum() == 10_000
  assert time.perf_counter() - start < 5
