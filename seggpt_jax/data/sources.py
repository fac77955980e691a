"""Random-access sources of labeled images: files in, `Sample`s of NumPy arrays out.

A source has a length and gives the i-th sample; nothing is read before it is asked for. Which files belong together is
found by a layout, one function for each way in which people lay out folders; all of them end in a `FileSource`.
`datasets.open_dataset` finds the right one, and those of other modules, by name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple, NotRequired, Protocol, TypedDict, runtime_checkable

import numpy as np
from etils import epath
from jaxtyping import UInt8

from seggpt_jax.data.images import list_images, read_bytes, read_image, remote_or_local
from seggpt_jax.data.labels import IGNORE, LabelFormat, check_classes, read_labels
from seggpt_jax.errors import InputError, refuse


class Sample(TypedDict):
  """One labeled image: `image` uint8 [H, W, 3], `label` uint8 [H, W] (see `labels`), `name`."""

  image: np.ndarray
  label: np.ndarray
  name: NotRequired[str]


@runtime_checkable
class Source(Protocol):
  """Random access to labeled images.

  Attributes:
    num_classes: N, background included; labels lie in 0..N-1 or are IGNORE.
  """

  num_classes: int

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Sample: ...

  def name(self, index: int) -> str:
    """The sample's name, without reading it: no two are the same; folders are part of it."""
    ...

  def label(self, index: int) -> UInt8[np.ndarray, "h w"]:
    """The label alone, without decoding the image."""
    ...

  def classes(self, index: int) -> tuple[int, ...] | None:
    """The classes but the background that the sample holds; None if that cannot be told without reading its label."""
    ...

  def field(self, index: int, key: str) -> str:
    """Something else that is known of the sample, such as the patient it is of.

    Raises:
      InputError: the source knows nothing of that name.
    """
    ...


@runtime_checkable
class EncodedSource(Source, Protocol):
  """A source whose images are files: they can be copied as they are."""

  def encoded_image(self, index: int) -> tuple[bytes, str]:
    """The image's file undecoded, and where it is from, for what may be wrong with it.

    Raises:
      InputError: it cannot be read.
    """
    ...


class Mask(NamedTuple):
  """A file that masks one class or one instance of it."""

  class_index: int
  path: str


class Item(NamedTuple):
  """The files of one sample: a label map, or masks, where a later one covers those before it."""

  name: str
  image: str
  label: str | tuple[Mask, ...]


# ------------------------------------------------------------------------------------------------------------ layouts
# Each takes a list that is given what is wrong with the files; they are then left out instead of refused.


def folder_layout(directory: str | os.PathLike, problems: list[str] | None = None) -> list[Item]:
  """`images/NAME.*` and `labels/NAME.*`, of any depth: NAME may be `street/0001`.

  Raises:
    InputError: a folder, an image or a partner is missing.
  """
  return _matched(epath.Path(directory) / "images", epath.Path(directory) / "labels", problems)


def _matched(
  images_dir: epath.Path, labels_dir: epath.Path, problems: list[str] | None, prefix: str = ""
) -> list[Item]:
  """Images and labels of the same name."""
  images, labels = (list_images(folder, recursive=True, problems=problems) for folder in (images_dir, labels_dir))
  for name, path in images.items():
    if name not in labels:
      refuse(f"{path}: found no label for it, expected {labels_dir / name}.*", problems)
  for name, path in labels.items():
    if name not in images:
      refuse(f"{path}: found no image for it, expected {images_dir / name}.*", problems)
  return [Item(prefix + name, path, labels[name]) for name, path in images.items() if name in labels]


_IMAGE_FOLDERS = {"image": "label", "images": "labels"}


def class_folder_layout(directory: str | os.PathLike, problems: list[str] | None = None) -> list[Item]:
  """The original tool's `PRODUCT/DEFECT/{image,label}`, of any depth; names are `PRODUCT/DEFECT/NAME`.

  Raises:
    InputError: no such folders in it, or an image without its label.
  """
  directory = _existing(directory)
  items: list[Item] = []

  def visit(folder: epath.Path, prefix: str) -> None:
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    images = [path for path in inside if path.name in _IMAGE_FOLDERS]
    for path in images:
      items.extend(_matched(path, folder / _IMAGE_FOLDERS[path.name], problems, prefix))
    for path in inside if not images else []:
      visit(path, f"{prefix}{path.name}/")

  visit(directory, "")
  if not items and not problems:
    raise InputError(f"{directory}: found no folder `image` at any depth, expected PRODUCT/DEFECT/{{image,label}}")
  return items


