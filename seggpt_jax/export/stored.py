"""The types in which parameters are stored in exported files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from seggpt_jax.model import parameters

StoredDtype = Literal["float32", "float16"]


def stored_params(params: Mapping[str, Any], dtype: StoredDtype) -> dict[str, Any]:
  """Returns parameters with the kernels of blocks and of the decoder's first layer in a dtype, and the others as given.

  These kernels are more than 95% of a network. The others stay float32, because rounding the rest doubles the error:
  each scale of a normalization, for instance, changes all products behind it.

  Args:
    params: float32 parameters of a network.
    dtype: type of the large kernels.

  Raises:
    ValueError: a large kernel holds values beyond float16.
  """
  if dtype == "float32":
    return dict(params)
  return {**params, **parameters.to_float16({name: params[name] for name in params if _is_large_kernel(name)})}


def _is_large_kernel(name: str) -> bool:
  return name.endswith(".kernel") and name.startswith(("blocks.", "decoder_embed."))
