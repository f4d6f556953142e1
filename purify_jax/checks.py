"""Checks of input: one clear line that says the argument, what was given, and what was expected."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class InputError(ValueError):
    """A bad argument; the message is one line: argument, what was given, what was expected."""


def is_traced(*arrays: Any) -> bool:
    """Whether any of the values is being traced, so that it cannot be looked at."""
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
    if is_traced(images) or images.shape[0] == 0:
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
    if is_traced(labels) or labels.shape[0] == 0:
        return
    values = np.asarray(labels)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= num_classes:
        raise InputError(f"{name}: values lie in [{low}, {high}], expected [0, {num_classes - 1}]")


def check_at_least(name: str, value: Any, minimum: float) -> None:
    """Raises InputError unless ``value`` is a finite number ≥ ``minimum`` (or is traced)."""
    if is_traced(value):
        return
    if isinstance(value, bool) or (not np.isscalar(value) and np.ndim(value) != 0):
        raise InputError(f"{name}: got {value!r}, expected a number")
    if not np.isfinite(value) or value < minimum:
        raise InputError(f"{name}: got {value}, expected a finite number >= {minimum}")


def check_count(name: str, value: Any, minimum: int = 1) -> None:
    """Raises InputError unless ``value`` is a whole number ≥ ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        raise InputError(f"{name}: got {value!r}, expected a whole number >= {minimum}")
