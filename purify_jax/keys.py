"""Every stream of randomness, by name.

One PRNG key belongs to one image (:func:`image_keys`), so that results do not depend on batch size,
padding, device count or on where a run was resumed. A key is either folded further or drawn from,
never both, and what is folded into one key for different purposes is never equal: the numbers
of this file, and the counters (a step, a draw, a restart), which stay below :data:`COUNTERS`.
tests/test_keys.py records every draw of every purifier, attack and loss and proves it.

All draws are threefry's, whatever ``jax_default_prng_impl`` is. A ``vmap`` over keys of "rbg" or
"unsafe_rbg" draws the whole batch from the first key, so an image's numbers would depend on its batch.
:func:`threefry` converts such keys, and the raw ones of ``jax.random.PRNGKey``, where they enter.
"""

import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from purify_jax.checks import InputError, shown

Array = jax.Array
Keys = jax.Array

#: Counters that are folded into keys are smaller than this, named streams larger.
COUNTERS = 2**20


def _number(name: str) -> int:
    return zlib.crc32(name.encode()) | 2**31


_NAMES = (
    "accept",  # a Metropolis decision
    "proposal",  # of a Markov chain, of Square
    "value",  # of Square's proposal: the defense's own randomness
    "radius",  # of a random point in a ball
    "random start",  # of an attack
    "choice",  # of targets, and of the best result
    "direction",  # of SPSA, and of a measured slope
    "projection",  # of a purifier's output to one number
    "predict",  # a prediction, beside a statistic of the same image
    "level",  # a random noise level, and
    "noise",  # the noise of that level
    "crop",  # augmentation of a classifier's training images
    "attack",  # of a training step, beside the pass that trains
)
#: What is folded into an image's key so that two purposes share no randomness. The noise before the
#: steps of a diffusion ("start") keeps the number that published results were made with.
STREAMS: Mapping[str, int] = MappingProxyType(
    {"start": 2**31, **{name: _number(name) for name in _NAMES}}
)
#: The same for the images of a training step: the noise level and the noise of denoising score
#: matching (the latter also the purifier's, in training on purified images), flips, the share of
#: images that is purified, and patterns.
LEVEL, NOISE, FLIP, SHARE, PATTERN = range(5)


def threefry(keys: Keys) -> Keys:
    """Typed threefry keys, from keys of any of JAX's implementations, of any shape.

    Typed threefry keys are returned as they are. Raw keys (``jax.random.PRNGKey``, uint32 ``[..., 2]`` or
    ``[..., 4]``) become typed ones. Of the 128 bits of an "rbg" or "unsafe_rbg" key the first 64 are kept: those
    of the same seed's threefry key, so that a seed means the same under all three.

    >>> old, new, rbg = jax.random.PRNGKey(3), jax.random.key(3), jax.random.key(3, impl="rbg")
    >>> bool(threefry(old) == new), bool(threefry(rbg) == new)
    (True, True)

    Raises InputError for anything else.
    """
    dtype = getattr(keys, "dtype", None)
    if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        if str(jax.random.key_impl(keys)) == "threefry2x32":
            return keys
        data = jax.random.key_data(keys)
    elif dtype == np.uint32:
        data = jnp.asarray(keys)
    else:
        raise InputError(f"keys: got {shown(keys)}, expected keys of jax.random.key")
    if data.ndim == 0 or data.shape[-1] not in (2, 4):
        raise InputError(
            f"keys: got {shown(keys)}, expected keys of threefry2x32, rbg or unsafe_rbg"
        )
    return jax.random.wrap_key_data(data[..., :2], impl="threefry2x32")


def image_keys(key: Array, indices: Array | np.ndarray) -> Keys:
    """One key per image, from a run's key and each image's global index ``[batch]``.

    An image's key does not depend on the batch that it is in:

    >>> together = image_keys(jax.random.key(0), np.arange(4))
    >>> alone = image_keys(jax.random.key(0), np.array([3]))
    >>> bool(together[3] == alone[0])
    True
    """
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    return fold(threefry(key), jnp.asarray(indices, jnp.uint32))


def fold_keys(keys: Keys, data: ArrayLike) -> Keys:
    """Folds the same integer into every key of a batch of keys (a step, a draw, a purpose)."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(threefry(keys), data)


def stream(keys: Keys, name: str) -> Keys:
    """The keys ``[batch]`` of a named purpose, one of :data:`STREAMS`."""
    return fold_keys(keys, jnp.uint32(STREAMS[name]))


def stream_key(key: Array, name: str) -> Array:
    """A run's key for a named part of it: an attack by its name, scoring, a sweep."""
    return jax.random.fold_in(threefry(key), zlib.crc32(name.encode()))


def draw_each(sampler: Callable[..., object], keys: Keys, *arrays: Array) -> Any:
    """``sampler(key, *rows)`` of every image: vmapped over the keys ``[batch]`` and the arrays' first axis."""
    return jax.vmap(sampler)(threefry(keys), *arrays)


def normal_like(keys: Keys, images: Array) -> Array:
    """Standard normal noise of the images' shape; image i's noise depends on key i alone."""
    return draw_each(lambda key: jax.random.normal(key, images.shape[1:], images.dtype), keys)


# JAX's own choose how many bits they draw by whether float64 is on. These draw the same in every mode.


def is_chosen(key: Array, share: float | Array = 0.5) -> Array:
    """True with probability ``share``: one draw of a Bernoulli variable."""
    return jax.random.bernoulli(key, jnp.asarray(share, jnp.float32))


def signs(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Independent −1 and 1, each as often (Rademacher)."""
    positive = jax.random.bernoulli(key, jnp.float32(0.5), shape)
    return jnp.where(positive, jnp.ones((), dtype), -jnp.ones((), dtype))
