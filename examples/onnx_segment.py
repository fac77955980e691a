"""Segments an image with an exported network. Needs only onnxruntime, NumPy and Pillow.

  python onnx_segment.py MODEL.onnx IMAGE OUTPUT.png PROMPT PROMPT_LABEL [PROMPT PROMPT_LABEL ...]

Label maps are images of class indices: 0 is the background, 255 is ignored. Masks of 0 and 255 show class 1.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def segment(model: str, image: str, output: str, *prompts: str) -> None:
  session = onnxruntime.InferenceSession(model)
  metadata = session.get_modelmeta().custom_metadata_map
  size, palette = json.loads(metadata["tile_size"]), np.array(json.loads(metadata["palette"]), np.uint8)
  pictures = [ImageOps.exif_transpose(Image.open(path)).convert("RGB") for path in (image, *prompts[0::2])]
  query, *images = (np.asarray(picture.resize(size, Image.Resampling.BICUBIC)) for picture in pictures)
  labels = np.stack([np.asarray(Image.open(path).resize(size, Image.Resampling.NEAREST)) for path in prompts[1::2]])
  labels = np.where(labels == 255, int(labels.max() == 255 and not ((labels > 0) & (labels < 255)).any()), labels)
  if labels.max() >= len(palette):
    sys.exit(f"{prompts[1]}: found class {labels.max()}, expected at most {len(palette) - 1}: {model} answers no more")
  inputs = {"query": query[None], "prompt_images": np.stack(images)[None], "prompt_colors": palette[labels][None]}
  (colors,) = session.run(None, inputs)
  colors = Image.fromarray(np.round(colors[0]).astype(np.uint8)).resize(pictures[0].size, Image.Resampling.BILINEAR)
  classes = np.union1d(0, labels)
  distances = [np.square(np.asarray(colors, np.int64) - palette[index]).sum(-1) for index in classes]
  Image.fromarray(classes[np.argmin(distances, axis=0)].astype(np.uint8)).save(output)


if __name__ == "__main__":
  segment(*sys.argv[1:])
