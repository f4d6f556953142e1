"""Checks of input: one clear line that says the argument, what was given, and what was expected."""

import math
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jax.typing import DTypeLike


class InputError(ValueError):
    """A bad argument; the message is one line: argument, what was given, what was expected."""


def is_traced(*arrays: object) -> bool:
    """Whether any of the values is being traced, so that it cannot be looked at."""
    jax = sys.modules.get(
        "jax"
    )  # a bad flag is refused before JAX is loaded: nothing is traced then
    return jax is not None and any(isinstance(a, jax.core.Tracer) for a in arrays)


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
    _check_array(images, name)
    if shape is not None and tuple(images.shape[1:]) != tuple(shape):
        raise InputError(
            f"{name}: got {tuple(images.shape[1:])} per image, expected {tuple(shape)}"
        )
    if not _is_floating(images.dtype):
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


def _is_floating(dtype: "DTypeLike") -> bool:
    import jax.numpy as jnp  # NumPy does not know that bfloat16 is floating

    return bool(jnp.issubdtype(dtype, jnp.floating))


def _check_array(array: object, name: str) -> None:
    if not (hasattr(array, "dtype") and hasattr(array, "shape")):
        raise InputError(f"{name}: got a {type(array).__name__}, expected an array")


def check_labels(labels: Any, num_classes: int, name: str = "labels") -> None:
    """Raises InputError unless concrete ``labels`` are integers in ``[0, num_classes)``."""
    if np.ndim(labels) != 1:
        hint = " (one-hot? take argmax(-1))" if np.ndim(labels) == 2 else ""
        raise InputError(f"{name}: got rank {np.ndim(labels)}, expected [batch]{hint}")
    _check_array(labels, name)
    if labels.dtype.kind not in "iu":
        raise InputError(f"{name}: got dtype {labels.dtype}, expected integers")
    if is_traced(labels) or labels.shape[0] == 0:
        return
    values = np.asarray(labels)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= num_classes:
        hint = ""
        if (low, high) == (1, num_classes):
            hint = " (counted from 1? subtract 1)"
        elif low == high == -1:
            hint = " (-1 says that a split has no labels)"
        raise InputError(
            f"{name}: values lie in [{low}, {high}], expected [0, {num_classes - 1}]{hint}"
        )


def check_outputs(name: str, shape: Sequence[int], num_classes: int | None = None) -> None:
    """Raises InputError unless a classifier's outputs ``[batch, classes]`` are one for each class.

    Every command and training calls it. ``num_classes`` is that of the data; where it is not known, there must be
    two outputs at least.
    """
    if len(shape) != 2:
        raise InputError(f"{name}: output shape {tuple(shape)}, expected [batch, classes]")
    outputs, wanted = shape[-1], f"one for each of {num_classes or 'two or more'} classes"
    if outputs < 2:
        raise InputError(
            f"{name}: got {outputs} output per image, expected {wanted} (a sigmoid's logit z is the logits [0, z])"
        )
    if num_classes is not None and outputs != num_classes:
        raise InputError(
            f"{name}: got {outputs} outputs per image, expected {wanted} of the data (where the data hold some "
            "of the classifier's classes: models.match_classes, or labels and num_classes of the classifier)"
        )


