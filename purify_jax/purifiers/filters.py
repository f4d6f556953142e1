"""Controls: deterministic filters in a purifier's place, and no purifier at all."""

import jax
import jax.numpy as jnp

from purify_jax.checks import check_at_least
from purify_jax.purifiers.loop import Filter
from purify_jax.pytrees import Partial
from purify_jax.types import Array


def _unchanged(images: Array) -> Array:
    return images


#: The purifier that does nothing: one restart, zero steps. The undefended case.
identity = Filter(_unchanged, bounds=None)


def gaussian_blur(sigma: float) -> Filter:
    """A Gaussian filter of ``sigma`` pixels, cut at 4σ, edges repeated."""
    check_at_least("sigma", sigma, 0.0)
    if sigma == 0:
        return identity
    reach = int(4 * sigma + 0.5)
    weights = jnp.exp(-0.5 * (jnp.arange(-reach, reach + 1, dtype=jnp.float32) / sigma) ** 2)
    return Filter(Partial(_convolved, weights / jnp.sum(weights)))


def _convolved(weights: Array, images: Array) -> Array:
    reach = len(weights) // 2
    for axis in (1, 2):
        pad = [(reach, reach) if a == axis else (0, 0) for a in range(4)]
        padded = jnp.pad(images, pad, mode="edge")
        size = images.shape[axis]
        images = sum(
            weights[i] * jax.lax.slice_in_dim(padded, i, i + size, axis=axis)
            for i in range(len(weights))
        )  # type: ignore[assignment]
    return images
