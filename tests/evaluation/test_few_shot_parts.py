"""Matcher's benchmarks on disk: the published classes and episodes, or an error that names what is missing."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from pycocotools import mask as mask_module

from seggpt_jax.errors import InputError
from seggpt_jax.evaluation import few_shot_parts, parts
from seggpt_jax.evaluation.few_shot import FewShot
from seggpt_jax.evaluation.few_shot_benchmarks import BENCHMARKS, Opening
from seggpt_jax.evaluation.few_shot_samples import Samples
from seggpt_jax.evaluation.plain_pickle import read_plain_pickle
from tests.evaluation.conftest import save
from tests.evaluation.test_few_shot import StandIn

IMAGE = np.arange(20 * 24 * 3, dtype=np.uint8).reshape(20, 24, 3)


def square(left, top, right, bottom):
  return [[left, top, right, top, right, bottom, left, bottom]]


def run_lengths(left, top, right, bottom):
  mask = np.zeros((20, 24), np.uint8, order="F")
  mask[top:bottom, left:right] = 1
  encoded = mask_module.encode(mask)
  return {"size": [20, 24], "counts": encoded["counts"].decode()}


def write_pickle(path, value):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(pickle.dumps(value))


def lvis(root, num_categories=23, images=3):
  """Categories 101, 102, ..., of which the second has a single image."""
  found = {}
  for index in range(num_categories):
    names = [f"val2017/{index:03}{number}.jpg" for number in range(1 if index == 1 else images)]
    found[101 + index] = {
      name: {"annotations": [{"segmentation": square(2, 2, 6, 8)}, {"segmentation": run_lengths(10, 1, 12, 5)}]}
      for name in names
    }
    for name in names:
      save(root / "coco" / name, IMAGE)
  write_pickle(root / "lvis_val.pkl", found)
  return found


def test_folds_of_lvis_take_every_tenth_category_with_enough_images(tmp_path):
  found = lvis(tmp_path / "LVIS")
  data = few_shot_parts.lvis92i(tmp_path)
  kept = [category for category in found if category != 102]
  assert list(data.folds) == list(range(10)) and set(data.num_episodes.values()) == {2300}
  for fold, classes in data.folds.items():
    assert [data.class_names[c] for c in classes] == [f"category {kept[fold + 10 * v]}" for v in range(22 // 10)]
  assert "2 classes in each fold; published figures are of 92." in data.notes and not data.comparable
  assert few_shot_parts.lvis92i(tmp_path, shots=2).folds == data.folds
  with pytest.raises(InputError, match=r"lvis_val\.pkl: found 0 categories with more than 3 images, expected at least"):
    few_shot_parts.lvis92i(tmp_path, shots=3)


def test_the_published_number_of_lvis_categories_makes_92_classes(tmp_path):
  (tmp_path / "coco").mkdir()
  pair = {"val2017/1.jpg": {"annotations": []}, "val2017/2.jpg": {"annotations": []}}
  write_pickle(tmp_path / "lvis_val.pkl", dict.fromkeys(range(925), pair))
  data = few_shot_parts.lvis92i(tmp_path)
  assert {len(classes) for classes in data.folds.values()} == {92} and data.comparable and not data.notes


def test_episodes_of_lvis_are_those_of_the_published_code(tmp_path):
  found = lvis(tmp_path)
  data = few_shot_parts.lvis92i(tmp_path)
  kept = [category for category in found if category != 102]
  classes = [kept[3], kept[13]]
  np.random.seed(0)
  for index, episode in enumerate(data.episodes(3, 1)):
    names = list(found[classes[index % 2]])
    query = prompt = np.random.choice(names, 1, replace=False)[0]
    while prompt == query:
      prompt = np.random.choice(names, 1, replace=False)[0]
    assert [data.samples.name(sample) for sample in (episode.query, *episode.prompts)] == [query, prompt]
  image, mask = data.samples.read(episode.query, episode.class_index)
  assert image.shape == (20, 24, 3) and mask.sum() == 4 * 6 + 2 * 4 and mask[2, 2] == mask[1, 10] == 1


def paco(root, num_parts=8, images=4):
  """Each part is in four images; in each there are two objects with it, one of them with two outlines."""
  cid2img, img2anno = {}, {}
  for index in range(num_parts):
    for number in range(images):
      id_ = 100 * index + number
      save(root / f"coco/train2017/{id_}.jpg", IMAGE)
      cid2img.setdefault(500 + index, []).extend([{id_: f"somewhere/train2017/{id_}.jpg"}] * (1 + number % 2))
      img2anno[id_] = [
        part(500 + index, 7, [2.5, 1.5, 8, 10], square(3, 2, 6, 5)),
        part(499, 7, [0, 0, 20, 20], square(0, 0, 20, 20)),
        part(500 + index, 9, [10, 4, 9, 9], run_lengths(11, 5, 13, 8)),
        part(500 + index, 9, [10, 4, 9, 9], square(15, 10, 18, 30)),
      ]
  write_pickle(root / "paco/paco_part_train.pkl", {"cid2img": {part: [] for part in cid2img}, "img2anno": {}})
  write_pickle(root / "paco/paco_part_val.pkl", {"cid2img": cid2img, "img2anno": img2anno})


def part(category, object_id, box, segmentation):
  return {"category_id": category, "obj_ann_id": object_id, "obj_bbox": box, "segmentation": segmentation}


def test_folds_of_paco_take_every_fourth_part_and_samples_show_one_object(tmp_path):
  paco(tmp_path / "PACO-Part")
  data = few_shot_parts.paco_part(tmp_path)
  assert {fold: [data.class_names[c] for c in classes] for fold, classes in data.folds.items()} == {
    fold: [f"category {500 + fold}", f"category {504 + fold}"] for fold in range(4)
  }
  assert set(data.num_episodes.values()) == {2500} and "published figures are of 448" in data.notes[0]
  first, second = data.pools.samples(3, data.pools.images[3][1])
  image, mask = data.samples.read(first, 3)
  np.testing.assert_array_equal(image.shape, (10, 8, 3))  # 1..11 and 2..10: coordinates are cut to whole pixels
  assert mask.sum() == 9 and mask[1, 1] == 1
  image, mask = data.samples.read(second, 3)
  assert image.shape == (9, 9, 3) and mask.sum() == 2 * 3 + 3 * 3 and mask[1, 1] == mask[6, 5] == 1
  with pytest.raises(InputError, match=r"paco_part_val\.pkl: found no part of fold 0 with more than 4 images"):
    few_shot_parts.paco_part(tmp_path, shots=4)


def test_episodes_of_paco_draw_a_part_an_image_and_an_object(tmp_path):
  paco(tmp_path)
  data = few_shot_parts.paco_part(tmp_path)
  np.random.seed(0)

  def image_of(category):
    return np.random.choice([100 * (category - 500) + number for number in range(4)], 1, replace=False)[0]

  def object_of():
    return np.random.choice([7, 9], 1, replace=False)[0]

  for episode in data.episodes(1, 2):
    category = np.random.choice([501, 505], 1, replace=False)[0]
    drawn = [image_of(category)]
    objects = [object_of()]
    while len(drawn) < 3:
      if (image := image_of(category)) != drawn[0]:
        drawn.append(image)
        objects.append(object_of())
    assert [data.samples.name(sample) for sample in (episode.query, *episode.prompts)] == [
      f"{image}#{category}#{id_}" for image, id_ in zip(drawn, objects, strict=True)
    ]


def pascal(root):
  """Fold animals with two parts; dogs of image i have a head if i is even, the second dog of each image never."""
  ids = [f"2008_{index:06}" for index in range(8)]
  entry = {"train": ["2008_x"], "val": ids}
  table = {
    "animals": {"object": {"dog": {"part": {"head": entry, "EYE": {"train": [], "val": ids}, "leg": entry}}}},
    "indoor": {"object": {"bottle": {"part": {"cap": entry}}}},
    "person": {"object": {"person": {"part": {"arm": entry}}}},
    "vehicles": {"object": {"aeroplane": {"part": {"TAIL": entry, "body": entry}}}},
  }
  (root / few_shot_parts._PASCAL_ANNOTATIONS).mkdir(parents=True)
  (root / "all_obj_part_to_image.json").write_text(json.dumps(table))
  for index, id_ in enumerate(ids):
    save(root / f"JPEGImages/{id_}.jpg", IMAGE)
    heads = [{"name": "head", "mask": [run_lengths(3, 3, 6, 7), run_lengths(8, 3, 9, 4)]}] if index % 2 == 0 else []
    box = {"xmin": "2", "ymin": "1", "xmax": "12", "ymax": "11"}
    all_parts = [{"name": name, "mask": [run_lengths(2, 2, 4, 4)]} for name in ("cap", "arm", "body", "leg")]
    objects = [{"name": name, "bndbox": box, "parts": all_parts} for name in ("bottle", "person", "aeroplane")]
    objects += [
      {"name": "dog", "bndbox": box, "parts": [*heads, all_parts[3]]},
      {"name": "dog", "bndbox": box, "parts": []},
    ]
    path = root / few_shot_parts._PASCAL_ANNOTATIONS / f"{id_}.json"
    path.write_text(json.dumps({"object": objects}))
  return ids


def test_folds_of_pascal_part_have_the_published_parts(tmp_path):
  pascal(tmp_path / "VOCdevkit" / "VOC2010")
  data = few_shot_parts.pascal_part(tmp_path)
  assert {fold: [data.class_names[c] for c in classes] for fold, classes in data.folds.items()} == {
    0: ["dog head", "dog leg"],
    1: ["bottle cap"],
    2: ["person arm"],
    3: ["aeroplane body"],
  }
  # As many as there are images in the lists of all parts, also of those that are not asked for.
  assert data.num_episodes == {0: 24, 1: 8, 2: 8, 3: 16}
  sample = next(sample for sample in data.pools.samples(1, 0) if sample is not None)
  image, mask = data.samples.read(sample, 1)
  assert image.shape == (10, 10, 3) and mask.sum() == 12 + 1 and mask[2, 1] == 1


def test_episodes_of_pascal_part_are_drawn_again_until_the_object_has_the_part(tmp_path):
  ids = pascal(tmp_path)
  data = few_shot_parts.pascal_part(tmp_path)
  np.random.seed(0)

  def draw(part, taken):
    while True:
      id_ = str(np.random.choice(ids, 1, replace=False)[0])
      if id_ in taken:
        continue
      dog = int(np.random.choice([3, 4], 1, replace=False)[0])  # places of the dogs in the file
      if dog == 3 and (part == "leg" or ids.index(id_) % 2 == 0):
        return id_, dog

  for index, episode in enumerate(data.episodes(0, 2)):
    part_name = ("head", "leg")[index % 2]
    taken = []
    for sample in (episode.query, *episode.prompts):
      id_, dog = draw(part_name, taken)
      taken.append(id_)
      assert data.samples.name(sample) == f"{id_}#{dog}#{part_name}"
  with pytest.raises(InputError, match="class dog head: found 4 images of it, expected at least 5 for --shots 4"):
    data.episodes(0, 4)


def test_parts_are_evaluated_over_the_classes_of_a_fold(tmp_path):
  pascal(tmp_path / "data")
  data = few_shot_parts.pascal_part(tmp_path / "data")
  assert isinstance(data.samples, Samples)
  results = parts.run(FewShot("pascal_part", data), lambda: StandIn(), tmp_path / "out")
  assert results["folds"].keys() == {"0", "1", "2", "3"} and results["settings"]["episodes"] == [24, 8, 8, 16]
  classes = results["folds"]["0"]["classes"]
  assert {name: entry["episodes"] for name, entry in classes.items()} == {"dog head": 12, "dog leg": 12}
  assert results["folds"]["0"]["miou"] == pytest.approx(np.mean([entry["iou"] for entry in classes.values()]))


def test_every_benchmark_of_the_command_has_a_reader_that_names_what_is_missing(tmp_path):
  for benchmark in BENCHMARKS.values():
    with pytest.raises(InputError, match="nowhere: folder not found"):
      benchmark.read(Opening(tmp_path / "nowhere"))


def test_what_is_missing_or_damaged_is_named(tmp_path):
  for read, words in (
    (few_shot_parts.lvis92i, "found no coco/ in it"),
    (few_shot_parts.paco_part, "found no paco/ in it"),
    (few_shot_parts.pascal_part, "found no Annotations_Part_json_merged_part_classes/ in it"),
  ):
    with pytest.raises(InputError, match="nowhere: folder not found"):
      read(tmp_path / "nowhere")
    with pytest.raises(InputError, match=words):
      read(tmp_path)
  (tmp_path / "coco").mkdir()
  with pytest.raises(InputError, match=r"lvis_val\.pkl: not found, expected a file"):
    few_shot_parts.lvis92i(tmp_path)
  write_pickle(tmp_path / "lvis_val.pkl", [1, 2])
  with pytest.raises(InputError, match=r"lvis_val\.pkl: found a value that cannot be read"):
    few_shot_parts.lvis92i(tmp_path)
  write_pickle(tmp_path / "paco/paco_part_train.pkl", {"images": []})
  with pytest.raises(InputError, match=r"paco_part_train\.pkl: found a value that cannot be read .*cid2img"):
    few_shot_parts.paco_part(tmp_path)


def test_a_missing_or_wrong_annotation_of_pascal_part_is_named(tmp_path):
  ids = pascal(tmp_path)
  path = tmp_path / few_shot_parts._PASCAL_ANNOTATIONS / f"{ids[2]}.json"
  path.write_text("{")
  with pytest.raises(InputError, match=f"{ids[2]}.json: cannot be read as JSON"):
    few_shot_parts.pascal_part(tmp_path)
  path.write_text('{"object": [{"name": "dog"}]}')
  with pytest.raises(InputError, match=f"{ids[2]}.json: found a value that cannot be read .*bndbox"):
    few_shot_parts.pascal_part(tmp_path)
  path.unlink()
  with pytest.raises(InputError, match=f"{ids[2]}.json: not found, expected a file"):
    few_shot_parts.pascal_part(tmp_path)
  path = tmp_path / "all_obj_part_to_image.json"
  path.write_text("{}")
  with pytest.raises(InputError, match=r"all_obj_part_to_image\.json: found a value that cannot be read .*animals"):
    few_shot_parts.pascal_part(tmp_path)


class Harmful:
  def __reduce__(self):
    return print, ("code of a pickle ran",)


def test_code_in_a_pickle_is_not_run(tmp_path, capsys):
  write_pickle(tmp_path / "a.pkl", {"x": [Harmful()]})
  with pytest.raises(
    InputError, match=r"a\.pkl: cannot be read \(it uses builtins\.print\), expected a pickle of plain"
  ):
    read_plain_pickle(tmp_path / "a.pkl")
  assert capsys.readouterr().out == ""
  (tmp_path / "b.pkl").write_bytes(b"not a pickle")
  with pytest.raises(InputError, match=r"b\.pkl: cannot be read"):
    read_plain_pickle(tmp_path / "b.pkl")


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_and_arrays_of_all_protocols_are_read(tmp_path, protocol):
  value = {1: [1.5, b"\x00\xff", "é", None], "a": np.arange(6.0).reshape(2, 3), 2: np.float64(2.5)}
  (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, protocol))
  read = read_plain_pickle(tmp_path / "a.pkl")
  np.testing.assert_array_equal(read.pop("a"), value.pop("a"))
  assert read == value
