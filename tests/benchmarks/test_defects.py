"""The benchmark on defects: a wrong score would decide between two networks."""

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import unet
from benchmarks.defects import Score, choose
from seggpt_jax.palette import IGNORE


def test_scores_of_known_label_maps():
  score, truth = Score(3), np.zeros((10, 10), np.uint8)
  truth[:2] = 1
  found = np.zeros_like(truth)
  found[1:3] = 2  # half of it at the right place, but called by another class
  score.add(found, truth)
  score.add(np.zeros_like(truth), np.zeros_like(truth))
  speck = np.zeros_like(truth)
  speck[0, 0] = 1
  score.add(speck, np.zeros_like(truth))
  ignored = np.zeros_like(truth)
  ignored[0, 0] = IGNORE
  score.add(speck, ignored)
  row = score.row()
  assert row["foreground_iou"] == pytest.approx(10 / 31)
  assert (row["catch"], row["left_alone"], row["class_iou"]) == (1.0, pytest.approx(2 / 3), [0.0, 0.0])


def test_a_part_of_the_images_shows_a_class_and_contains_the_smaller_parts(tmp_path):
  for split in ("train", "val"):
    for kind in ("images", "labels"):
      (tmp_path / "data" / split / kind).mkdir(parents=True)
      for index in range(12):
        value = np.uint8(kind == "labels" and index == 5)
        Image.fromarray(np.full((4, 4), value)).save(tmp_path / "data" / split / kind / f"{index:02}.png")
  parts = [choose(tmp_path / "data", tmp_path / str(count), count, seed=3) for count in (2, 6)]
  assert "05" in parts[0] and set(parts[0]) < set(parts[1]) and [len(part) for part in parts] == [2, 6]
  assert len(list((tmp_path / "2/data/train/labels").iterdir())) == 2 and (tmp_path / "2/data/val/images").is_dir()
  assert len(choose(tmp_path / "data", tmp_path / "all", None, seed=0)) == 12


def test_the_unet_learns_a_bright_square_in_seconds():
  samples = []
  for index in range(8):
    image, label = np.full((48, 64, 3), 90, np.uint8), np.zeros((48, 64), np.uint8)
    label[4 * index : 4 * index + 16, 20:40] = 1
    image[label > 0] = 200
    samples.append({"image": image, "label": label})
  torch.set_num_threads(1)
  network, steps = unet.train(samples, 2, seconds=6, side=48, width=4, rate=1e-2, seed=0)
  found = unet.predict(network, samples[3]["image"], 48, whole=True)
  assert steps > 3 and found.shape == (2, 48, 64)
  np.testing.assert_allclose(found.sum(axis=0), 1, rtol=1e-5)
  assert found[1][samples[3]["label"] > 0].mean() > found[1][samples[3]["label"] == 0].mean()


def test_the_loss_of_the_unet_does_not_count_ignored_pixels():
  generator = torch.Generator().manual_seed(0)
  scores = torch.randn(2, 3, 16, 16, generator=generator)
  labels = torch.randint(0, 3, (2, 16, 16), generator=generator)
  wanted = unet.loss_of(scores[..., :8], labels[..., :8])
  labels[..., 8:] = IGNORE
  torch.testing.assert_close(unet.loss_of(scores, labels), wanted)
