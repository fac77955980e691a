"""Benchmarks of other domains on disk: the published classes and episodes, or an error that names what is missing."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from seggpt_jax.errors import InputError
from seggpt_jax.evaluation import few_shot_data
from seggpt_jax.evaluation.few_shot_data import BENCHMARKS, read_benchmark
from tests.evaluation.conftest import save

IMAGE = np.full((6, 8, 3), 90, np.uint8)
SEEN = np.zeros((6, 8), np.uint8)
SEEN[1:4, 2:5] = 255


@pytest.fixture
def isaid(tmp_path):
  """Patches of three classes of each fold, and the published kind of list for fold 0."""
  root = tmp_path / "iSAID"
  for index in range(12):
    label = np.zeros((6, 8), np.uint8)
    label[:2, :2], label[3:, 3:], label[0, 7] = 1 + index % 3, 6 + index % 3, 255
    save(root / f"val/images/P{index}_0_256.png", IMAGE)
    save(root / f"val/semantic_png/P{index}_0_256_instance_color_RGB.png", label)
  return root


@pytest.fixture
def isic(tmp_path):
  root = tmp_path / "ISIC"
  for number in (1, 2, 3):
    for index in range(4):
      # As the published script leaves them: the images stretched, the masks not.
      save(root / f"{few_shot_data._ISIC_IMAGES}/{number}/ISIC_{number}{index}.jpg", np.zeros((5, 5, 3), np.uint8))
      save(root / f"{few_shot_data._ISIC_MASKS}/ISIC_{number}{index}_segmentation.png", SEEN)
  return root


def published_class_by_class(names_of_class, count, shots):
  """Draws names as PATNet's test code does: classes in turn, NumPy's global generator, a new draw for the query."""
  np.random.seed(0)
  episodes = []
  for index in range(count):
    names = names_of_class[index % len(names_of_class)]
    query, prompts = str(np.random.choice(names, 1, replace=False)[0]), []
    while len(prompts) < shots:
      prompt = str(np.random.choice(names, 1, replace=False)[0])
      if prompt != query:
        prompts.append(prompt)
    episodes.append((query, prompts))
  return episodes


def named(data, episodes):
  return [(data.samples.name(e.query), [data.samples.name(prompt) for prompt in e.prompts]) for e in episodes]


def test_isaid_asks_for_every_pair_of_its_lists_once(isaid):
  (isaid / "splits/val").mkdir(parents=True)
  for fold, lines in enumerate((["P3_0_256__01", "P0_0_256__01", "P1_0_256__02", "P4_0_256__02"], ["P0_0_256__06"])):
    (isaid / f"splits/val/fold{fold}.txt").write_text("\n".join(lines) + "\n")
  data = read_benchmark("isaid5i", isaid.parent)
  assert data.folds == {0: [1, 2, 3, 4, 5], 1: [6, 7, 8, 9, 10]}
  assert data.num_episodes == {0: 4, 1: 1} and data.notes == ()
  assert [data.class_names[c] for c in (1, 5, 6, 15)] == ["ship", "basketball court", "ground track field", "harbor"]
  assert data.pools[1] == [data.queries[0][0][0], data.queries[0][1][0]]
  image, mask = data.samples.read(0, 1)
  assert image.shape == (6, 8, 3) and (mask == 1).sum() == 4 and mask[0, 7] == 255 and mask[4, 4] == 0


def test_isaid_without_lists_takes_every_class_that_a_label_shows(isaid):
  data = read_benchmark("isaid5i", isaid)
  assert data.folds == {0: [1, 2, 3, 4, 5], 1: [6, 7, 8, 9, 10], 2: [11, 12, 13, 14, 15]}
  assert data.num_episodes == {0: 12, 1: 12, 2: 0} and "not from the published lists" in data.notes[0]
  with pytest.raises(InputError, match="class tennis court: found 0 images of it, expected at least 2"):
    data.episodes(0, 1)


def test_isic_has_three_classes_in_turn_and_images_as_large_as_their_masks(isic):
  data = read_benchmark("isic2018", isic.parent)
  assert data.class_names == {1: "seborrheic keratosis", 2: "nevus", 3: "melanoma"} and data.folds == {0: [1, 2, 3]}
  episodes = data.episodes(0, 2)
  assert len(episodes) == 600 and [e.class_index for e in episodes[:4]] == [1, 2, 3, 1]
  names = [[f"{number}/ISIC_{number}{index}" for index in range(4)] for number in (1, 2, 3)]
  assert named(data, episodes) == published_class_by_class(names, 600, 2)
  image, mask = data.samples.read(5, 2)
  assert image.shape == (6, 8, 3) and np.array_equal(mask, SEEN // 255)


def test_isic_can_be_sorted_by_the_published_list(isic, tmp_path):
  sorted_data = read_benchmark("isic2018", isic)
  images = isic / few_shot_data._ISIC_IMAGES
  kinds = dict(zip("123", few_shot_data._ISIC_CLASSES, strict=True))
  lines = ["ID,Class", "ISIC_99,nevus"]  # the last one is not in ISIC 2018
  for path in sorted(images.glob("*/*.jpg"), reverse=True):
    path.rename(images / path.name)
    lines.append(f"{path.stem},{kinds[path.parent.name]}")
  (isic / "class_id.csv").write_text("\n".join(lines))
  data = read_benchmark("isic2018", isic)
  assert named(data, data.episodes(0, 1)) == named(sorted_data, sorted_data.episodes(0, 1))
  (isic / "class_id.csv").write_text("ID,Class\nISIC_10,wart\n")
  with pytest.raises(InputError, match=r"class_id\.csv: line 2: found class 'wart', expected one of seborrheic"):
    read_benchmark("isic2018", isic)
  (isic / "class_id.csv").write_text("name,Class\n")
  with pytest.raises(InputError, match=r"class_id\.csv: found columns name, Class, expected ID and Class"):
    read_benchmark("isic2018", isic)
  (isic / "class_id.csv").unlink()
  (images / "1").rmdir()
  with pytest.raises(InputError, match="found no folder 1, expected the images in folders 1, 2 and 3"):
    read_benchmark("isic2018", isic)


def test_chest_masks_of_both_hospitals_find_their_images(tmp_path):
  root = tmp_path / "Lung Segmentation"
  for name, mask in (
    ("MCUCXR_1_0", "MCUCXR_1_0"),
    ("CHNCXR_1_0", "CHNCXR_1_0_mask"),
    ("CHNCXR_2_1", "CHNCXR_2_1_mask"),
  ):
    save(root / f"CXR_png/{name}.png", IMAGE)
    save(root / f"masks/{mask}.png", SEEN)
  save(root / "CXR_png/CHNCXR_9_0.png", IMAGE)  # an image without a mask, as 96 of the published ones
  data = read_benchmark("chest_xray", tmp_path)
  names = [data.samples.name(index) for index in range(3)]
  assert names == ["CHNCXR_1_0", "CHNCXR_2_1", "MCUCXR_1_0"] and len(data.samples) == 3
  assert data.class_names == {1: "lung"} and named(data, data.episodes(0, 1)) == published_class_by_class(
    [names], 600, 1
  )
  (root / "CXR_png/MCUCXR_1_0.png").unlink()
  with pytest.raises(InputError, match=r"CXR_png/MCUCXR_1_0\.png: not found; it belongs to"):
    read_benchmark("chest_xray", tmp_path)


def test_suim_leaves_out_empty_masks_and_has_an_episode_for_each_of_the_others(tmp_path):
  root = tmp_path / "SUIM"
  for code in ("FV", "HD", "PF", "RI", "RO", "SR", "WR"):
    for index in range(4):
      save(root / f"images/d_{index}.jpg", IMAGE)
      save(root / f"masks/{code}/d_{index}.bmp", SEEN if index else np.zeros_like(SEEN))
  data = read_benchmark("suim", tmp_path, cache=tmp_path / "classes.npz")
  assert data.folds == {0: [1, 2, 3, 4, 5, 6, 7]} and data.num_episodes == {0: 21}
  assert data.class_names[1] == "fish and vertebrates" and data.class_names[7] == "wrecks and ruins"
  names = [[f"{code}/d_{i}" for i in (1, 2, 3)] for code in ("FV", "HD", "PF", "RI", "RO", "SR", "WR")]
  assert named(data, data.episodes(0, 1)) == published_class_by_class(names, 21, 1)
  assert (data.samples.read(20, 7)[1] == 1).sum() == 9
  shutil.rmtree(root / "masks/RO")
  with pytest.raises(InputError, match="masks/RO: folder not found"):
    read_benchmark("suim", tmp_path)


def test_what_is_missing_is_named(isaid, isic, tmp_path):
  (tmp_path / "empty").mkdir()
  for name, words in (
    ("isaid5i", "found no val/semantic_png/ in it"),
    ("isic2018", "found no ISIC2018_Task1-2_Training_Input/ in it"),
    ("chest_xray", "found no CXR_png/ in it"),
    ("suim", "found no masks/ in it"),
  ):
    with pytest.raises(InputError, match="nowhere: folder not found"):
      read_benchmark(name, tmp_path / "nowhere")
    with pytest.raises(InputError, match=words):
      read_benchmark(name, tmp_path / "empty")
  with pytest.raises(InputError, match=r"nowhere/fold0\.txt: not found"):
    read_benchmark("isaid5i", isaid, tmp_path / "nowhere")
  (isaid / "val/images/P0_0_256.png").unlink()
  with pytest.raises(InputError, match=r"val/images/P0_0_256\.png: not found"):
    read_benchmark("isaid5i", isaid)
  Image.fromarray(SEEN).save(isaid / "val/semantic_png/other.png")
  with pytest.raises(InputError, match=r"other\.png: found this name, expected NAME_instance_color_RGB\.png"):
    (isaid / "val/semantic_png/P0_0_256_instance_color_RGB.png").unlink()
    read_benchmark("isaid5i", isaid)
  (isic / few_shot_data._ISIC_MASKS / "ISIC_20_segmentation.png").unlink()
  with pytest.raises(InputError, match=r"ISIC_20_segmentation\.png: not found; it belongs to .*ISIC_20\.jpg"):
    read_benchmark("isic2018", isic)


def test_every_benchmark_of_the_command_has_a_reader_that_names_what_is_missing(tmp_path):
  for name in BENCHMARKS:
    with pytest.raises(InputError, match="nowhere: folder not found"):
      read_benchmark(name, tmp_path / "nowhere")
