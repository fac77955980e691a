"""Datasets in a bucket: files are read from there without a local copy."""

import json

import numpy as np
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry
from PIL import Image

from seggpt_jax.data.datasets import Dataset, open_dataset
from seggpt_jax.data.records import RecordSource
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.prepare.writers import encoded_samples, write_records
from tests.formats.annotation_folders import coco_source


class Bucket(MemoryFileSystem):
  """A bucket with addresses of Google Cloud Storage and its content in memory."""

  protocol = ("gs", "gcs")

  @classmethod
  def _strip_protocol(cls, path):
    return super()._strip_protocol(str(path).removeprefix("gs://").removeprefix("gcs://"))


@pytest.fixture
def bucket(monkeypatch):
  for protocol in ("gs", "gcs"):
    monkeypatch.setitem(_registry, protocol, Bucket)
  Bucket.clear_instance_cache()
  yield epath.Path("gs://bucket/data")
  Bucket.store.clear()
  Bucket.clear_instance_cache()


@pytest.fixture
def folder(tmp_path):
  """A dataset of four images with labels 0 and 1 in train/."""
  generator = np.random.default_rng(0)
  for kind in ("images", "labels"):
    (tmp_path / "local/train" / kind / "x").mkdir(parents=True)
  for i in range(4):
    name = f"{'x/' if i % 2 else ''}{i}.png"
    Image.fromarray(generator.integers(0, 256, (6, 7, 3), np.uint8)).save(tmp_path / "local/train/images" / name)
    Image.fromarray(generator.integers(0, 2, (6, 7), np.uint8)).save(tmp_path / "local/train/labels" / name)
  return tmp_path / "local"


def upload(directory, bucket):
  for file in directory.rglob("*"):
    if file.is_file():
      place = bucket / file.relative_to(directory).as_posix()
      place.parent.mkdir(parents=True, exist_ok=True)
      place.write_bytes(file.read_bytes())


def same(source, truth):
  assert [source.name(i) for i in range(len(source))] == [truth.name(i) for i in range(len(truth))]
  for i in range(len(truth)):
    np.testing.assert_array_equal(source[i]["image"], truth[i]["image"])
    np.testing.assert_array_equal(source[i]["label"], truth[i]["label"])


def test_folders_are_read_from_a_bucket(bucket, folder):
  upload(folder, bucket)
  same(
    open_dataset(Dataset("folder", str(bucket), 2), "train"), open_dataset(Dataset("folder", str(folder), 2), "train")
  )


def test_coco_is_read_from_a_bucket(bucket, folder):
  images = [{"id": i, "file_name": f"{i}.png", "height": 6, "width": 7} for i in (0, 2)]
  square = {"id": 1, "image_id": 0, "category_id": 1, "segmentation": [[1, 1, 4, 1, 4, 4, 1, 4]]}
  content = {"images": images, "annotations": [square], "categories": [{"id": 1, "name": "a"}]}
  (folder / "annotations").mkdir()
  (folder / "annotations/instances_images.json").write_text(json.dumps(content))
  (folder / "train/images").rename(folder / "images")
  upload(folder, bucket)
  same(coco_source(str(bucket), "images", 2), coco_source(folder, "images", 2))


def test_header_and_index_of_records_are_read_from_a_bucket(bucket, folder, tmp_path):
  """Only the header and the index are tested, because array_record reads records from the real service."""
  truth = open_dataset(Dataset("folder", str(folder), 2), "train")
  groups = ["g0", "g0", "g1", "g1"]
  stream = {"train": lambda start: encoded_samples(truth, range(start, 4), groups, 2, False)}
  upload(write_records(tmp_path, "mine", stream, 2).parent, bucket / "mine")
  source = RecordSource(str(bucket), "train", 2, LabelFormat())
  assert [source.name(i) for i in range(4)] == [truth.name(i) for i in range(4)]
  assert source.field(3, "group") == "g1" and source.classes(0) == (1,)
  assert source._slices[0].instruction.filename.startswith("gs://bucket/data/mine/1.0.0/mine-train.array_record")
