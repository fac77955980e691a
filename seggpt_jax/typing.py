"""Types shared by all rooms: functions of arrays take NumPy arrays as well as JAX arrays."""

from typing import Any

import jax
import numpy as np

AnyArray = jax.Array | np.ndarray
Params = dict[str, Any]  # dotted name -> jax.Array, np.ndarray or jax.ShapeDtypeStruct
