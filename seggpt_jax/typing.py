"""What array annotations mean throughout: functions of arrays take NumPy's as well as JAX's."""

import jax
import numpy as np

AnyArray = jax.Array | np.ndarray
