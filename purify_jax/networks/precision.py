"""In which precision a network computes."""

from typing import Any

import jax.numpy as jnp

from purify_jax.types import Array


def compute_dtype(dtype: str, images: Array) -> Any:
    """The ``dtype`` of a network; for "float32", the images' own if that is float64."""
    return jnp.promote_types(images.dtype, dtype) if dtype == "float32" else jnp.dtype(dtype)
