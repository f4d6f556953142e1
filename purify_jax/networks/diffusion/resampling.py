"""Halving and doubling the resolution with a small separable filter, as diffusion networks do."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from purify_jax.types import Array

#: A box (nearest neighbour upwards, mean of 2×2 downwards), and a smoother binomial filter.
BOX, BINOMIAL = (1, 1), (1, 3, 3, 1)


def halve(x: Array, taps: Sequence[float] = BOX, pad: bool = True) -> Array:
    """``[b, h, w, c]`` → half of each side: filter with Σ taps normalised to 1, every other pixel.

    taps: an even number of them, K. ``pad=False`` expects K/2 − 1 pixels of border already there.
    """
    weights = np.asarray(taps, np.float64) / np.sum(taps)
    border = len(weights) // 2 - 1
    for axis in (1, 2):
        if pad and border:
            x = jnp.pad(x, [(border, border) if a == axis else (0, 0) for a in range(4)])
        size = (x.shape[axis] - len(weights)) // 2 + 1
        parts = [
            float(w) * lax.slice_in_dim(x, k, k + 2 * size - 1, 2, axis)
            for k, w in enumerate(weights)
        ]
        x = sum(parts[1:], parts[0])
    return x


def double(x: Array, taps: Sequence[float] = BOX) -> Array:
    """``[b, h, w, c]`` → twice each side: zeros between the pixels, then the filter with sum 2 a side.

    Computed as two filters, one for even and one for odd outputs, so that no zero is multiplied.
    """
    weights = 2 * np.asarray(taps, np.float64) / np.sum(taps)
    if len(weights) == 2 and weights[0] == weights[1]:
        return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    border = len(weights) // 2 - 1
    for axis in (1, 2):
        size = x.shape[axis]
        padded = jnp.pad(x, [(border, border) if a == axis else (0, 0) for a in range(4)])
        phases = []
        for parity in (0, 1):
            # Output 2m + parity is Σ weights[k] x[m + shift] over k with 2·shift = parity + border − k.
            terms = [
                float(w) * lax.slice_in_dim(padded, start, start + size, 1, axis)
                for k, w in enumerate(weights)
                if (parity + border - k) % 2 == 0
                for start in [border + (parity + border - k) // 2]
            ]
            phases.append(sum(terms[1:], terms[0]))
        both = jnp.stack(phases, axis=axis + 1)
        x = both.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
    return x
