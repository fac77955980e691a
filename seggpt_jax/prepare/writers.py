"""Writes samples as a TFDS dataset in ArrayRecord format, without TensorFlow, or as folders of image files.

Images stay byte for byte where possible, labels become PNG files of class indices.

TFDS' own builders collect a split in memory and need TensorFlow for more than 1 GB. Here samples are written to a shard
as they arrive. Finished shards are kept, so that a stopped run can resume. The dataset appears under its name only when
it is complete.

  DIRECTORY/NAME/1.0.0/dataset_info.json, features.json
  DIRECTORY/NAME/1.0.0/NAME-SPLIT.array_record-00000-of-00004
  DIRECTORY/NAME/1.0.0/samples-SPLIT.npz          names, groups and classes, see `sample_index`
  DIRECTORY/NAME/incomplete/                      unfinished work
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from seggpt_jax.data.bad_files import BadFile
from seggpt_jax.data.ledger import Ledger, read_entries
from seggpt_jax.data.read_ahead import read_ahead
from seggpt_jax.data.sample_index import SampleIndex, index_name
from seggpt_jax.data.sources import EncodedSource
from seggpt_jax.errors import InputError, MachineError, one_line
from seggpt_jax.files import expand, is_full, write_whole, writing
from seggpt_jax.formats.images import ORIENTATION, decode_image, open_image
from seggpt_jax.formats.labels import classes_in

VERSION = "1.0.0"
SHARD_BYTES = 256 << 20


class EncodedSample(NamedTuple):
  """A sample as files: the image, the label (PNG of class indices and IGNORE), and the label's foreground classes."""

  name: str
  group: str
  image: bytes
  label: bytes
  classes: tuple[int, ...]


# A function that takes a position and yields the samples of a split from there on, one for each position.
Samples = Callable[[int], Iterator[EncodedSample | BadFile]]


def _encode_sample(source: EncodedSource, index: int, group: str = "", shorter_side: int = 0) -> EncodedSample:
  """Encodes one sample as files.

  JPEG and PNG files with one or three channels are kept byte for byte. Other images, and images that an EXIF tag
  rotates, become PNG files of the pixels that training would see. Images that are shrunk stay JPEG if they were JPEG.
  """
  sample, (data, where) = source[index], source.encoded_image(index)
  image, label = sample["image"], sample["label"]
  if 0 < shorter_side < min(label.shape):
    image, label = _shrunk(image, label, shorter_side)
    # In high quality, so that little is lost in addition to the first compression.
    data = _saved(image, "JPEG", quality=95, subsampling=0) if image_ending(data) == ".jpg" else _saved(image)
  elif not _can_copy(data, where):
    data = _saved(image)
  return EncodedSample(source.name(index), group, data, _saved(label), classes_in(label))


def as_stored(data: bytes, where: str) -> tuple[bytes, str]:
  """Returns an image file as it is stored, with the rules of `_encode_sample`, and its ending.

  Args:
    data: content of the file.
    where: name of the file, for error messages.

  Raises:
    InputError: the file is damaged, cut off, or no image.
  """
  image = decode_image(data, where)
  data = data if _can_copy(data, where) else _saved(image)
  return data, image_ending(data)


def _can_copy(data: bytes, where: str) -> bool:
  """Returns True if the image file can be stored byte for byte."""
  image = open_image(data, where)
  return (
    image.format in ("JPEG", "MPO", "PNG") and image.mode in ("RGB", "L") and image.getexif().get(ORIENTATION, 1) == 1
  )


def _shrunk(
  image: UInt8[np.ndarray, "h w 3"], label: UInt8[np.ndarray, "h w"], shorter_side: int
) -> tuple[UInt8[np.ndarray, "h2 w2 3"], UInt8[np.ndarray, "h2 w2"]]:
  """Shrinks image and label and keeps the aspect ratio: bicubic for the image, nearest neighbor for the label."""
  factor = shorter_side / min(label.shape)
  height, width = (max(round(length * factor), 1) for length in label.shape)
  smaller = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
  return np.asarray(smaller), np.asarray(Image.fromarray(label).resize((width, height), Image.Resampling.NEAREST))


def _saved(pixels: UInt8[np.ndarray, "h w *c"], form: str = "PNG", **options: int) -> bytes:
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, form, **options)
  return file.getvalue()


def image_ending(data: bytes) -> str:
  """Returns the file extension for `EncodedSample.image`: .jpg or .png."""
  return ".jpg" if data.startswith(b"\xff\xd8") else ".png"


