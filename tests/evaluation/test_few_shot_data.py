"""Few-shot datasets on disk: the right images for each class, or an error that names what is missing."""

from __future__ import annotations

import collections
import shutil

import numpy as np
import pytest
from PIL import Image

from seggpt_jax.errors import InputError
from seggpt_jax.evaluation.few_shot_data import read_benchmark


def check(data, fold, shots, expected):
  """Checks that episodes stay within their class and are reproducible; returns them."""
  episodes = data.episodes(fold, shots)
  assert len(episodes) == expected and episodes == data.episodes(fold, shots)
  for episode in episodes[:60]:
    assert episode.class_index in data.folds[fold] and episode.query not in episode.prompts
    for sample in (episode.query, *episode.prompts):
      image, mask = data.samples.read(sample, episode.class_index)
      assert image.shape[:2] == mask.shape and (mask == 1).any()
      assert set(np.unique(mask)) <= {0, 1, 255}
  return episodes


def test_every_image_of_fss_is_a_query_once(fss):
  data = read_benchmark("fss1000", fss)
  assert data.class_names == {1: "abacus", 2: "mug", 3: "zebra"}
  episodes = check(data, 0, 5, 30)
  # Queries are sorted by name, prompts by number.
  assert [data.samples.name(episode.query) for episode in episodes[:3]] == ["abacus/1", "abacus/10", "abacus/2"]
  assert [data.samples.name(sample) for sample in data.pools[2]] == [f"mug/{number}" for number in range(1, 11)]
  for number in (1, 3):  # the third is a mask in color
    _, mask = data.samples.read(data.pools[3][number - 1], 3)
    stored = np.asarray(Image.open(fss / "zebra" / f"{number}.png").convert("L"))
    np.testing.assert_array_equal(mask, stored > 127)


def test_the_test_classes_of_fss_come_from_a_list_and_its_folder_may_be_wrapped(fss, tmp_path):
  shutil.copytree(fss, tmp_path / "fewshot_data" / "fewshot_data")
  (tmp_path / "test.txt").write_text("zebra\n\nmug\n")
  data = read_benchmark("fss1000", tmp_path, tmp_path / "test.txt")
  assert data.class_names == {1: "mug", 2: "zebra"} and len(data.episodes(0, 1)) == 20
  assert len(data.episodes(0, 1, count=7)) == 7
  (tmp_path / "test.txt").write_text("mug\nunicorn\n")
  with pytest.raises(InputError, match="unicorn: folder not found"):
    read_benchmark("fss1000", tmp_path, tmp_path / "test.txt")
  with pytest.raises(InputError, match="class abacus: found 10 images of it, expected at least 11 for --shots 10"):
    read_benchmark("fss1000", fss).episodes(0, 10)


def test_folds_of_pascal_have_five_classes_each_and_queries_come_in_turn(voc):
  data = read_benchmark("pascal5i", voc)
  assert sorted(c for classes in data.folds.values() for c in classes) == list(range(1, 21))
  assert data.folds[1] == [6, 7, 8, 9, 10] and data.class_names[6] == "bus" and data.class_names[20] == "tvmonitor"
  for fold in range(4):
    episodes = check(data, fold, 1, 1000)
    turn = data.queries[fold]
    assert turn == sorted(turn) and len(turn) < 50
    # Every query comes equally often, within one.
    assert [(episode.query, episode.class_index) for episode in episodes[: 2 * len(turn)]] == turn * 2
  with pytest.raises(InputError, match="--fold: found 4, expected some of 0, 1, 2, 3"):
    data.episodes(4, 1)


def test_pixels_that_voc_ignores_stay_ignored(voc):
  data = read_benchmark("pascal5i", voc / "VOCdevkit")
  label = np.asarray(Image.open(voc / "VOCdevkit/VOC2012/SegmentationClassAug/2007_000004.png"))
  _, mask = data.samples.read(4, 5)
  np.testing.assert_array_equal(mask == 255, label == 255)
  np.testing.assert_array_equal(mask == 1, label == 5)