def mask_layout(
  directory: str | os.PathLike, class_names: Sequence[str] = (), problems: list[str] | None = None
) -> list[Item]:
  """One mask file for each class or instance, in one of three ways.

  - `images/NAME.*` and `labels/NAME/*.png`: a folder of masks for each image.
  - `NAME/images/*.png` and `NAME/masks/*.png`: a folder for each image, as nuclei come.
  - `images/NAME.*` and `labels/CLASS/NAME.*`: a folder for each class; an image without a mask has none of it.

  In the first two a mask is of the class whose name its file name begins with (`crack_2.png`), or of class 1 if no
  names are given. Of overlapping masks the later class, then the later name, is on top.

  Args:
    directory: the folder.
    class_names: of classes 1, 2, ...; for a folder for each class, by default the sorted names of those folders.
    problems: see above.

  Raises:
    InputError: a folder or an image is missing, or a mask is of no known image or class.
  """
  directory = _existing(directory)
  if not (directory / "images").is_dir():
    return list(_image_folders(directory, class_names, problems))
  images, labels = list_images(directory / "images", problems=problems), _existing(directory / "labels")
  folders = sorted(path.name for path in labels.iterdir() if path.is_dir() and not path.name.startswith("."))
  if not folders:
    raise InputError(f"{labels}: found no folders in it, expected one of masks for each image or for each class")
  known = set(folders) & set(images)
  if len(known) == len(folders) or (known and problems is not None):
    for folder in folders:
      if folder not in images:
        refuse(f"{labels / folder}: found no image for it, expected {directory / 'images' / folder}.*", problems)
    for name, path in images.items():
      if name not in folders:
        refuse(f"{path}: found no masks for it, expected a folder {labels / name}, empty if there are none", problems)
    names = [name for name in images if name in folders]
    return [Item(name, images[name], _masks(labels / name, class_names, problems)) for name in names]
  class_names = list(class_names) or folders
  for folder in folders:
    if folder not in class_names:
      refuse(f"{labels / folder}: found neither an image nor a class of that name, expected one of the two", problems)
  of_class = {name: list_images(labels / name, problems=problems) for name in class_names if name in folders}
  for files in of_class.values():
    for name, path in files.items():
      if name not in images:
        refuse(f"{path}: found no image for it, expected {directory / 'images' / name}.*", problems)
  return [
    Item(
      name,
      path,
      tuple(Mask(1 + i, of_class[c][name]) for i, c in enumerate(class_names) if name in of_class.get(c, {})),
    )
    for name, path in images.items()
  ]


def _image_folders(directory: epath.Path, class_names: Sequence[str], problems: list[str] | None) -> Iterator[Item]:
  """A folder for each image, with `images` and `masks` in it."""
  folders = sorted(path for path in directory.iterdir() if (path / "images").is_dir())
  if not folders:
    raise InputError(f"{directory}: found neither images/ nor NAME/images/, expected one of them")
  for folder in folders:
    images = list_images(folder / "images", problems=problems)
    if len(images) > 1:
      refuse(f"{folder / 'images'}: found {len(images)} images, expected one, with its masks in ../masks", problems)
    elif not (folder / "masks").is_dir():
      refuse(f"{folder / 'masks'}: folder not found", problems)
    elif images:
      yield Item(folder.name, next(iter(images.values())), _masks(folder / "masks", class_names, problems))


def _masks(folder: epath.Path, class_names: Sequence[str], problems: list[str] | None) -> tuple[Mask, ...]:
  """The masks of one image, the topmost last."""
  if not any(not path.name.startswith(".") for path in folder.iterdir()):
    return ()
  masks = []
  for name, path in list_images(folder, problems=problems).items():
    # The longest name that fits: `crack_wide_1` is a `crack_wide` even if there is a class `crack`.
    fitting = [c for c in class_names if name == c or (name.startswith(c) and not name[len(c)].isalpha())]
    if class_names and not fitting:
      refuse(f"{path}: found no class for it, expected a name that begins with {', '.join(class_names)}", problems)
      continue
    masks.append(Mask(1 + class_names.index(max(fitting, key=len)) if fitting else 1, path))
  return tuple(sorted(masks))


