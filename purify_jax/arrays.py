"""Small operations on batches of arrays, one number per image."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Array = jax.Array


def per_image(values: Array, images: Array) -> Array:
    """Reshapes ``[batch]`` values so that they broadcast over ``[batch, ...]`` images.

    >>> per_image(jnp.arange(2), jnp.zeros((2, 8, 8, 1))).shape
    (2, 1, 1, 1)
    """
    return values.reshape(values.shape + (1,) * (images.ndim - values.ndim))


def each(images: Array, value: float | Array, dtype: DTypeLike | None = None) -> Array:
    """``value`` for each of the images ``[batch, ...]``: ``[batch]``, of their type unless another is given.

    What a loop over steps begins with has to be made from the images: under a ``shard_map`` of the user's own JAX
    checks that it varies over the devices as they do.

    >>> each(jnp.zeros((2, 8, 8, 1)), 0.5).tolist()
    [0.5, 0.5]
    """
    first = images[(slice(None), *(0,) * (images.ndim - 1))]
    return jnp.full_like(first, value, dtype=dtype)


def dot(a: Array, b: Array) -> Array:
    """Inner product per image: ``[batch, ...]`` × 2 → ``[batch]``."""
    return jnp.sum((a * b).reshape(a.shape[0], -1), axis=-1)


def l2_norm(a: Array) -> Array:
    """Euclidean norm per image, with gradient 0 (not NaN) where the array is zero.

    >>> l2_norm(jnp.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [5.0, 0.0]
    >>> jax.grad(lambda a: l2_norm(a).sum())(jnp.zeros((1, 2))).tolist()
    [[0.0, 0.0]]
    """
    squared = dot(a, a)
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)
