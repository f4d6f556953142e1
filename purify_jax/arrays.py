"""Small operations on batches of arrays, one number per image."""

import jax
import jax.numpy as jnp

Array = jax.Array


def per_image(values: Array, images: Array) -> Array:
    """Reshapes ``[batch]`` values so that they broadcast over ``[batch, ...]`` images."""
    return values.reshape(values.shape + (1,) * (images.ndim - values.ndim))


def dot(a: Array, b: Array) -> Array:
    """Inner product per image: ``[batch, ...]`` × 2 → ``[batch]``."""
    return jnp.sum((a * b).reshape(a.shape[0], -1), axis=-1)


def l2_norm(a: Array) -> Array:
    """Euclidean norm per image, with gradient 0 (not NaN) where the array is zero."""
    squared = dot(a, a)
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)
