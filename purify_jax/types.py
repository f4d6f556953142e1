"""The vocabulary of the library: array conventions, function types, input checks.

Conventions, used by every module:

- *images*: float32 ``[batch, height, width, channels]`` with values in [0, 1]; a model
  normalises inside itself.
- *labels*: int32 ``[batch]`` in ``[0, num_classes)``.
- *keys*: one PRNG key per image, ``[batch]`` typed keys (``jax.random.key``). A helper,
  :func:`image_keys`, folds a run's key with each image's global index, so that results do
  not depend on batch size, padding, device count or on where a run was resumed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Array: TypeAlias = jax.Array
Keys: TypeAlias = jax.Array
Params: TypeAlias = Any

#: images ``[batch, h, w, c]`` → energy ``[batch]``; lower is more probable.
EnergyFn: TypeAlias = Callable[[Array], Array]
#: images → array of the same shape: the (possibly scaled) gradient of the log-density.
ScoreFn: TypeAlias = Callable[[Array], Array]
#: images → unnormalised class scores ``[batch, classes]``.
LogitsFn: TypeAlias = Callable[[Array], Array]
#: (keys, images) → (purified ``[restarts, batch, h, w, c]``, :class:`PurifyInfo`).
Purifier: TypeAlias = Callable[[Keys, Array], "tuple[Array, PurifyInfo]"]
#: (keys, images) → log-probabilities ``[batch, classes]``.
PredictFn: TypeAlias = Callable[[Keys, Array], Array]
#: (log-probabilities ``[batch, classes]``, labels) → loss ``[batch]``; attacks ascend it.
LossFn: TypeAlias = Callable[[Array, Array], Array]
#: (keys, images, labels) → (gradient like images, loss ``[batch]``).
GradientFn: TypeAlias = Callable[[Keys, Array, Array], tuple[Array, Array]]
#: (keys, images, labels) → adversarial images, inside the ball and the bounds.
Attack: TypeAlias = Callable[[Keys, Array, Array], Array]

#: Lower and upper bound of a pixel.
BOUNDS = (0.0, 1.0)


class PurifyInfo(NamedTuple):
    """Diagnostics of a purification; axes are steps T, restarts S and batch B.

    step_sizes: ``[T, S, B]`` step size α of each step, 0 once an image has stopped.
    score_norms: ``[T, S, B]`` Euclidean norm of the score before each step.
    active_steps: ``[S, B]`` number of steps taken before the image stopped (int32).
    """

    step_sizes: Array
    score_norms: Array
    active_steps: Array


class InputError(ValueError):
    """A bad argument; the message is one line: argument, what was given, what was expected."""


def image_keys(key: Array, indices: Array | np.ndarray) -> Keys:
    """One key per image, from a run's key and each image's global index ``[batch]``."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.asarray(indices, jnp.uint32))


def fold_keys(keys: Keys, data: Any) -> Keys:
    """Folds the same integer into every key of a batch of keys (a step, a draw, a purpose)."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, data)


def normal_like(keys: Keys, images: Array) -> Array:
    """Standard normal noise of the images' shape; image i's noise depends on key i alone."""
    draw = lambda key: jax.random.normal(key, images.shape[1:], images.dtype)
    return jax.vmap(draw)(keys)


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


def _is_traced(*arrays: Any) -> bool:
    return any(isinstance(a, jax.core.Tracer) for a in arrays)


def check_images(images: Any, name: str = "images", shape: tuple[int, ...] | None = None) -> None:
    """Raises InputError unless concrete ``images`` are finite floats in [0, 1], rank 4.

    ``shape`` is the expected ``(height, width, channels)``, if it is known. Values of traced
    arrays cannot be looked at, so inside ``jax.jit`` only rank and shape are checked.
    """
    ndim = np.ndim(images)
    if ndim != 4:
        raise InputError(
            f"{name}: got rank {ndim} (shape {np.shape(images)}), "
            "expected [batch, height, width, channels]"
        )
    if shape is not None and tuple(images.shape[1:]) != tuple(shape):
        raise InputError(
            f"{name}: got {tuple(images.shape[1:])} per image, expected {tuple(shape)}"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(
            f"{name}: got dtype {images.dtype}, expected floats in [0, 1] (divide 0-255 by 255)"
        )
    if _is_traced(images) or images.shape[0] == 0:
        return
    values = np.asarray(images)
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = int((~np.isfinite(values)).sum())
        raise InputError(
            f"{name}: {bad} pixels are NaN or infinite, expected finite values in [0, 1]"
        )
    if low < -1e-6 or high > 1 + 1e-6:
        hint = " (0-255 pixels? divide them by 255)" if high > 2 else ""
        raise InputError(f"{name}: values lie in [{low:g}, {high:g}], expected [0, 1]{hint}")


def check_labels(labels: Any, num_classes: int, name: str = "labels") -> None:
    """Raises InputError unless concrete ``labels`` are integers in ``[0, num_classes)``."""
    if np.ndim(labels) != 1:
        raise InputError(f"{name}: got rank {np.ndim(labels)}, expected [batch]")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise InputError(f"{name}: got dtype {labels.dtype}, expected integers")
    if _is_traced(labels) or labels.shape[0] == 0:
        return
    values = np.asarray(labels)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= num_classes:
        raise InputError(f"{name}: values lie in [{low}, {high}], expected [0, {num_classes - 1}]")


def check_at_least(name: str, value: float, minimum: float) -> None:
    """Raises InputError unless ``value`` is a finite number ≥ ``minimum`` (or is traced)."""
    if not _is_traced(value) and (not np.isfinite(value) or value < minimum):
        raise InputError(f"{name}: got {value}, expected a finite number >= {minimum}")
