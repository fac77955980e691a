"""TFDS records: the same pixels as from files, in any process, and a clear error for a dataset that does not fit."""

import io
import itertools
import json
import multiprocessing
import os
import pickle
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from seggpt_jax.data import records
from seggpt_jax.data.bad_files import BadFile
from seggpt_jax.data.datasets import Dataset, open_dataset
from seggpt_jax.data.records import RecordSource
from seggpt_jax.data.sample_index import SampleIndex
from seggpt_jax.data.sources import FileSource
from seggpt_jax.errors import InputError
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.formats.layouts import folder_layout
from seggpt_jax.prepare.writers import _encode_sample, encoded_samples, write_records

INDEX = LabelFormat()


def png(pixels):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Ten images of several kinds with labels 0..2 and 9 for ignored pixels."""
  path = tmp_path_factory.mktemp("files")
  generator = np.random.default_rng(0)
  for kind in ("images", "labels"):
    (path / kind).mkdir()
  for i in range(10):
    pixels = generator.integers(0, 256, (20, 24, 3), np.uint8)
    image, exif = Image.fromarray(pixels), Image.Exif()
    turned = i == 3
    if turned:
      exif[0x0112] = 6
    ending = {1: "bmp", 2: "png"}.get(i, "jpg")
    image = image.convert("CMYK") if i == 4 else image.convert("L") if i == 5 else image
    image.save(path / "images" / f"p{i // 4}_{i}.{ending}", **({"exif": exif} if turned else {}))
    label = generator.choice(np.array([0, 1, 2, 9] if i else [0, 1], np.uint8), (20, 24))
    # EXIF tags rotate label files too. Here only the image has a tag, so the stored label is already rotated.
    Image.fromarray(np.rot90(label, 3) if turned else label).save(path / "labels" / f"p{i // 4}_{i}.png")
  return path


@pytest.fixture(scope="module")
def files(folder):
  return FileSource(folder_layout(folder), 3, LabelFormat(ignore=(9,)))


def stream(source, skip_bad=False):
  groups = [source.name(i).split("_")[0] for i in range(len(source))]
  return lambda start: encoded_samples(source, range(start, len(source)), groups, 2, skip_bad)


@pytest.fixture(scope="module")
def version(files, tmp_path_factory):
  return write_records(tmp_path_factory.mktemp("out"), "mine", {"train": stream(files)}, 3, shard_bytes=6000)


def same(source, files):
  assert len(source) == len(files)
  for i in range(len(files)):
    assert source[i]["name"] == source.name(i) == files.name(i)
    np.testing.assert_array_equal(source[i]["image"], files[i]["image"])
    np.testing.assert_array_equal(source[i]["label"], files[i]["label"])
    np.testing.assert_array_equal(source.label(i), files[i]["label"])


def test_records_hold_what_the_files_held(version, files):
  """Ignored pixels are known from the index, without ignore=(255,)."""
  same(RecordSource(version, "train", 3, INDEX), files)
  assert len(list(version.glob("mine-train.array_record-*-of-*"))) > 1
  assert not list(version.parent.glob("incomplete*"))


def test_names_groups_and_classes_are_known_without_reading(version, files, tmp_path):
  source = RecordSource(version, "train", 3, INDEX)
  source._records = "nothing can be read"
  assert source.field(5, "group") == "p1" and source.field(5, "name") == files.name(5)
  assert source.classes(0) == (1,) and source.classes(1) == (1, 2)


def test_image_files_stay_as_they_are(folder, files):
  """Compressing a JPEG again would change the training data."""
  kept = [_encode_sample(files, i).image == files.encoded_image(i)[0] for i in range(10)]
  assert kept == [True, False, True, False, False, *[True] * 5]


def test_other_tools_can_read_the_dataset(version, files):
  source = tfds.builder_from_directory(str(version)).as_data_source("train")
  assert [record["name"].decode() for record in source] == [files.name(i) for i in range(10)]
  assert source[0]["group"] == b"p0"
  np.testing.assert_array_equal(source[2]["image"], files[2]["image"])
  np.testing.assert_array_equal(source[2]["segmentation_mask"][..., 0], files[2]["label"])


def test_slices_keep_names_and_groups(version, files):
  source = RecordSource(version, "train[40%:]", 3, INDEX)
  assert [source.name(i) for i in range(len(source))] == [files.name(i) for i in range(4, 10)]
  assert source.field(0, "group") == "p1"
  np.testing.assert_array_equal(source[5]["label"], files[9]["label"])


def test_a_folder_above_takes_the_newest_version(version, files, tmp_path):
  assert open_dataset(Dataset("tfds", str(version.parent.parent), 3), "train").name(0) == files.name(0)
  for number in ("1.9.0", "1.10.0"):
    write_records(tmp_path, "mine", {"train": stream(files)}, 3)
    (tmp_path / "mine/1.0.0").rename(tmp_path / "mine" / number)
  (tmp_path / "mine/incomplete.ABC_2.0.0").mkdir()
  assert RecordSource(tmp_path, "train", 3, INDEX)._path.endswith("1.10.0")
  write_records(tmp_path, "other", {"train": stream(files)}, 3)
  refused("found 2 datasets, expected one of .*mine, .*other", lambda: RecordSource(tmp_path, "train", 3, INDEX))


def read_one(source, index, results):
  results.put(source[index]["label"])


def test_worker_processes_open_the_files_themselves(version, files):
  source = RecordSource(version, "train", 3, INDEX)
  source[0]
  same(pickle.loads(pickle.dumps(source)), files)
  context = multiprocessing.get_context("spawn")
  results = context.Queue()
  worker = context.Process(target=read_one, args=(source, 7, results))
  worker.start()
  np.testing.assert_array_equal(results.get(timeout=60), files[7]["label"])
  worker.join()


def test_many_threads_read_at_once(version, files):
  source, wrong = RecordSource(version, "train", 3, INDEX), []
  expected = [files[i]["label"] for i in range(10)]

  def read(seed):
    for i in np.random.default_rng(seed).integers(0, 10, 50):
      if not np.array_equal(source[int(i)]["label"], expected[i]):
        wrong.append(i)

  threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not wrong


def pets(data_dir):
  """Builds a dataset with tensorflow_datasets whose labels are trimaps 1, 2, 3, as in oxford_iiit_pet."""
  generator = np.random.default_rng(1)

  class Pets(tfds.core.GeneratorBasedBuilder):
    name = "pets"
    VERSION = tfds.core.Version("3.2.0")

    def _info(self):
      image = tfds.features.Image()
      features = {
        "photo": image,
        "extra": {"trimap": tfds.features.Image(shape=(None, None, 1))},
        "species": tfds.features.ClassLabel(names=["cat", "dog"]),
        "age": np.float32,
        "file_name": tfds.features.Text(),
        "boxes": tfds.features.Sequence(np.int64),
      }
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples(6), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
      for i in range(count):
        trimap = generator.integers(1, 4, (8, 9)).astype(np.uint8)
        yield (
          f"pet{i}",
          {
            "photo": io.BytesIO(png(np.full((8, 9, 3), 10 * i, np.uint8))),
            "extra": {"trimap": io.BytesIO(png(trimap))},
            "species": i % 2,
            "age": i / 2,
            "file_name": f"pet{i}.jpg",
            "boxes": list(range(i)),
          },
        )

  builder = Pets(data_dir=data_dir, file_format="array_record")
  config = tfds.download.DownloadConfig()
  builder.download_and_prepare(download_config=config, download_dir=str(data_dir / "downloads"))
  return builder


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
  path = tmp_path_factory.mktemp("tfds")
  pets(path)
  return path


TRIMAP = LabelFormat("table", table=(2, 1), ignore=(3,))


def test_any_dataset_with_two_images_in_a_record_is_read(foreign):
  source = RecordSource(foreign, "train", 2, TRIMAP)
  expected = tfds.builder_from_directory(str(foreign / "pets/3.2.0")).as_data_source("train")
  assert len(source) == 6 and len(RecordSource(foreign, "train+test", 2, TRIMAP)) == 8
  for i in range(6):
    trimap = expected[i]["extra"]["trimap"][..., 0]
    np.testing.assert_array_equal(source[i]["label"], np.array([99, 1, 0, 255])[trimap])
    np.testing.assert_array_equal(source[i]["image"], expected[i]["photo"])
    assert source.field(i, "species") == ["cat", "dog"][expected[i]["species"]]
    assert source.field(i, "file_name") == expected[i]["file_name"].decode()
    assert float(source.field(i, "age")) == expected[i]["age"]
    assert source.name(i) == f"train/{i:06d}" and source.classes(i) is None


def refused(match, make):
  with pytest.raises(InputError, match=match) as caught:
    make()
  assert "\n" not in str(caught.value)


def test_errors_about_keys_and_splits_list_the_known_ones(foreign):
  def open_(split="train"):
    return RecordSource(foreign, split, 2, TRIMAP)

  refused(r"found no split 'val', expected one of train \(6\), test \(2\)", lambda: open_("val"))
  refused("found no split 'train.:x.'", lambda: open_("train[:x]"))
  refused("found no records in 'train.:0.'", lambda: open_("train[:0]"))
  fields = r"age \(.*\), boxes \(Sequence\), file_name \(Text\), species \(ClassLabel\)$"
  refused(f"found no field 'photo', expected one of {fields}", lambda: open_().field(0, "photo"))
  refused(r"3.2.0: train\[2\] boxes: found \d values, expected one", lambda: open_().field(2, "boxes"))


def test_image_and_label_of_a_record_are_found_by_their_names():
  def found(*names, **others):
    features = {name: records.Feature("Image") for name in names}
    features |= {name: records.Feature(kind) for name, kind in others.items()}
    return records._image_and_label(features, "here")

  assert found("image", "segmentation_mask", "preview", label="ClassLabel") == ("image", "segmentation_mask")
  assert found("image", "segmentation_mask", "instance_mask") == ("image", "segmentation_mask")
  assert found("photo", "extra/trimap") == ("photo", "extra/trimap")
  expected = "here: found nothing as the label among image, species, expected one image"
  refused(expected, lambda: found("image", species="ClassLabel"))
  refused("found mask_1, mask_2 as the label among", lambda: found("image", "mask_1", "mask_2"))
  refused("found left, right as the image among", lambda: found("left", "right", "mask"))


def test_label_values_are_named_with_their_record(foreign):
  source = RecordSource(foreign, "test", 2, INDEX)
  refused(r"3.2.0: test\[1\] extra/trimap: found label value 3, expected 0..1", lambda: source[1])


def edited(version, tmp_path, **changes):
  for file in version.iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  info = json.loads((tmp_path / "dataset_info.json").read_text())
  (tmp_path / "dataset_info.json").write_text(json.dumps({**info, **changes}))
  return tmp_path


def test_other_file_formats(version, tmp_path):
  path = edited(version, tmp_path, fileFormat="tfrecord")
  refused(
    "found files in tfrecord format, expected ArrayRecord, which `tfds build --file_format=array_record` writes",
    lambda: RecordSource(path, "train", 3, INDEX),
  )


def test_missing_and_damaged_files(version, tmp_path):
  path = edited(version, tmp_path)
  shard = min(path.glob("*.array_record-*"))
  shard.write_bytes(shard.read_bytes()[:1000])
  refused("array_record-00000-of-.*: cannot be read", lambda: RecordSource(path, "train", 3, INDEX)[0])
  shard.unlink()
  refused("array_record-00000-of-.*: not found, expected all", lambda: RecordSource(path, "train", 3, INDEX))
  (path / "samples-train.npz").write_bytes(b"PK")
  (path / "features.json").write_text("{")
  refused("cannot be read as a TFDS dataset", lambda: RecordSource(path, "train", 3, INDEX))
  (path / "dataset_info.json").write_text("{")
  refused("cannot be read as a TFDS dataset", lambda: RecordSource(path, "train", 3, INDEX))
  (path / "dataset_info.json").unlink()
  refused("found no dataset_info.json in it or below", lambda: RecordSource(path, "train", 3, INDEX))
  refused("folder not found", lambda: RecordSource(path / "none", "train", 3, INDEX))


def test_damaged_index(version, tmp_path):
  path = edited(version, tmp_path)
  (path / "samples-train.npz").write_bytes(b"PK")
  refused("samples-train.npz: cannot be read as an index", lambda: RecordSource(path, "train", 3, INDEX))


def test_records_of_seggpt_prepare_must_be_read_as_indices(version):
  """If such labels were read as masks, every class would become class 1."""
  refused(
    "found labels=binary, expected labels=index", lambda: RecordSource(version, "train", 3, LabelFormat("binary"))
  )
  refused(r"found class 2, expected 0..1 \(data.num_classes=2\)", lambda: RecordSource(version, "train", 2, INDEX))


class StoppedError(Exception):
  """Raised where a test simulates the end of the process."""


@pytest.mark.parametrize("stop", range(0, 10, 2))
def test_a_stopped_run_resumes_at_its_unfinished_shard(files, version, tmp_path, stop):
  started = []

  def stopping(start):
    yield from itertools.islice(stream(files)(start), stop)
    raise StoppedError

  def going_on(start):
    started.append(start)
    return stream(files)(start)

  with pytest.raises(StoppedError):
    write_records(tmp_path, "mine", {"train": stopping}, 3, shard_bytes=6000)
  refused("found no dataset_info", lambda: RecordSource(tmp_path, "train", 3, INDEX))
  write_records(tmp_path, "mine", {"train": going_on}, 3, shard_bytes=6000)
  assert stop - 6 < started[0] <= stop
  assert sorted(file.name for file in (tmp_path / "mine").iterdir()) == ["1.0.0"]
  for ours, theirs in zip(sorted((tmp_path / "mine/1.0.0").iterdir()), sorted(version.iterdir()), strict=True):
    assert ours.name == theirs.name
    assert ours.suffix == ".npz" or ours.read_bytes() == theirs.read_bytes()


def test_bad_samples_are_left_out_and_listed(files, tmp_path):
  def some(start):
    for i, sample in enumerate(stream(files)(start)):
      yield BadFile(sample.name, "torn") if i % 2 else sample

  version = write_records(tmp_path, "mine", {"train": some}, 3, shard_bytes=3000)
  source = RecordSource(version, "train", 3, INDEX)
  assert [source.name(i) for i in range(len(source))] == [files.name(i) for i in range(0, 10, 2)]
  assert source._index["train"].bad.tolist() == [f"{files.name(i)}: torn" for i in range(1, 10, 2)]
  nothing = {"train": lambda start: (BadFile("a", "torn") for _ in range(3 - start))}
  refused("train: found no sample that can be used", lambda: write_records(tmp_path, "none", nothing, 3))


def test_a_run_stopped_while_renaming_shards_resumes(files, version, tmp_path, monkeypatch):
  """The run may stop at any of the last renames, after hours of work."""
  replace, steps = os.replace, []
  for stop in itertools.count(1):
    steps.clear()

    def stopping(source, target, stop=stop):
      steps.append(target)
      if len(steps) == stop:
        raise StoppedError
      replace(source, target)

    monkeypatch.setattr(os, "replace", stopping)
    directory = tmp_path / str(stop)
    try:
      write_records(directory, "mine", {"train": stream(files)}, 3, shard_bytes=6000)
      break
    except StoppedError:
      monkeypatch.setattr(os, "replace", replace)
      whole = write_records(directory, "mine", {"train": stream(files)}, 3, shard_bytes=6000)
      same(RecordSource(whole, "train", 3, INDEX), files)
      assert os.listdir(directory / "mine") == ["1.0.0"]
      assert sorted(os.listdir(whole)) == sorted(os.listdir(version))
  assert stop > 5


def test_names_in_any_script_are_kept(tmp_path):
  names, groups = ["straße/é", "", "猫_01"], ["a", "b", "a"]
  parts = [SampleIndex.of(names, groups, [(1,), (), (2, 1)], 3, ["bad: torn"]), SampleIndex.of(["x"], ["0"], [(2,)], 3)]
  SampleIndex.join(parts).save(tmp_path / "i.npz")
  index = SampleIndex.load(tmp_path / "i.npz")
  assert [index.name(i) for i in range(4)] == [*names, "x"]
  assert [index.group(i) for i in range(4)] == [*groups, "0"]
  assert [index.classes(i) for i in range(4)] == [(1,), (), (1, 2), (2,)]
  assert len(index) == 4 and index.bad.tolist() == ["bad: torn"] and index.shares() == [0.5, 0.5]
