"""In which precision a network computes."""

import jax.numpy as jnp
import numpy as np

from purify_jax.types import Array


def compute_dtype(dtype: str, images: Array) -> np.dtype:
    """The ``dtype`` of a network; for "float32", the images' own if that is float64."""
    return jnp.promote_types(images.dtype, dtype) if dtype == "float32" else jnp.dtype(dtype)
