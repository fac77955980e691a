"""The prompt index: which labeled images it finds, and when it computes features again."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seggpt_jax.errors import InputError
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.model import parameters
from seggpt_jax.retrieval import features, prompt_index
from seggpt_jax.retrieval.labeled_images import foreground_shares, list_prompts, read_facts
from seggpt_jax.retrieval.prompt_index import PromptIndex


def write(path: Path, pixels: np.ndarray) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path)


def picture(seed: int) -> np.ndarray:
  """Returns an image whose colors vary slowly, like a photograph's."""
  small = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
  return np.asarray(Image.fromarray(small).resize((50, 40), Image.Resampling.BICUBIC))


def half(side: str) -> np.ndarray:
  label = np.zeros((40, 50), np.uint8)
  label[:, {"left": slice(25), "right": slice(25, 50), "none": slice(0)}[side]] = 1
  return label


def add(folder: Path, name: str, image: np.ndarray, label: np.ndarray) -> None:
  write(folder / "images" / f"{name}.png", image)
  write(folder / "labels" / f"{name}.png", label)


@pytest.fixture
def folder(tmp_path):
  for seed in range(6):
    add(tmp_path / "prompts", f"p{seed}", picture(seed), half("left"))
  return tmp_path / "prompts"


def files(folder):
  return list_prompts(folder / "images", folder / "labels")


@pytest.fixture
def encoded(monkeypatch):
  """Counts the images that go through the network."""
  counts = []
  run = features.Encoder.__call__

  def counted(self, images, shares=None):
    counts.append(len(images))
    return run(self, images, shares)

  monkeypatch.setattr(features.Encoder, "__call__", counted)
  return counts


def test_the_nearest_to_an_image_is_its_copy_and_to_an_altered_one_its_original(folder, model):
  index = PromptIndex.build(model, files(folder))
  for seed in range(6):
    (match,) = index.nearest(picture(seed))
    assert match.files.image.name == f"p{seed}.png"
    brighter = np.asarray(Image.fromarray(picture(seed)).resize((64, 64)).point(lambda value: value * 0.95 + 8))
    assert index.nearest(brighter, top_k=2)[0].files.image.name == f"p{seed}.png"
  scores = [match.score for match in index.nearest(picture(0), top_k=9)]
  assert len(scores) == 6
  assert scores == sorted(scores, reverse=True)


def test_similarity_is_1_to_itself_and_0_between_two_on_average(folder, model, monkeypatch):
  monkeypatch.setattr(prompt_index, "FOREGROUND_WEIGHT", 0)
  index = PromptIndex.build(model, files(folder))
  table = np.stack(list(index.score_many(map(picture, range(6)))))
  np.testing.assert_allclose(np.diag(table), 1, atol=1e-4)
  assert table.mean() == pytest.approx(0, abs=1e-4)


def test_the_prompt_whose_foreground_is_in_the_query_is_found(tmp_path, model, monkeypatch):
  both = np.zeros((40, 50, 3), np.uint8)
  both[:, :25], both[:, 25:] = (200, 40, 30), (30, 90, 210)
  add(tmp_path, "left", both, half("left"))
  add(tmp_path, "right", both, half("right"))
  monkeypatch.setattr(prompt_index, "FOREGROUND_WEIGHT", 1)
  index = PromptIndex.build(model, files(tmp_path))
  for name, color in (("left", (200, 40, 30)), ("right", (30, 90, 210))):
    query = np.full((40, 50, 3), color, np.uint8)
    assert index.nearest(query)[0].files.image.stem == name
  monkeypatch.setattr(prompt_index, "FOREGROUND_WEIGHT", 0)
  first, second = index.nearest(both, top_k=2)
  assert first.score == pytest.approx(second.score)


def test_an_image_without_foreground_is_never_found(folder, model):
  add(folder, "empty", picture(9), half("none"))
  found = PromptIndex.build(model, files(folder)).nearest(picture(9), top_k=9)
  assert sorted(match.files.image.stem for match in found) == [f"p{seed}" for seed in range(6)]


