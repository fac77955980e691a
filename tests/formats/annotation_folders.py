"""Datasets of a few bytes in the forms of labelling tools, all of the same two objects in the same images."""

import base64
import io
import json
import struct
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as mask_module

from seggpt_jax.data.datasets import OutlineSource
from seggpt_jax.formats.coco import read_coco

WIDTH, HEIGHT = 40, 30
CRACK = [(4.0, 5.0), (20.0, 5.0), (20.0, 14.0), (4.0, 14.0)]
HOLE = [(22.0, 16.0), (36.0, 18.0), (30.0, 28.0)]
SIZE = (HEIGHT, WIDTH)


def coco_source(path, split: str, num_classes: int, class_names=(), problems=None) -> OutlineSource:
  return OutlineSource(read_coco(path, split, problems), num_classes, class_names)


def drawn(points) -> np.ndarray:
  """Returns the mask of a polygon as pycocotools draws it."""
  flat = [coordinate for point in points for coordinate in point]
  return mask_module.decode(mask_module.merge(mask_module.frPyObjects([flat], HEIGHT, WIDTH))).astype(bool)


def expected() -> np.ndarray:
  """Returns the label map: 1 crack, 2 hole."""
  label = np.zeros(SIZE, np.uint8)
  label[drawn(CRACK)], label[drawn(HOLE)] = 1, 2
  return label


def save_image(path: Path, seed: int = 0) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
  Image.fromarray(pixels).resize((WIDTH, HEIGHT)).save(path)


def labelme(directory: Path, name: str = "a", shapes=None, seed: int = 0, **more) -> Path:
  """Writes NAME.png and NAME.json."""
  save_image(directory / f"{name}.png", seed)
  if shapes is None:
    shapes = [{"label": "crack", "points": CRACK, "shape_type": "polygon"}, {"label": "hole", "points": HOLE}]
  content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": f"{name}.png", "imageData": None}
  content |= {"imageHeight": HEIGHT, "imageWidth": WIDTH, **more}
  (directory / f"{name}.json").write_text(json.dumps(content))
  return directory


def yolo(
  path: Path, split: str = "train", arranged: str = "images/{}", name: str = "a", text: str | None = None
) -> Path:
  """Writes an image, its polygons and data.yaml."""
  place = arranged.format(split)
  save_image(path / place / f"{name}.png")
  if text is None:
    lines = [[c, *(f"{x / WIDTH:.6f} {y / HEIGHT:.6f}" for x, y in points)] for c, points in ((0, CRACK), (1, HOLE))]
    text = "".join(" ".join(map(str, line)) + "\n" for line in lines)
  file = path / place.replace("images", "labels") / f"{name}.txt"
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(text)
  (path / "data.yaml").write_text("names: [crack, hole]\ntrain: images/train\nval: images/val\n")
  return path


def cvat(path: Path, shapes: str | None = None, image: str = 'name="a.png"', meta: bool = True) -> Path:
  """Writes annotations.xml and images/a.png."""
  save_image(path / "images" / "a.png")
  if shapes is None:
    points = [";".join(f"{x},{y}" for x, y in polygon) for polygon in (CRACK, HOLE)]
    shapes = f'<polygon label="hole" points="{points[1]}" z_order="0"/><polygon label="crack" points="{points[0]}"/>'
  labels = "".join(f"<label><name>{name}</name></label>" for name in ("crack", "hole"))
  head = f"<meta><task><labels>{labels}</labels></task></meta>" if meta else ""
  text = f'<image id="0" {image} width="{WIDTH}" height="{HEIGHT}">{shapes}</image>'
  (path / "annotations.xml").write_text(f"<annotations><version>1.1</version>{head}{text}</annotations>")
  return path


def voc(path: Path, split: str = "train", label: np.ndarray | None = None, name: str = "a") -> Path:
  """Writes JPEGImages, SegmentationClass and the list of a split."""
  save_image(path / "JPEGImages" / f"{name}.jpg")
  for folder in ("SegmentationClass", "ImageSets/Segmentation"):
    (path / folder).mkdir(parents=True, exist_ok=True)
  Image.fromarray(expected() if label is None else label).save(path / "SegmentationClass" / f"{name}.png")
  with open(path / "ImageSets/Segmentation" / f"{split}.txt", "a") as file:
    file.write(f"{name}\n")
  return path


def label_studio(path: Path, results=None, image: str = "/data/upload/3/0a1b2c3d-a.png", **task) -> Path:
  """Writes export.json and images/a.png."""
  save_image(path / "images" / "a.png")
  if results is None:
    results = []
    for name, points in (("crack", CRACK), ("hole", HOLE)):
      relative = [(100 * x / WIDTH, 100 * y / HEIGHT) for x, y in points]
      results.append(label_studio_result("polygonlabels", name, points=relative))
  content = [{"id": 7, "data": {"image": image}, "annotations": [{"id": 1, "result": results}], **task}]
  (path / "export.json").write_text(json.dumps(content))
  return path


def label_studio_result(kind: str, name: str, **value) -> dict:
  """Returns a region."""
  size = {"original_width": WIDTH, "original_height": HEIGHT}
  return {"id": "x", "type": kind, "value": {**value, kind: [name]}, **size}


def encode_brush(mask: np.ndarray) -> list[int]:
  """Encodes a mask as Label Studio's brush does: bits of run lengths over the RGBA picture of the mask."""
  values = np.repeat(mask.astype(np.uint8)[..., None] * 255, 4, axis=2).ravel()
  bits = [f"{len(values):032b}", f"{8 - 1:05b}", *(f"{width - 1:04b}" for width in (3, 4, 8, 16))]
  ends = [*np.flatnonzero(np.diff(values)).tolist(), len(values) - 1]
  start = 0
  for end in ends:
    count = end - start + 1
    if count == 1:
      bits.append(f"0{0:02b}{0:03b}{values[start]:08b}")  # one value, not repeated
    else:
      bits.append(f"1{3:02b}{count - 1:016b}{values[start]:08b}")
    start = end + 1
  text = "".join(bits)
  text += "0" * (-len(text) % 8)
  return list(struct.pack(f"{len(text) // 8}B", *(int(text[i : i + 8], 2) for i in range(0, len(text), 8))))


def labelme_mask(mask):
  """Returns a mask, uint8 or bool `[H, W]`, in the form of a shape's `mask`."""
  buffer = io.BytesIO()
  Image.fromarray(mask.astype(np.uint8)).save(buffer, "PNG")
  return base64.b64encode(buffer.getvalue()).decode()
