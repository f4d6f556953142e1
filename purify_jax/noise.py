"""Noise levels for denoising score matching, and how a network's output becomes a score."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from purify_jax.checks import InputError, check_count, check_number
from purify_jax.keys import draw_each
from purify_jax.pytrees import Partial
from purify_jax.types import Array, Keys


def geometric(largest: float, smallest: float, num_levels: int) -> Array:
    """``num_levels`` noise levels from ``largest`` to ``smallest`` in geometric progression.

    NCSNv2 on CIFAR-10 uses 232 levels from 50 to 0.01 (Song & Ermon 2020, arXiv 2006.09011,
    section 3, pixels in [0, 1]).

    >>> geometric(1.0, 0.25, 3).tolist()
    [1.0, 0.5, 0.25]
    """
    _check(largest, smallest, num_levels)
    return jnp.asarray(np.geomspace(largest, smallest, num_levels), jnp.float32)


def linear(largest: float, smallest: float, num_levels: int) -> Array:
    """``num_levels`` equally spaced noise levels from ``largest`` to ``smallest``."""
    _check(largest, smallest, num_levels)
    return jnp.linspace(largest, smallest, num_levels, dtype=jnp.float32)


def _check(largest: float, smallest: float, num_levels: int) -> None:
    for value in (largest, smallest):
        check_number("sigmas", value)
    if not largest >= smallest > 0:
        raise InputError(f"sigmas: got {largest} to {smallest}, expected largest >= smallest > 0")
    check_count("num_levels", num_levels)


def unscaled(sigmas: Array) -> Array:
    """The network's output is the score itself: s = f(x̃). For a single noise level."""
    return jnp.ones_like(sigmas)


def per_sigma(sigmas: Array) -> Array:
    """s = f(x̃)/σ, the published scaling: f is trained to be −ε (Song & Ermon 2020)."""
    return 1.0 / sigmas


def per_variance(sigmas: Array) -> Array:
    """s = f(x̃)/σ²: f is the displacement x − x̃ whatever σ is (Li et al. 2019, 1910.07762).

    One unconditional energy can carry all the levels, because the displacement is the
    gradient of the same function ½·distance² for each of them.
    """
    return 1.0 / sigmas**2


#: The scalings by name, as configs and model files call them.
SCALES = {"unscaled": unscaled, "per_sigma": per_sigma, "per_variance": per_variance}


def patterns(amplitude: float) -> Callable[[Keys, Array], Array]:
    """(keys, images) → blobs and strokes of ±a, a ~ U(0, ``amplitude``), one a per image.

    The sign of a Gaussian field whose grain is 1, 2 or 4 pixels, each as often: an attack
    within an Linf radius looks like this, while independent noise of the same size does not.
    ``amplitude`` in [0, 1], the range of a pixel; InputError else.
    """
    check_number("amplitude", amplitude, 0.0, 1.0)
    return Partial(_patterns, amplitude)


def _patterns(amplitude: float, keys: Keys, images: Array) -> Array:
    def one(key: Array, image: Array) -> Array:
        grain_key, field_key, size_key = jax.random.split(key, 3)
        height, width, channels = image.shape
        fields = []
        for index, grain in enumerate((1, 2, 4)):
            shape = (-(-height // grain), -(-width // grain), channels)
            coarse = jax.random.normal(jax.random.fold_in(field_key, index), shape, jnp.float32)
            fields.append(jax.image.resize(coarse, image.shape, "linear"))
        field = jnp.stack(fields)[jax.random.randint(grain_key, (), 0, len(fields), jnp.int32)]
        return amplitude * jax.random.uniform(size_key, (), jnp.float32) * jnp.sign(field)

    return draw_each(one, keys, images)