def encoded_samples(
  source: EncodedSource,
  positions: Iterable[int],
  groups: Sequence[str],
  num_workers: int,
  skip_bad: bool,
  shorter_side: int = 0,
) -> Iterator[EncodedSample | BadFile]:
  """Yields encoded samples in order. Threads encode ahead; decoding and compression run outside Python's lock.

  Args:
    source: the samples.
    positions: indices of the samples to encode.
    groups: group of every sample of the source.
    num_workers: number of threads.
    skip_bad: True yields a `BadFile` in place of a sample that cannot be used; False raises.
    shorter_side: largest shorter side in pixels, see `_encode_sample`.

  Raises:
    InputError: a sample cannot be used, and `skip_bad` is False.
  """

  def encode(index: int) -> EncodedSample | BadFile:
    try:
      return _encode_sample(source, index, groups[index], shorter_side)
    except InputError as error:
      if not skip_bad:
        raise
      return BadFile(source.name(index), one_line(error))

  with contextlib.closing(read_ahead(encode, positions, threads=num_workers, ahead=4 * num_workers)) as results:
    for _, result in results:
      yield result.result()


def write_records(
  directory: str | os.PathLike,
  name: str,
  splits: Mapping[str, Samples],
  num_classes: int,
  shard_bytes: int = SHARD_BYTES,
) -> Path:
  """Writes a dataset, or the part of it that a stopped run has not written.

  Args:
    directory: local folder in which the dataset's folder is created.
    name: name of the dataset: lower case letters, digits and underscores.
    splits: samples by split; a resumed run needs the same samples as before.
    num_classes: number of classes, background included.
    shard_bytes: size in bytes from which on a shard is closed.

  Returns:
    Folder of the version.

  Raises:
    InputError: the folder cannot be written to, or a split has no usable sample.
  """
  dataset = Path(expand(directory)) / name
  whole, unfinished = dataset / VERSION, dataset / "incomplete"
  if not whole.exists():
    for folder in ("shards", VERSION):
      with writing(unfinished):
        (unfinished / folder).mkdir(parents=True, exist_ok=True)
    features = _features()
    counts = {
      split: _write_shards(unfinished / "shards", split, samples, num_classes, shard_bytes, features)
      for split, samples in splits.items()
    }
    with writing(unfinished):
      _assemble(unfinished, name, counts, features)
      os.replace(unfinished / VERSION, whole)
  shutil.rmtree(unfinished, ignore_errors=True)
  return whole


def _features() -> Any:
  import tensorflow_datasets as tfds

  return tfds.features.FeaturesDict(
    {
      "image": tfds.features.Image(),
      "segmentation_mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
      "name": tfds.features.Text(),
      "group": tfds.features.Text(),
    }
  )


def _shard_file(folder: Path, split: str, number: int) -> Path:
  return folder / f"{split}-{number:05d}.array_record"


def _write_shards(folder: Path, split: str, samples: Samples, num_classes: int, shard_bytes: int, features: Any) -> int:
  """Writes the missing shards of a split and returns their number. The index of a shard marks it as finished."""
  number = position = 0
  while (done := _shard_file(folder, split, number).with_suffix(".npz")).exists():
    index = SampleIndex.load(done)
    position += len(index) + len(index.bad)
    number += 1
  stream = samples(position)
  while True:
    path = _shard_file(folder, split, number)
    index = _write_shard(path, stream, num_classes, shard_bytes, features)
    if index is None:
      break
    index.save(path.with_suffix(".npz"))
    number += 1
  return number


def _write_shard(
  path: Path, stream: Iterable[EncodedSample | BadFile], num_classes: int, shard_bytes: int, features: Any
) -> SampleIndex | None:
  """Writes one shard and replaces an unfinished one. Returns its index, or None if there are no more samples."""
  from array_record.python.array_record_module import ArrayRecordWriter

  written, good, bad = 0, [], []
  with writing(path):
    path.unlink(missing_ok=True)
  writer = None
  try:
    for sample in stream:
      if isinstance(sample, BadFile):
        bad.append(str(sample))
        continue
      writer = writer or ArrayRecordWriter(os.fspath(path), "group_size:1")  # so that one record can be read alone
      record = features.serialize_example(
        {
          "image": io.BytesIO(sample.image),
          "segmentation_mask": io.BytesIO(sample.label),
          "name": sample.name,
          "group": sample.group,
        }
      )
      writer.write(record)
      good.append((sample.name, sample.group, sample.classes))
      written += len(record)
      if written >= shard_bytes:
        break
    if writer is not None:
      writer.close()
  except RuntimeError as error:
    if is_full(error):
      raise MachineError(f"{path}: the disk is full; make room and rerun the same command") from error
    raise InputError(f"{path}: cannot be written: {one_line(error)}") from error
  if not good and not bad:
    return None
  names, groups, classes = zip(*good, strict=True) if good else ((), (), ())
  return SampleIndex.of(names, groups, classes, num_classes, bad)