def check_number(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Raises InputError unless ``value`` is a finite number in [low, high] (or is traced).

    ``open_low``, ``open_high``: that bound itself is excluded. A bool or a string is refused.
    """
    if is_traced(value):
        return
    array = np.asarray(value) if np.isscalar(value) or np.ndim(value) == 0 else np.zeros(0)
    real = array.dtype.kind in "iuf" or _is_floating(array.dtype)
    if array.ndim or not real:
        raise InputError(f"{name}: got {shown(value)}, expected a number")
    number = float(array)
    low_ok = low < number if open_low else low <= number
    high_ok = number < high if open_high else number <= high
    if not (math.isfinite(number) and low_ok and high_ok):
        bounds = [f"{'>' if open_low else '>='} {low:g}"] if low > -math.inf else []
        bounds += [f"{'<' if open_high else '<='} {high:g}"] if high < math.inf else []
        wanted = " ".join(["a finite number", " and ".join(bounds)]).strip()
        raise InputError(f"{name}: got {value}, expected {wanted}")


def number(text: str) -> float:
    """A number from its text: "0.03", "1e-3", or a fraction such as "8/255".

    >>> number("8/255") == 8 / 255, number(" 0.5 ")
    (True, 0.5)

    Raises ValueError for any other text.
    """
    above, slash, below = text.partition("/")
    if not slash:
        return float(text)
    if float(below) == 0:
        raise ValueError(f"{text!r} divides by zero")
    return float(above) / float(below)


def largest_epsilon(norm: str, image_shape: tuple[int, ...]) -> float:
    """The ε of a norm ("linf", "l2", "l1") from which on a ball holds every image of a shape ``(h, w, c)``."""
    pixels = math.prod(image_shape)
    return {"linf": 1.0, "l2": math.sqrt(pixels), "l1": float(pixels)}[norm]


def check_epsilon(epsilon: Any, norm: str, image_shape: tuple[int, ...] | None = None) -> None:
    """Raises InputError unless ε is a finite number ≥ 0, and a radius that makes sense for its norm.

    Pixels lie in [0, 1], so a larger ε than :func:`largest_epsilon` is one in other units: 8 for 8/255. Without
    ``image_shape`` only Linf has such a bound. A traced ε, for sweeps, may be anything.
    """
    check_at_least("epsilon", epsilon, 0)
    if is_traced(epsilon) or (image_shape is None and norm != "linf"):
        return
    most = largest_epsilon(norm, image_shape or ())
    if float(epsilon) > most * (1 + 1e-6):
        shape = "" if norm == "linf" else f" and images of {'×'.join(map(str, image_shape or ()))}"
        raise InputError(
            f"epsilon: got {float(epsilon):g}, expected at most {most:.4g} for {norm}{shape}: a pixel's range is "
            f"1, not 255, so write {float(epsilon):g}/255 for {float(epsilon):g} grey levels"
        )


def check_at_least(name: str, value: object, minimum: float) -> None:
    """Raises InputError unless ``value`` is a finite number ≥ ``minimum`` (or is traced)."""
    check_number(name, value, minimum)


def check_count(name: str, value: Any, minimum: int = 1, maximum: int | None = None) -> None:
    """Raises InputError unless ``value`` is a whole number ≥ ``minimum`` (and ≤ ``maximum``)."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < minimum:
        raise InputError(f"{name}: got {shown(value)}, expected a whole number >= {minimum}")
    if maximum is not None and value > maximum:
        raise InputError(
            f"{name}: got {shown(value)}, expected a whole number from {minimum} to {maximum}"
        )


#: JAX reads 32 bits of a seed: 2³² + 1 would silently be the run of seed 1. The networks of one run
#: have seeds of their own, the next few numbers.
MOST_SEED = 2**32 - 16


def check_seed(value: object, name: str = "seed") -> None:
    """Raises InputError unless ``value`` is a whole number from 0 to :data:`MOST_SEED`."""
    check_count(name, value, 0, MOST_SEED)


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raises InputError unless ``value`` is one of ``choices``."""
    known = list(choices)
    if not isinstance(value, str) or value not in known:
        raise InputError(f"{name}: got {shown(value)}, expected one of {known}")


def check_file_name(name: str, value: Any) -> None:
    """Raises InputError unless ``value`` can name a file: one part of a path, that is no hidden one."""
    fine = isinstance(value, str) and value.isprintable() and 0 < len(value) <= 100
    if not fine or value.startswith(".") or "/" in value or "\\" in value:
        raise InputError(f"{name}: got {shown(value)}, expected a name without a folder")


def listed(names: Sequence[str], most: int = 20) -> str:
    """Names as a message lists them, and how many more there are."""
    few = ", ".join(names[:most])
    return f"{few} and {len(names) - most} more" if len(names) > most else few


def shown(value: Any) -> str:
    """A value as a message shows it: on one line, and never pages of it."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer of thousands of digits
        text = f"a number of {value.bit_length()} bits"
    return text if len(text) <= 80 else text[:77] + "..."