def test_published_lists_replace_what_the_labels_show(voc, tmp_path):
  (tmp_path / "fold0.txt").write_text("2007_000000__01\n2007_000020__01\n2007_000001__02\n2007_000021__02\n")
  data = read_benchmark("pascal5i", voc, tmp_path)
  assert list(data.folds) == [0] and data.queries[0] == [(0, 1), (20, 1), (1, 2), (21, 2)]
  with pytest.raises(InputError, match="class bird: found 0 images"):
    data.episodes(0, 1)
  for line in ("2007_000000__09", "2099_000000__01", "2007_000000"):
    (tmp_path / "fold0.txt").write_text(line + "\n")
    with pytest.raises(InputError, match=f"fold0.txt: found line '{line}', expected IMAGE__CLASS"):
      read_benchmark("pascal5i", voc, tmp_path)
  with pytest.raises(InputError, match=r"fold0\.txt: not found"):
    read_benchmark("pascal5i", voc, tmp_path / "nowhere")


def test_folds_of_coco_have_every_fourth_class_and_images_show_what_lies_on_top(coco, tmp_path):
  data = read_benchmark("coco20i", coco, cache=tmp_path / "classes.npz")
  assert sorted(c for classes in data.folds.values() for c in classes) == list(range(1, 81))
  assert data.folds[1] == list(range(2, 81, 4)) and data.class_names[2] == "bicycle"
  assert data.class_names[78] == "teddy bear" and len(data.class_names) == 80
  # In the first image only the upper object is visible.
  assert 0 not in data.pools[2] and data.pools[80] == [0] and len(data.pools[6]) == 3
  episodes = check(data, 1, 1, 1000)
  assert len({episode.class_index for episode in episodes}) == 20
  with pytest.raises(InputError, match="class person: found 0 images of it, expected at least 2"):
    data.episodes(0, 1)
  assert (tmp_path / "classes.npz").exists()


def test_coco_from_masks_is_coco_from_annotations(coco, tmp_path):
  drawn = read_benchmark("coco20i", coco)
  root = tmp_path / "COCO2014"
  shutil.copytree(coco / "val2014", root / "val2014")
  (root / "annotations" / "val2014").mkdir(parents=True)
  for index in range(len(drawn.samples)):
    Image.fromarray(drawn.samples.source.label(index)).save(
      root / f"annotations/val2014/{drawn.samples.name(index)}.png"
    )
  data = read_benchmark("coco20i", tmp_path)
  assert data.episodes(1, 1) == drawn.episodes(1, 1)
  for one, other in zip(data.samples.read(7, 30), drawn.samples.read(7, 30), strict=True):
    np.testing.assert_array_equal(one, other)


def test_classes_of_coco_are_asked_for_about_as_often(coco):
  number = collections.Counter(episode.class_index for episode in read_benchmark("coco20i", coco).episodes(1, 1))
  assert min(number.values()) > 25 and max(number.values()) < 85


def test_what_is_missing_is_named(fss, voc, tmp_path):
  for name in ("fss1000", "pascal5i", "coco20i"):
    with pytest.raises(InputError, match="nowhere: folder not found"):
      read_benchmark(name, tmp_path / "nowhere")
  (tmp_path / "empty").mkdir()
  with pytest.raises(InputError, match="found no classes"):
    read_benchmark("fss1000", tmp_path / "empty")
  with pytest.raises(InputError, match="found no JPEGImages/ in it"):
    read_benchmark("pascal5i", tmp_path / "empty")
  with pytest.raises(InputError, match="found no val2014/ in it"):
    read_benchmark("coco20i", tmp_path / "empty")
  shutil.copytree(fss / "mug", tmp_path / "one" / "mug")
  (tmp_path / "one" / "mug" / "4.png").unlink()
  with pytest.raises(InputError, match=r"4\.png: not found; it belongs to .*4\.jpg"):
    read_benchmark("fss1000", tmp_path / "one")
  shutil.copytree(voc, tmp_path / "voc")
  shutil.rmtree(tmp_path / "voc/VOCdevkit/VOC2012/SegmentationClassAug")
  with pytest.raises(InputError, match="found neither SegmentationClassAug/ nor SegmentationClass/"):
    read_benchmark("pascal5i", tmp_path / "voc")
  (tmp_path / "coco" / "val2014").mkdir(parents=True)
  with pytest.raises(InputError, match=r"instances_val2014\.json"):
    read_benchmark("coco20i", tmp_path / "coco")


def test_a_mask_of_another_size_is_named(fss, tmp_path):
  shutil.copytree(fss / "mug", tmp_path / "mug")
  Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "mug" / "1.png")
  data = read_benchmark("fss1000", tmp_path)
  with pytest.raises(InputError, match=r"1\.png: found 9 x 9 pixels, expected 24 x 20 as its image has"):
    data.samples.read(0, 1)
