"""Datasets, label files, lists, videos and records of runs, as small files that commands read."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.fuzz_targets import Target
from seggpt_jax.audit.advice import advise, train_line
from seggpt_jax.audit.contact_sheet import draw_samples
from seggpt_jax.audit.findings import audit_dataset
from seggpt_jax.audit.report import as_facts, as_text
from seggpt_jax.data import class_index, ledger
from seggpt_jax.data.datasets import Dataset, open_dataset
from seggpt_jax.data.groups import group_names
from seggpt_jax.data.images import decode_image, read_bytes, upright_size
from seggpt_jax.data.label_map import read_label_map
from seggpt_jax.data.labels import IGNORE, LabelFormat, read_labels
from seggpt_jax.data.layouts import DatasetFiles, folder_layout
from seggpt_jax.data.recognize import recognize
from seggpt_jax.data.records import RecordSource
from seggpt_jax.data.sources import FileSource, Source
from seggpt_jax.errors import InputError
from seggpt_jax.evaluation import few_shot_data
from seggpt_jax.inference import trained, video_files
from seggpt_jax.inference.operating_point import OperatingPoint, read_operating_point, write_operating_point
from seggpt_jax.inference.queries import label_format, list_queries
from seggpt_jax.training import curves, monitor
from tests.data import annotation_folders as folders

_CLASSES = 254
_RANDOM = functools.partial(np.random.default_rng, 0)


def _target(folder: Path, names: Sequence[str], read: Callable[[], None], structured: bool = True) -> Target:
  return Target({name: (folder / name).read_bytes() for name in names}, read, structured)


def _check(source: Source) -> None:
  """Reads every sample, and checks that image, label and classes fit together. Errors of samples are gathered.

  Raises:
    InputError: a sample cannot be read; the others were read too.
  """
  problems = []
  known = getattr(source, "categories", ()) or range(1, source.num_classes)
  for index in range(len(source)):
    try:
      source.name(index).encode()
      source.label_stamp(index)
      sample, classes = source[index], source.classes(index)
      label = source.label(index)
      assert sample["image"].dtype == sample["label"].dtype == np.uint8
      assert sample["image"].shape == (*sample["label"].shape, 3)
      np.testing.assert_array_equal(label, sample["label"])
      found = set(np.unique(label).tolist()) - {0, IGNORE}
      assert not found or max(found) <= len(known), f"classes {found} of {len(known)}"
      assert classes is None or found <= set(classes), f"found {found}, stated {classes}"
    except InputError as error:
      problems.append(error)
  if problems:
    raise problems[0]


def _inspect(path: Path, kind: str | None = None) -> None:
  """Does all that `seggpt inspect` does but write files."""
  form = recognize(str(path), kind)
  findings = audit_dataset(Dataset(form.kind, str(path), 2), list(form.splits[:2]) or ["train"], frozenset())
  advice = advise(findings)
  facts = as_facts(findings) | {"advice": [each.text for each in advice]}
  facts |= {"ready": not any(each.fatal for each in advice), "train": train_line(findings, advice)}
  json.dumps(facts, indent=2, ensure_ascii=False).encode(errors="backslashreplace")
  as_text(facts).encode(errors="backslashreplace")
  draw_samples(findings)


def _dataset(folder: Path, names: Sequence[str], kind: str, split: str = ".") -> Target:
  """Returns a dataset that is opened as the kind it is, and inspected as one of unknown kind."""

  def read() -> None:
    problems: list[str] = []
    _inspect(folder)
    _check(open_dataset(Dataset(kind, str(folder), _CLASSES), split, problems=problems))
    _check(open_dataset(Dataset(kind, str(folder), _CLASSES), split))

  return _target(folder, names, read)


# -------------------------------------------------------------------------------------------------------- annotations


def _coco_file(folder: Path, segmentations: Sequence, **more) -> Target:
  folders.save_image(folder / "images" / "a.png")
  folders.save_image(folder / "images" / "b.png", 1)
  image = {"height": folders.HEIGHT, "width": folders.WIDTH, "license": 1}
  content = {
    "info": {"year": 2024},
    "images": [{"id": 1, "file_name": "a.png", **image}, {"id": 2, "file_name": "images/b.png", **image}],
    "annotations": [
      {"id": place, "image_id": 1 + place % 2, "category_id": 1 + place % 2, "segmentation": each, "iscrowd": 0, **more}
      for place, each in enumerate(segmentations)
    ],
    "categories": [{"id": 1, "name": "crack", "supercategory": "x"}, {"id": 2, "name": "hole", "supercategory": "x"}],
  }
  (folder / "annotations.json").write_text(json.dumps(content))
  return _dataset(folder, ["annotations.json"], "coco")


def _coco_polygons(folder: Path) -> Target:
  flat = [[value for point in polygon for value in point] for polygon in (folders.CRACK, folders.HOLE)]
  return _coco_file(folder, [[each] for each in flat], area=10.0, bbox=[1, 2, 3, 4])


def _run_lengths(mask: np.ndarray) -> list[int]:
  values = mask.ravel(order="F").astype(np.int8)
  ends = np.flatnonzero(np.diff(values)) + 1
  runs = np.diff([0, *ends.tolist(), values.size]).tolist()
  return [0, *runs] if values[0] else runs


def _coco_run_lengths(folder: Path) -> Target:
  masks = [folders.drawn(polygon) for polygon in (folders.CRACK, folders.HOLE)]
  return _coco_file(folder, [{"counts": _run_lengths(mask), "size": list(folders.SIZE)} for mask in masks])


def _coco_compressed(folder: Path) -> Target:
  masks = [folders.drawn(polygon) for polygon in (folders.CRACK, folders.HOLE)]
  encoded = [folders.mask_module.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
  return _coco_file(folder, [{"counts": each["counts"].decode(), "size": list(folders.SIZE)} for each in encoded])


def _labelme(folder: Path) -> Target:
  from seggpt_jax.data.labelme import encode_mask

  shapes = [
    {"label": "crack", "points": folders.CRACK, "shape_type": "polygon", "group_id": None, "flags": {}},
    {"label": "hole", "points": [[2, 3], [9, 8]], "shape_type": "rectangle"},
    {"label": "hole", "points": [[20, 15], [23, 15]], "shape_type": "circle"},
    {"label": "crack", "points": [[5, 5], [9, 8]], "shape_type": "mask", "mask": encode_mask(np.eye(4, 5))},
    {"label": "_background_", "points": folders.HOLE},
  ]
  folders.labelme(folder, "a", shapes)
  folders.labelme(folder, "b", seed=1)
  return _dataset(folder, ["a.json", "b.json"], "labelme")


def _yolo(folder: Path) -> Target:
  folders.yolo(folder)
  folders.yolo(folder, "val", name="b", text="1 0.1 0.1 0.5 0.1 0.5 0.5\n0 0.2 0.2 0.9 0.2 0.9 0.9 0.2 0.9\n")
  return _dataset(folder, ["data.yaml", "labels/train/a.txt"], "yolo", "train")


def _yolo_lists(folder: Path) -> Target:
  folders.yolo(folder)
  (folder / "data.yaml").write_text("names: {0: crack, 1: hole}\ntrain: lists/train.txt\nval: images/train\nnc: 2\n")
  (folder / "lists").mkdir()
  (folder / "lists/train.txt").write_text("./images/train/a.png\n")
  (folder / "classes.txt").write_text("crack\nhole\n")
  return _dataset(folder, ["data.yaml", "lists/train.txt", "classes.txt", "labels/train/a.txt"], "yolo", "train")


def _cvat(folder: Path) -> Target:
  polygon = ";".join(f"{x},{y}" for x, y in folders.CRACK)
  shapes = (
    f'<polygon label="crack" points="{polygon}" z_order="1" occluded="0"><attribute name="x">1</attribute></polygon>'
  )
  shapes += '<box label="hole" xtl="2" ytl="3" xbr="9" ybr="8" rotation="30" z_order="0"/>'
  shapes += '<ellipse label="hole" cx="20" cy="15" rx="3" ry="5" rotation="10"/>'
  shapes += '<mask label="crack" rle="2,3,4,1" left="5" top="5" width="5" height="2"/>'
  folders.cvat(folder, shapes, 'name="a.png" subset="train"')
  return _dataset(folder, ["annotations.xml"], "cvat", "train")


def _label_studio(folder: Path) -> Target:
  result = folders.label_studio_result
  results = [
    result("polygonlabels", "crack", points=[(100 * x / 40, 100 * y / 30) for x, y in folders.CRACK]),
    result("rectanglelabels", "hole", x=1.0, y=2.0, width=20.0, height=30.0, rotation=10),
    result("ellipselabels", "hole", x=50.0, y=50.0, radiusX=5.0, radiusY=8.0, rotation=0),
    result("brushlabels", "crack", format="rle", rle=folders.encode_brush(folders.drawn(folders.HOLE))),
  ]
  folders.label_studio(folder, results)
  return _dataset(folder, ["export.json"], "label_studio")


def _label_studio_short(folder: Path) -> Target:
  folders.label_studio(folder)
  size = {"original_width": folders.WIDTH, "original_height": folders.HEIGHT}
  label = [{"points": [[1, 2], [50, 2], [50, 60]], "polygonlabels": ["crack"], **size}]
  content = [
    {"id": 7, "image": "/data/local-files/?d=images/a.png", "annotator": 1, "annotation_id": 3, "label": label}
  ]
  (folder / "export.json").write_text(json.dumps(content))
  return _dataset(folder, ["export.json"], "label_studio")


# -------------------------------------------------------------------------------------------------------- label images


def _saved(image: Image.Image, file_format: str, **options) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, file_format, **options)
  return buffer.getvalue()


_FORMATS = (
  LabelFormat(),
  LabelFormat(ignore=(255,)),
  LabelFormat("binary"),
  LabelFormat("binary", 127),
  LabelFormat("table", table=(0, 1, 2, 1000)),
  LabelFormat("table", table=((0, 0, 0), (255, 0, 0), (0, 255, 0)), ignore=((9, 9, 9),)),
)


def _labels(folder: Path, make: Callable[[np.ndarray], bytes], ending: str = ".png") -> Target:
  """Returns a folder of one image with its label, which is read in every format."""
  folders.save_image(folder / "images" / "a.png")
  label = folder / "labels" / f"a{ending}"
  label.parent.mkdir()
  label.write_bytes(make(folders.expected()))

  def read() -> None:
    """Raises the error of a format only if none reads the file."""
    _inspect(folder, "folder")
    errors = []
    for each in _FORMATS:
      try:
        values = read_labels(label, each)
        assert values.dtype == np.uint8 and values.ndim == 2
        assert values.shape == upright_size(read_bytes(label), "label")
        allowed = {"index": range(256), "binary": (0, 1, IGNORE), "table": (*range(len(each.table)), IGNORE)}[each.mode]
        assert set(np.unique(values).tolist()) <= set(allowed)
        _check(FileSource(folder_layout(folder), 4, each))
      except InputError as error:
        errors.append(error)
    if len(errors) == len(_FORMATS):
      raise errors[0]

  return _target(folder, [f"labels/a{ending}"], read)


def _palette(label: np.ndarray) -> bytes:
  image = Image.fromarray(label, "P")
  image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
  return _saved(image, "PNG")


def _colors(label: np.ndarray, file_format: str = "PNG", alpha: bool = False) -> bytes:
  pixels = np.array([(0, 0, 0, 255), (255, 0, 0, 255), (0, 255, 0, 128)], np.uint8)[label]
  return _saved(Image.fromarray(pixels if alpha else np.ascontiguousarray(pixels[..., :3])), file_format)


def _gray(label: np.ndarray, file_format: str = "PNG", scale: int = 1, dtype: type = np.uint8, **options) -> bytes:
  return _saved(Image.fromarray(label.astype(dtype) * dtype(scale)), file_format, **options)


_LABELS: dict[str, tuple[Callable[[np.ndarray], bytes], str]] = {
  "png_index": (_gray, ".png"),
  "png_gray": (functools.partial(_gray, scale=127), ".png"),
  "png_16_bit": (functools.partial(_gray, scale=500, dtype=np.uint16), ".png"),
  "png_palette": (_palette, ".png"),
  "png_colors": (_colors, ".png"),
  "png_alpha": (functools.partial(_colors, alpha=True), ".png"),
  "png_bits": (lambda label: _saved(Image.fromarray(label > 0), "PNG"), ".png"),
  "tiff": (functools.partial(_gray, file_format="TIFF"), ".tif"),
  "tiff_16_bit": (functools.partial(_gray, file_format="TIFF", scale=500, dtype=np.uint16), ".tif"),
  "tiff_packed": (functools.partial(_gray, file_format="TIFF", compression="tiff_lzw"), ".tif"),
  "webp": (lambda label: _saved(Image.fromarray(np.stack([label] * 3, 2)), "WEBP", lossless=True), ".webp"),
  "gif": (functools.partial(_gray, file_format="GIF"), ".gif"),
  "bmp": (functools.partial(_gray, file_format="BMP"), ".bmp"),
}


def _masks(folder: Path) -> Target:
  folders.save_image(folder / "images" / "a.png")
  (folder / "labels" / "a").mkdir(parents=True)
  for name, points in (("crack_1", folders.CRACK), ("hole_1", folders.HOLE)):
    Image.fromarray(folders.drawn(points).astype(np.uint8) * 255).save(folder / "labels" / "a" / f"{name}.png")
  dataset = Dataset("masks", str(folder), 3, LabelFormat("binary"), ("crack", "hole"))

  def read() -> None:
    _inspect(folder)
    _check(open_dataset(dataset, "."))

  return _target(folder, ["labels/a/crack_1.png"], read)


def _voc(folder: Path) -> Target:
  folders.voc(folder)
  Image.open(io.BytesIO(_palette(folders.expected()))).save(folder / "SegmentationClass" / "a.png")
  (folder / "labelmap.txt").write_text("# label:color\nbackground:0,0,0::\ncrack:255,0,0::\nhole:0,255,0::\n")
  names = ["labelmap.txt", "ImageSets/Segmentation/train.txt"]

  def read() -> None:
    found = read_label_map(DatasetFiles(folder))
    assert found is not None and len(found.names) + 1 == len(found.label_format.table)
    _inspect(folder)
    _check(open_dataset(Dataset("voc", str(folder), _CLASSES, found.label_format), "train"))

  return _target(folder, names, read)


def _image(folder: Path, file_format: str) -> Target:
  """Returns a photo of one format, upright and turned by a tag."""
  pixels = _RANDOM().integers(0, 256, (6, 8, 3), np.uint8)
  image, exif = Image.fromarray(pixels).resize((40, 30)), Image.Exif()
  exif[0x0112] = 6
  names = {"a.img": {}, "b.img": {"exif": exif} if file_format in ("JPEG", "PNG", "TIFF", "WEBP") else {}}
  for name, options in names.items():
    (folder / name).write_bytes(_saved(image, file_format, **options))

  def read() -> None:
    for name in names:
      data = (folder / name).read_bytes()
      decoded = decode_image(data, name)
      assert decoded.dtype == np.uint8 and decoded.ndim == 3 and decoded.shape[2] == 3
      assert decoded.shape[:2] == upright_size(data, name), "the size that the header states is another one"

  return _target(folder, list(names), read)


# ------------------------------------------------------------------------------------------------- lists and mappings


def _mapping(folder: Path) -> Target:
  for place, name in enumerate(("q/images/a.png", "q/images/x/b.png", "p/images/1.png", "p/images/2.png")):
    folders.save_image(folder / name, place)
  for name in ("1", "2"):
    folders.save_image(folder / "p/labels" / f"{name}.png")
  (folder / "map.json").write_text(json.dumps({"a.png": ["1.png", "2.png"], "x/b": ["p/images/2.png"]}))

  def read() -> None:
    arguments = (folder / "q", folder / "p/images", folder / "p/labels", folder / "map.json")
    for only in (False, True):
      for query in list_queries(*arguments, top_k=2, mapped_only=only):
        assert 1 <= len(query.prompts) <= 2 and all(prompt.labels.is_file() for prompt in query.prompts)

  return _target(folder, ["map.json"], read)


def _groups(folder: Path) -> Target:
  for place, name in enumerate("ab"):
    folders.save_image(folder / "images" / f"{name}.png", place)
    folders.save_image(folder / "labels" / f"{name}.png", place)
  (folder / "groups.csv").write_text('name,group,date\na,"p,1",2020\nb,p2,2021\n')

  def read() -> None:
    source = FileSource(folder_layout(folder), 3, LabelFormat())
    assert all(group_names(source, f"csv:{folder / 'groups.csv'}"))

  return _target(folder, ["groups.csv"], read)


def _class_lists(folder: Path) -> Target:
  folders.voc(folder / "VOC2012", "val")
  folders.voc(folder / "VOC2012", "val", name="b")
  (folder / "lists").mkdir()
  (folder / "lists/fold0.txt").write_text("a__01\nb__02\n")
  folders.save_image(folder / "fss/dog/1.jpg")
  folders.save_image(folder / "fss/dog/1.png")
  (folder / "classes.txt").write_text("dog\n")

  def read() -> None:
    few_shot_data.pascal5i(folder, folder / "lists")
    few_shot_data.fss1000(folder / "fss", folder / "classes.txt")

  return _target(folder, ["lists/fold0.txt", "classes.txt", "VOC2012/ImageSets/Segmentation/val.txt"], read)


# ------------------------------------------------------------------------------------------------------ files of runs


def _operating_point(folder: Path) -> Target:
  write_operating_point(folder, OperatingPoint((0.5, 1.0), 12), {"images": 3})

  def read() -> None:
    point = read_operating_point(folder)
    assert point is not None and all(0 < value <= 1e6 for value in point.sensitivity) and 0 <= point.least_area < 2**31

  return _target(folder, ["operating_point.json"], read)


def _run_config(folder: Path) -> Target:
  """Returns a run as inference reads it: its config and operating point. The weights are never read."""
  run = folder / "run"
  for item in ("params", "config"):
    (run / "best" / "5" / item).mkdir(parents=True)
  data = {"labels": "table", "threshold": -1, "table": [0, 5, 7], "ignore": [255], "zoom": 0.5, "prompt_grid": 2}
  data |= {"coarse_zoom": 0.25, "coarse_classes": [1, 2], "path": "x", "kind": "folder"}
  (run / "config.json").write_text(json.dumps({"data": data, "num_steps": 3}))
  write_operating_point(run, OperatingPoint((0.5, 1.0), 12), {})

  def read() -> None:
    options, found = trained.trained_options(run), label_format(run)
    assert options.zoom >= 0 and np.isfinite(options.zoom) and len(found.table) < 256

  return _target(folder, ["run/config.json", "run/operating_point.json"], read)


def _metrics(folder: Path) -> Target:
  lines = [{"step": step, "split": "train", "loss": 1 / (1 + step), "lr": 1e-3, "epoch": 0} for step in range(4)]
  lines += [{"step": 3, "split": "val", "loss": 0.5, "miou": 0.4, "iou_1": 0.4, "iou_2": None}]
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

  def read() -> None:
    curves.draw_curves(folder / "metrics.jsonl", folder / "curves.png")
    kept = (folder / "metrics.jsonl").read_bytes()
    monitor._drop_lines_after(folder / "metrics.jsonl", 2)
    assert all(
      step <= 2
      for series in curves.read_metrics(folder / "metrics.jsonl").values()
      for points in series.values()
      for step, _ in points
    )
    (folder / "metrics.jsonl").write_bytes(kept)

  return _target(folder, ["metrics.jsonl"], read)


def _ledger(folder: Path) -> Target:
  (folder / "progress").mkdir()
  (folder / "progress/1.jsonl").write_text('{"name": "a", "counts": [1, 2]}\n{"name": "b", "bad": "x"}\n')
  settings = {"labels": "index", "top-k": 1, "size": [1, 2]}
  (folder / "run.json").write_text(json.dumps(settings))

  def read() -> None:
    for name, entry in ledger.read_entries(folder / "progress").items():
      assert entry["name"] == name
    ledger.check_settings(folder / "run.json", ledger.read_note(folder / "run.json") or {}, settings, "x")

  return _target(folder, ["progress/1.jsonl", "run.json"], read)


def _class_table(folder: Path) -> Target:
  """Returns the file that keeps the classes of all samples."""
  folders.save_image(folder / "images" / "a.png")
  (folder / "labels").mkdir()
  (folder / "labels/a.png").write_bytes(_gray(folders.expected()))
  source = FileSource(folder_layout(folder), 3, LabelFormat())
  expected = class_index.scan_classes(source, folder / "classes.npz")

  def read() -> None:
    found = class_index.scan_classes(source, folder / "classes.npz")
    np.testing.assert_array_equal(found, expected)

  return _target(folder, ["classes.npz"], read)


def _records(folder: Path, pattern: str) -> Target:
  from seggpt_jax.prepare.encoding import encoded_samples
  from seggpt_jax.prepare.record_writer import write_records

  for place, name in enumerate("ab"):
    folders.save_image(folder / "in/images" / f"{name}.png", place)
    (folder / "in/labels").mkdir(exist_ok=True)
    (folder / "in/labels" / f"{name}.png").write_bytes(_gray(folders.expected()))
  source = FileSource(folder_layout(folder / "in"), 3, LabelFormat())
  version = write_records(
    folder, "mine", {"train": lambda start: encoded_samples(source, range(start, 2), ["a", "b"], 2, False)}, 3
  )

  def read() -> None:
    records = RecordSource(version, "train", 3, LabelFormat())
    for index in range(len(records)):
      records.field(index, "group").encode()
    _check(records)

  return _target(folder, sorted(str(path.relative_to(folder)) for path in version.glob(pattern)), read)


# -------------------------------------------------------------------------------------------------------------- video


def _video(folder: Path, container: str, codec: str, frames: int = 4) -> Target:
  import av

  path = folder / f"a.{container}"
  pixels = _RANDOM().integers(0, 256, (frames, 6, 8, 3), np.uint8)
  with av.open(path, "w") as file:
    stream = file.add_stream(codec, rate=25)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p" if codec == "mjpeg" else "yuv420p"
    for each in pixels:
      picture = np.asarray(Image.fromarray(each).resize((64, 48)))
      file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    file.mux(stream.encode())

  def read() -> None:
    info = video_files.probe(path)
    assert info.rate > 0 and (info.num_frames is None or info.num_frames >= 0)
    sizes = set()
    for count, frame in enumerate(video_files.read_frames(path), 1):
      assert frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3
      sizes.add(frame.shape)
      assert count < 10_000
    assert sizes, "no frames"

  return _target(folder, [path.name], read, structured=False)


TARGETS: dict[str, Callable[[Path], Target]] = {
  "coco": _coco_polygons,
  "coco_run_lengths": _coco_run_lengths,
  "coco_compressed": _coco_compressed,
  "labelme": _labelme,
  "yolo": _yolo,
  "yolo_lists": _yolo_lists,
  "cvat": _cvat,
  "label_studio": _label_studio,
  "label_studio_short": _label_studio_short,
  "voc": _voc,
  "masks": _masks,
  **{f"label_{name}": functools.partial(_labels, make=make, ending=ending) for name, (make, ending) in _LABELS.items()},
  **{
    f"image_{each.lower()}": functools.partial(_image, file_format=each)
    for each in ("PNG", "JPEG", "TIFF", "WEBP", "AVIF", "GIF", "BMP", "JPEG2000", "PPM", "TGA")
  },
  "mapping": _mapping,
  "groups": _groups,
  "class_lists": _class_lists,
  "operating_point": _operating_point,
  "run_config": _run_config,
  "metrics": _metrics,
  "ledger": _ledger,
  "class_table": _class_table,
  "records_header": functools.partial(_records, pattern="*.json"),
  "records_index": functools.partial(_records, pattern="*.npz"),
  "records": functools.partial(_records, pattern="*array_record*"),
  "video_mp4": functools.partial(_video, container="mp4", codec="libx264"),
  "video_avi": functools.partial(_video, container="avi", codec="mjpeg"),
  "video_mkv": functools.partial(_video, container="mkv", codec="mpeg4"),
}
