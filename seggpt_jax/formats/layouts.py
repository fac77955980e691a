"""Folder layouts: a folder in, the files of each sample as a list of `Item`s out. No file is opened."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from etils import epath

from seggpt_jax.errors import InputError, refuse
from seggpt_jax.files import plain_name
from seggpt_jax.formats.folders import DatasetFiles, list_images, order_splits
from seggpt_jax.formats.images import is_image, read_lines, read_text, remote_or_local
from seggpt_jax.formats.labels import LabelFormat

_LABEL_FOLDER = {"image": "label", "images": "labels"}
# Names that people give to the folder of images and to the folder of label maps, most common first.
IMAGE_FOLDERS = ("images", "image", "img_dir", "imgs", "img")
LABEL_FOLDERS = ("labels", "masks", "annotations", "ann_dir", "label", "mask", "gt", "ground_truth")
_LABEL_MAP = "labelmap.txt"  # of CVAT's segmentation masks
_BACKGROUND, _IGNORED = ("background",), ("ignore", "ignored", "void")


class Mask(NamedTuple):
  """A mask file for one class or one instance of a class."""

  class_index: int
  path: str


class Item(NamedTuple):
  """The files of one sample: an image with a label map or with masks, where later masks cover earlier ones."""

  name: str
  image: str
  label: str | tuple[Mask, ...]


def list_items(
  kind: str,
  path: str | os.PathLike,
  split: str = ".",
  class_names: Sequence[str] = (),
  problems: list[str] | None = None,
) -> list[Item]:
  """Lists the files of one split of a dataset.

  Args:
    kind: folder, class_folders, masks or voc, see `recognize.KINDS`.
    path: folder of the dataset, local or remote.
    split: part of the dataset.
    class_names: names of the classes of masks; () takes them from folders, or makes all masks class 1.
    problems: list for descriptions of files that do not fit, which are then left out; None raises at the first one.

  Raises:
    InputError: files are missing or do not fit together.
  """
  if kind == "class_folders":
    return _class_folders(_existing(os.path.join(path, split)), problems)
  if kind == "masks":
    return _mask_files(_existing(os.path.join(path, split)), class_names, problems)
  return _voc_files(DatasetFiles(path), split, problems) if kind == "voc" else folder_layout(path, split, problems)


def folder_layout(path: str | os.PathLike, split: str = ".", problems: list[str] | None = None) -> list[Item]:
  """Finds images and label maps of the same name, which may contain folders, such as `street/0001`.

  The files are `SPLIT/images/NAME.*` and `SPLIT/labels/NAME.*`, or `images/SPLIT/NAME.*` and `labels/SPLIT/NAME.*`. The
  folders may have any of the names `IMAGE_FOLDERS` and `LABEL_FOLDERS`.

  Args:
    path: folder of the dataset.
    split: part of the dataset; "." for files in images/ and labels/.
    problems: list for descriptions of files that do not fit.

  Raises:
    InputError: a folder is missing, or an image or label has no partner.
  """
  directory = remote_or_local(path)
  usual = directory / split / "images", directory / split / "labels"
  return _matched(*(find_folders(directory, split) or usual), problems)


def find_folders(directory: epath.Path, split: str) -> tuple[epath.Path, epath.Path] | None:
  """Finds the folders with the images and label maps of a split, see `folder_layout`; None if they are missing.

  Raises:
    InputError: two folders may be those of the label maps.
  """
  for arranged in (lambda folder: directory / split / folder, lambda folder: directory / folder / split):
    images = next((arranged(folder) for folder in IMAGE_FOLDERS if arranged(folder).is_dir()), None)
    labels = [arranged(folder) for folder in LABEL_FOLDERS if arranged(folder).is_dir()]
    if images is not None and len(labels) > 1 and labels[0].name != "labels" and labels[0].parent.name != "labels":
      raise InputError(f"{labels[0]}: found {labels[1]} too, expected one folder of label maps for the images")
    if images is not None and labels:
      return images, labels[0]
  return None


def _voc_files(files: DatasetFiles, split: str, problems: list[str] | None) -> list[Item]:
  """Finds PASCAL VOC's `JPEGImages/NAME.*` and `SegmentationClass/NAME.png`, at any depth such as below VOCdevkit.

  The names are listed in `ImageSets/Segmentation/SPLIT.txt`; the split "." takes all label maps. CVAT's "Segmentation
  mask" is laid out in the same way. Images may be in any folder.
  """
  root = voc_root(files)
  if root is None:
    raise InputError(f"{files.root}: found no folder SegmentationClass (found: {files.describe()}), expected one")
  labels = _by_name(files, [each for each in files.paths if each.startswith(f"{root}SegmentationClass/")])
  masks = (f"{root}SegmentationClass/", f"{root}SegmentationObject/")
  images = _by_name(files, [each for each in files.paths if is_image(each) and not each.startswith(masks)])
  listed = f"{root}ImageSets/Segmentation/{split}.txt"
  if split != "." and listed not in files:
    known = ", ".join(voc_splits(files))
    raise InputError(f"{files.full(listed)}: not found, expected the list of the split {split!r}; there are {known}")
  lines = [] if split == "." else read_lines(files.full(listed))
  names = list(labels) if split == "." else [plain_name(line.split()[0]) for line in lines]
  items = []
  for name in names:
    stem = name.rpartition("/")[2]
    if stem not in labels or stem not in images:
      place = f"{root}SegmentationClass/{name}.png" if stem not in labels else f"{root}JPEGImages/{name}.*"
      refuse(f"{files.full(place)}: not found, expected for {name} of {listed}", problems)
    else:
      items.append(Item(name, files.full(images[stem]), files.full(labels[stem])))
  return items


def voc_root(files: DatasetFiles) -> str | None:
  """Returns the relative path, with a slash or empty, of the folder with SegmentationClass; None if it is missing."""
  found = sorted(
    {path.partition("SegmentationClass/")[0] for path in files.paths if "SegmentationClass/" in f"/{path}"}
  )
  return next((prefix for prefix in found if not prefix or prefix.endswith("/")), None)


def voc_splits(files: DatasetFiles) -> list[str]:
  """Returns the names of the lists in ImageSets/Segmentation, or "." if there are no lists."""
  prefix = f"{voc_root(files) or ''}ImageSets/Segmentation/"
  found = [path[len(prefix) : -len(".txt")] for path in files.ending(".txt") if path.startswith(prefix)]
  # trainval joins the two others.
  return order_splits([name for name in found if name != "trainval" or len(found) == 1]) or ["."]


def _by_name(files: DatasetFiles, paths: Sequence[str]) -> dict[str, str]:
  """Returns relative paths by file name without ending; two files of one name are refused."""
  found: dict[str, str] = {}
  for path in paths:
    stem = os.path.splitext(path.rpartition("/")[2])[0]
    if stem in found:
      raise InputError(f"{files.full(path)}: found {found[stem]} too, expected one file for each name")
    found[stem] = path
  return found


def _matched(
  images_dir: epath.Path, labels_dir: epath.Path, problems: list[str] | None, prefix: str = ""
) -> list[Item]:
  """Pairs images and labels of the same name. `prefix` is put in front of every name."""
  images, labels = (list_images(folder, recursive=True, problems=problems) for folder in (images_dir, labels_dir))
  for name, path in images.items():
    if name not in labels:
      refuse(f"{path}: found no label for it, expected {labels_dir / name}.*", problems)
  for name, path in labels.items():
    if name not in images:
      refuse(f"{path}: found no image for it, expected {images_dir / name}.*", problems)
  return [Item(prefix + name, path, labels[name]) for name, path in images.items() if name in labels]


def _class_folders(directory: epath.Path, problems: list[str] | None, prefix: str = "") -> list[Item]:
  """Finds `PRODUCT/DEFECT/{image,label}` at any depth, as the original tool has them."""
  inside = _subfolders(directory)
  images = [path for path in inside if path.name in _LABEL_FOLDER]
  items: list[Item] = []
  for path in images:
    items += _matched(path, directory / _LABEL_FOLDER[path.name], problems, prefix)
  for path in inside if not images else []:
    items += _class_folders(path, problems, f"{prefix}{path.name}/")
  if not (items or problems or prefix):
    raise InputError(f"{directory}: found no folder `image` at any depth, expected PRODUCT/DEFECT/{{image,label}}")
  return items


def _mask_files(directory: epath.Path, class_names: Sequence[str], problems: list[str] | None) -> list[Item]:
  """Finds one mask file for each class or instance, arranged in one of three ways.

  - `images/NAME.*` and `labels/NAME/*.png`: one folder of masks for each image.
  - `NAME/images/*.png` and `NAME/masks/*.png`: one folder for each image, common for cell nuclei.
  - `images/NAME.*` and `labels/CLASS/NAME.*`: one folder for each class; an image need not be in every folder.

  In the first two, the beginning of a mask's file name gives its class (`crack_2.png`); without class names every mask
  is class 1. Where masks overlap, the higher class wins, then the later name.
  """
  images_dir, labels_dir = directory / "images", directory / "labels"
  if not images_dir.is_dir():
    return list(_image_folders(directory, class_names, problems))
  images = list_images(images_dir, problems=problems)
  folders = [path.name for path in _subfolders(_existing(labels_dir))]
  if not folders:
    raise InputError(f"{labels_dir}: found no folders, expected one folder of masks for each image or for each class")
  known = set(folders) & set(images)
  if len(known) == len(folders) or (known and problems is not None):
    for folder in folders:
      if folder not in images:
        refuse(f"{labels_dir / folder}: found no image for it, expected {images_dir / folder}.*", problems)
    for name, path in images.items():
      if name not in folders:
        refuse(f"{path}: found no masks for it, expected a folder {labels_dir / name}, empty if it has none", problems)
    names = [name for name in images if name in folders]
    return [Item(name, images[name], _masks(labels_dir / name, class_names, problems)) for name in names]
  class_names = list(class_names) or folders
  for folder in folders:
    if folder not in class_names:
      refuse(
        f"{labels_dir / folder}: found neither an image nor a class of that name, expected one of the two", problems
      )
  masks = {name: list_images(labels_dir / name, problems=problems) for name in class_names if name in folders}
  for files in masks.values():
    for name, path in files.items():
      if name not in images:
        refuse(f"{path}: found no image for it, expected {images_dir / name}.*", problems)
  of_class = [(1 + i, masks[c]) for i, c in enumerate(class_names) if c in masks]
  return [
    Item(name, path, tuple(Mask(i, files[name]) for i, files in of_class if name in files))
    for name, path in images.items()
  ]


def _image_folders(directory: epath.Path, class_names: Sequence[str], problems: list[str] | None) -> Iterator[Item]:
  """Reads `NAME/images` and `NAME/masks`: one folder for each image."""
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
  """Lists the masks of one image, the topmost last."""
  if not any(not path.name.startswith(".") for path in folder.iterdir()):
    return ()
  masks = []
  for name, path in list_images(folder, problems=problems).items():
    # The longest matching name: `crack_wide_1` is class `crack_wide` even if there is a class `crack`.
    fitting = [c for c in class_names if name == c or (name.startswith(c) and not name[len(c)].isalpha())]
    if class_names and not fitting:
      refuse(f"{path}: found no class for it, expected a name that begins with {', '.join(class_names)}", problems)
      continue
    masks.append(Mask(1 + class_names.index(max(fitting, key=len)) if fitting else 1, path))
  return tuple(sorted(masks))


def _subfolders(directory: epath.Path) -> list[epath.Path]:
  return sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))


def _existing(directory: str | os.PathLike) -> epath.Path:
  directory = remote_or_local(directory)
  if not directory.is_dir():
    raise InputError(f"{directory}: folder not found")
  return directory


class LabelMap(NamedTuple):
  """The content of a labelmap.txt."""

  where: str  # path of the file
  names: tuple[str, ...]  # names of classes 1, 2,
  label_format: LabelFormat  # table of the colors of all classes, the background first


def read_label_map(files: DatasetFiles) -> LabelMap | None:
  """Reads the label map of a dataset.

  Args:
    files: the files of the dataset.

  Returns:
    The label map; None if the dataset has none.

  Raises:
    InputError: a line has another form, or no class is the background.
  """
  found = [path for path in files.ending(_LABEL_MAP) if path.count("/") <= 2]
  if not found:
    return None
  where = files.full(found[0])
  colors: dict[str, tuple[int, ...]] = {}
  for number, line in enumerate(read_text(where).splitlines(), 1):
    if line.strip() and not line.startswith("#"):
      name, color = _map_entry(line, f"{where}: line {number}")
      if name in colors or color in colors.values():
        raise InputError(
          f"{where}: line {number}: found {line.strip()!r} as for another class, expected a color for each"
        )
      colors[name] = color
  background = next((name for name in colors if name.lower() in _BACKGROUND), None)
  background = background or next((name for name, color in colors.items() if color == (0, 0, 0)), None)
  if background is None or len(colors) < 2:
    raise InputError(
      f"{where}: found classes {', '.join(colors) or 'none'}, expected background and at least one other"
    )
  ignored = tuple(color for name, color in colors.items() if name.lower() in _IGNORED and name != background)
  names = tuple(name for name, color in colors.items() if name != background and color not in ignored)
  return LabelMap(
    where, names, LabelFormat("table", table=tuple(colors[name] for name in (background, *names)), ignore=ignored)
  )


def _map_entry(line: str, where: str) -> tuple[str, tuple[int, ...]]:
  name, _, rest = line.strip().partition(":")
  parts = rest.partition(":")[0].split(",")
  if not name or len(parts) != 3 or not all(part.strip().isdecimal() and int(part) < 256 for part in parts):
    raise InputError(f"{where}: found {line.strip()!r}, expected NAME:RED,GREEN,BLUE::")
  return name, tuple(int(part) for part in parts)