def _assemble(unfinished: Path, name: str, counts: Mapping[str, int], features: Any) -> None:
  """Renames the shards as TFDS names them and writes the header. A call that was stopped half-way can be repeated."""
  import tensorflow_datasets as tfds

  folder = unfinished / VERSION
  infos = []
  for split, count in counts.items():
    files = [_shard_file(unfinished / "shards", split, number) for number in range(count)]
    indices = [SampleIndex.load(file.with_suffix(".npz")) for file in files]
    kept = [(file, index) for file, index in zip(files, indices, strict=True) if len(index)]
    if not kept:
      raise InputError(f"{split}: found no sample that can be used, expected at least one")
    template = tfds.core.ShardedFileTemplate(
      data_dir=folder, dataset_name=name, split=split, filetype_suffix="array_record"
    )
    num_bytes = 0
    for number, (file, _) in enumerate(kept):
      place = Path(template.sharded_filepath(shard_index=number, num_shards=len(kept)))
      if file.exists():
        os.replace(file, place)
      num_bytes += place.stat().st_size
    SampleIndex.join(indices).save(folder / index_name(split))
    lengths = [len(index) for _, index in kept]
    infos.append(
      tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=num_bytes, filename_template=template)
    )
  identity = tfds.core.DatasetIdentity(
    name=name, version=tfds.core.Version(VERSION), data_dir=os.fspath(folder), module_name=__name__
  )
  info = tfds.core.DatasetInfo(
    builder=identity,
    features=features,
    disable_shuffling=True,
    description="Labeled images. segmentation_mask holds class indices, 0 is the background, 255 is ignored.",
  )
  info.set_file_format("array_record")
  info.set_splits(tfds.core.SplitDict(infos))
  info.write_to_directory(os.fspath(folder))


def write_folder(
  directory: Path,
  split: str,
  names: Sequence[str],
  samples: Callable[[Sequence[int]], Iterator[EncodedSample | BadFile]],
  num_classes: int,
) -> tuple[SampleIndex, int]:
  """Writes the samples of one split that an earlier run has not written.

  Finished samples are listed in a journal, which `delete_journal` removes once the whole dataset is finished.

  Args:
    directory: local folder for SPLIT/images and SPLIT/labels.
    split: part of the dataset.
    names: names of all samples, by position.
    samples: function that takes positions and yields their samples in order.
    num_classes: number of classes, background included.

  Returns:
    The index of all samples written, now and before, and the number of bytes in their files.

  Raises:
    InputError: a name cannot be used as a file name here, or the folder cannot be written to.
  """
  for name in names:
    *folders, file = name.split("/")
    if any("." in folder or not folder for folder in folders) or file.startswith(".") or not file:
      raise InputError(
        f"{split}: found the name {name!r}, expected no dot in its folders or at its start; --format=records accepts it"
      )
  journal = _journal(directory, split)
  with Ledger(journal) as ledger:
    # Bad samples are tried again, because their files may have been repaired.
    done = {name for name, entry in ledger.finished.items() if "bad" not in entry}
    for sample in samples([i for i, name in enumerate(names) if name not in done]):
      ledger.add(**_write(directory / split, sample))
    entries = list(ledger.finished.values())
  good = [entry for entry in entries if "bad" not in entry]
  bad = [str(BadFile(entry["name"], entry["bad"])) for entry in entries if "bad" in entry]
  if not good:
    raise InputError(f"{split}: found no sample that can be used, expected at least one")
  index = SampleIndex.of(*([e[key] for e in good] for key in ("name", "group", "classes")), num_classes, bad)
  return index, sum(entry["bytes"] for entry in good)


def has_finished_samples(directory: Path, split: str) -> bool:
  """Returns True if the journal of a split lists a finished sample."""
  entries = read_entries(directory, _journal(directory, split).name)
  return any("bad" not in entry for entry in entries.values())


def delete_journal(directory: Path, split: str) -> None:
  """Deletes the journal of a split, if there is one."""
  _journal(directory, split).unlink(missing_ok=True)


def _journal(directory: Path, split: str) -> Path:
  return directory / f".journal-{split}"


def _write(directory: Path, sample: EncodedSample | BadFile) -> dict[str, Any]:
  """Writes image and label of a sample. Returns its entry in the journal."""
  if isinstance(sample, BadFile):
    return {"name": sample.name, "bad": sample.reason}
  image = directory / "images" / f"{sample.name}{image_ending(sample.image)}"
  write_whole(image, lambda file: file.write(sample.image))
  write_whole(directory / "labels" / f"{sample.name}.png", lambda file: file.write(sample.label))
  size = len(sample.image) + len(sample.label)
  return {"name": sample.name, "group": sample.group, "classes": list(sample.classes), "bytes": size}