def _existing(directory: str | os.PathLike) -> epath.Path:
  directory = remote_or_local(directory)
  if not directory.is_dir():
    raise InputError(f"{directory}: folder not found")
  return directory


# ------------------------------------------------------------------------------------------------------------ sources


class FileSource:
  """Samples whose image and label lie in files.

  Args:
    items: the files, as of a layout.
    num_classes: N, background included.
    label_format: how label files are read; of masks everything above the threshold counts.

  Raises:
    InputError: when a sample is read, whatever is wrong with its files.
  """

  def __init__(self, items: Sequence[Item], num_classes: int, label_format: LabelFormat):
    masks = next((item for item in items if not isinstance(item.label, str)), None)
    if masks is not None and label_format.mode != "binary":
      raise InputError(f"{masks.image}: found masks with labels={label_format.mode}, expected labels=binary for masks")
    self._items = list(items)
    self._label_format = label_format
    self.num_classes = num_classes

  def __len__(self) -> int:
    return len(self._items)

  def __getitem__(self, index: int) -> Sample:
    image = read_image(self._items[index].image)
    return {"image": image, "label": self._label(index, image.shape[:2]), "name": self.name(index)}

  def name(self, index: int) -> str:
    return self._items[index].name

  def label(self, index: int) -> UInt8[np.ndarray, "h w"]:
    return self._label(index, None)

  def classes(self, index: int) -> tuple[int, ...] | None:
    return None

  def encoded_image(self, index: int) -> tuple[bytes, str]:
    path = self._items[index].image
    return read_bytes(path), path

  def field(self, index: int, key: str) -> str:
    raise InputError(f"field {key!r}: found files, which have no fields, expected a dataset with records")

  def _label(self, index: int, size: tuple[int, int] | None) -> UInt8[np.ndarray, "h w"]:
    """The label; has to be of the image's size if that is known."""
    item = self._items[index]
    if isinstance(item.label, str):
      label = self._read(item.label, size)
      check_classes(label, self.num_classes, item.label)
      return label
    if size is None and not item.label:
      size = read_image(item.image).shape[:2]
    label = None if size is None else np.zeros(size, np.uint8)
    for mask in item.label:
      if mask.class_index >= self.num_classes:
        raise InputError(
          f"{mask.path}: found class {mask.class_index}, expected 0..{self.num_classes - 1} "
          f"(data.num_classes={self.num_classes})"
        )
      read = self._read(mask.path, size if label is None else label.shape)
      label = np.zeros_like(read) if label is None else label
      label[(read == IGNORE) & (label == 0)] = IGNORE
      label[read == 1] = mask.class_index
    return label

  def _read(self, path: str, size: tuple[int, int] | None) -> UInt8[np.ndarray, "h w"]:
    read = read_labels(path, self._label_format)
    check_size(read, size, path)
    return read


def check_size(label: UInt8[np.ndarray, "h w"], size: tuple[int, ...] | None, where: str) -> None:
  """Raises InputError, naming the file, for a label of another height and width than its image."""
  if size is None or label.shape == size:
    return
  (found_h, found_w), (h, w) = label.shape, size
  turned = " (is it only the image that is turned by an EXIF tag?)" if (found_w, found_h) == (h, w) else ""
  raise InputError(f"{where}: found {found_w} x {found_h} pixels, expected {w} x {h} as its image has{turned}")


class Subset:
  """Some samples of a source, in the order given; see `Source`."""

  def __init__(self, source: Source, indices: Sequence[int] | np.ndarray):
    self._source, self._indices = source, np.asarray(indices, np.int64)
    self.num_classes = source.num_classes

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> Sample:
    return self._source[int(self._indices[index])]

  def name(self, index: int) -> str:
    return self._source.name(int(self._indices[index]))

  def label(self, index: int) -> UInt8[np.ndarray, "h w"]:
    return self._source.label(int(self._indices[index]))

  def classes(self, index: int) -> tuple[int, ...] | None:
    return self._source.classes(int(self._indices[index]))

  def field(self, index: int, key: str) -> str:
    return self._source.field(int(self._indices[index]), key)

  def encoded_image(self, index: int) -> tuple[bytes, str]:
    return self._source.encoded_image(int(self._indices[index]))
