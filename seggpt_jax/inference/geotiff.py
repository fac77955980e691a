"""Label maps as GeoTIFFs: a query's coordinates and projection go into its label map, so that a GIS shows it in place.

In: a query and its prediction. Out: geotiff/NAME.tif with class indices.
"""

from __future__ import annotations

import functools
from pathlib import Path

from PIL import Image, TiffImagePlugin, TiffTags

from seggpt_jax.errors import warn_once
from seggpt_jax.files import write_whole
from seggpt_jax.formats.images import ORIENTATION, open_image, read_bytes
from seggpt_jax.inference import outputs
from seggpt_jax.inference.prediction import Prediction
from seggpt_jax.inference.queries import Query

# Pixel scale, tie points, transformation, and the three tags of the keys of the projection.
_TAGS = {
  **dict.fromkeys((33550, 33922, 34264, 34736), TiffTags.DOUBLE),
  34735: TiffTags.SHORT,
  34737: TiffTags.ASCII,
}


def write(directory: Path, query: Query, prediction: Prediction) -> None:
  """Writes the label map of a query. Predictions with stitched seams go to stitch/.

  Args:
    directory: folder of the results.
    query: the files of the image.
    prediction: its prediction.

  Raises:
    InputError: the directory cannot be written to.
  """
  tags = _coordinates(query)
  for folder, each in outputs.versions(prediction).items():
    save = functools.partial(Image.fromarray(each.labels).save, format="TIFF", compression="tiff_lzw", tiffinfo=tags)
    write_whole(directory / folder / "geotiff" / f"{query.name}.tif", save)


def _coordinates(query: Query) -> TiffImagePlugin.ImageFileDirectory_v2:
  """Returns the tags that place an image on the earth; none, and a warning, if it has no such tags."""
  found, path = TiffImagePlugin.ImageFileDirectory_v2(), str(query.image)
  image = open_image(read_bytes(query.image), path)
  stated = getattr(image, "tag_v2", {})
  if stated.get(ORIENTATION, 1) == 1:  # the coordinates of a turned image are those of its pixels before
    for tag, kind in _TAGS.items():
      if tag in stated:
        found.tagtype[tag] = kind
        found[tag] = stated[tag]
  if not found:
    warn_once("images without coordinates of a GeoTIFF: their label maps in geotiff/ have none either")
  return found