def test_foreground_shares_are_areas_without_ignored_pixels():
  label = np.zeros((8, 8), np.uint8)
  label[0, 0], label[0, 1], label[4:, 4:] = 1, 255, 2
  np.testing.assert_allclose(foreground_shares(label, (2, 2)), [[1 / 16, 0], [0, 1]], atol=1e-6)
  assert foreground_shares(np.pad([[1]], 99).astype(np.uint8), (4, 4)).sum() > 0


def test_kept_features_are_used_until_a_file_changes(folder, model, tmp_path, encoded):
  cache = tmp_path / "cache"
  fresh = PromptIndex.build(model, files(folder), cache=cache)
  assert sum(encoded) == 6
  again = PromptIndex.build(model, files(folder), cache=cache)
  assert sum(encoded) == 6
  np.testing.assert_array_equal(next(again.score_many([picture(0)])), next(fresh.score_many([picture(0)])))
  assert again.facts.digests == fresh.facts.digests

  encoded.clear()
  add(folder, "p6", picture(6), half("right"))
  add(folder, "p1", picture(11), half("left"))
  grown = PromptIndex.build(model, files(folder), cache=cache)
  assert sum(encoded) == 2
  assert grown.nearest(picture(11))[0].files.image.stem == "p1"

  encoded.clear()
  label = folder / "labels" / "p2.png"
  os.utime(label, ns=(1, 1))
  PromptIndex.build(model, files(folder), cache=cache)
  assert sum(encoded) == 1
  PromptIndex.build(model, files(folder), LabelFormat("binary"), cache=cache)
  assert sum(encoded) == 8
  assert len(list(cache.iterdir())) == 1


def test_kept_features_of_other_weights_are_not_used(folder, model, tmp_path, encoded):
  graph, params = parameters.split(model)
  other = parameters.merge(graph, {**params, "norm.bias": params["norm.bias"] + 1})
  for network, tap in ((model, 1), (other, 1), (model, 2)):
    encoded.clear()
    PromptIndex.build(features.Encoder(network, tap), files(folder), cache=tmp_path / "cache")
    assert sum(encoded) == 6


def test_what_was_encoded_before_a_bad_file_is_kept(folder, model, tmp_path, encoded):
  bad = folder / "images" / "p5.png"
  whole = bad.read_bytes()
  bad.write_bytes(whole[:40])
  with pytest.raises(InputError, match=r"p5\.png"):
    PromptIndex.build(model, files(folder), cache=tmp_path / "cache")
  done = sum(encoded)
  bad.write_bytes(whole)
  PromptIndex.build(model, files(folder), cache=tmp_path / "cache")
  assert 0 < done < 6
  assert sum(encoded) == 6


def test_damaged_features_are_named(folder, model, tmp_path):
  cache = tmp_path / "cache"
  PromptIndex.build(model, files(folder), cache=cache)
  (kept,) = cache.iterdir()
  for damaged in (kept.read_bytes()[:-200], b"", b"nothing"):
    kept.write_bytes(damaged)
    with pytest.raises(InputError, match=f"{kept.name}: cannot be read as features, damaged"):
      PromptIndex.build(model, files(folder), cache=cache)


def test_missing_files_are_named(folder, model):
  with pytest.raises(InputError, match="prompts: found none"):
    PromptIndex.build(model, [])
  (folder / "labels" / "p3.png").unlink()
  with pytest.raises(InputError, match=r"p3\.png: found no label for it"):
    files(folder)
  write(folder / "labels" / "p3.png", np.zeros((4, 4), np.uint8))
  with pytest.raises(InputError, match=r"p3\.png: found 4 x 4 pixels, expected 50 x 40"):
    PromptIndex.build(model, files(folder))


def test_facts_are_the_same_with_and_without_a_network(folder, model):
  add(folder, "p1", picture(1), half("right") * 7)
  facts = read_facts(files(folder), LabelFormat())
  encoded_facts = PromptIndex.build(model, files(folder)).facts
  assert facts.digests == encoded_facts.digests
  np.testing.assert_array_equal(facts.holds, encoded_facts.holds)
  assert np.flatnonzero(facts.holds[1]).tolist() == [7]
