"""Adversarial images as a file (.npz), checked when it is written and when it is read."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np

from purify_jax.atomic import write_atomically
from purify_jax.attacks import norms
from purify_jax.checks import InputError, check_epsilon, check_images
from purify_jax.data.array_files import as_labels, load_npz

#: Rounding that a pixel of a float32 image is allowed beyond the ball.
ROUNDING = 1e-6


class SavedImages(NamedTuple):
    """What a file of adversarial images holds.

    adversarial: float32 ``[images, height, width, channels]`` in [0, 1].
    labels: int32 ``[images]``, the true classes.
    clean: the images that were attacked, or None.
    epsilon, norm: the ball around them; both or none.
    """

    adversarial: np.ndarray
    labels: np.ndarray
    clean: np.ndarray | None = None
    epsilon: float | None = None
    norm: str | None = None


def distances(saved: SavedImages, norm: str) -> np.ndarray:
    """Distance of each adversarial image from its clean one, ``[images]``; needs ``saved.clean``."""
    assert saved.clean is not None
    difference = saved.adversarial.astype(np.float32) - saved.clean.astype(np.float32)
    return np.asarray(norms.get(norm).size(jnp.asarray(difference)))


def check(saved: SavedImages, image_shape: tuple[int, ...] | None = None) -> None:
    """Raises InputError unless images and labels fit each other, the bounds and the ball.

    A pixel may be off by :data:`ROUNDING`, as float32 sums are. ``image_shape`` is the (height, width,
    channels) that the model takes.
    """
    images, labels = saved.adversarial, saved.labels
    shape = np.shape(images)
    if image_shape is not None and len(shape) == 4 and shape[1:] != tuple(image_shape):
        first = (image_shape[2], *image_shape[:2])
        hint = " (channels first? transpose to channels last)" if shape[1:] == first else ""
        raise InputError(
            f"adversarial: got {shape[1:]} per image, expected {tuple(image_shape)}{hint}"
        )
    check_images(images, "adversarial")
    if np.shape(labels) != (len(images),) or len(images) == 0:
        raise InputError(
            f"labels: got shape {np.shape(labels)} for {len(images)} images, expected one each"
        )
    if not np.issubdtype(np.asarray(labels).dtype, np.integer):
        raise InputError(f"labels: got dtype {labels.dtype}, expected integers")
    if (saved.epsilon is None) != (saved.norm is None):
        missing = "norm" if saved.norm is None else "epsilon"
        raise InputError(f"{missing}: missing, expected epsilon and norm together or none")
    if saved.clean is None:
        if saved.epsilon is not None:
            raise InputError("clean: missing, expected the clean images beside epsilon and norm")
        return
    if np.shape(saved.clean) != shape:
        raise InputError(
            f"clean: got shape {np.shape(saved.clean)}, expected adversarial's {shape}"
        )
    check_images(saved.clean, "clean")
    if saved.norm is not None:
        _check_ball(saved)


def _check_ball(saved: SavedImages) -> None:
    assert saved.clean is not None
    assert saved.epsilon is not None
    norm, epsilon = norms.get(saved.norm or ""), saved.epsilon
    check_epsilon(epsilon, norm.name, saved.clean.shape[1:])
    one = jnp.full((1, *saved.clean.shape[1:]), ROUNDING, jnp.float32)
    slack = float(norm.size(one)[0]) + 1e-5 * epsilon
    found = distances(saved, norm.name)
    outside = np.flatnonzero(found > epsilon + slack)
    if len(outside):
        farthest = int(found.argmax())
        raise InputError(
            f"adversarial: {len(outside)} of {len(found)} images lie outside the ball, the farthest "
            f"(number {farthest}) at a distance {norm.name} of {found[farthest]:g}, expected at most "
            f"{epsilon:g}"
        )


def save(path: str | Path, saved: SavedImages, **more: np.ndarray) -> None:
    """Writes a compressed .npz file, whole or not at all; ``more`` are further arrays.

    Raises InputError for what :func:`check` refuses.
    """
    check(saved)
    arrays = {name: value for name, value in saved._asdict().items() if value is not None}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays, **more)
    write_atomically(path, buffer.getvalue())


def load(path: str | Path, image_shape: tuple[int, ...] | None = None) -> SavedImages:
    """The images of a file, checked; further arrays in it are ignored.

    Raises InputError for a file that is missing, damaged or lacks arrays, and as :func:`check` does.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"images: {path} is not a file, expected an .npz of adversarial images")
    found, held = load_npz(path, "images", SavedImages._fields)
    missing = [name for name in ("adversarial", "labels") if name not in found]
    if missing:
        raise InputError(
            f"images: {path} lacks {missing} (it holds {held}), expected adversarial, labels and, if "
            "known, clean, epsilon, norm"
        )
    saved = SavedImages(
        found["adversarial"],
        as_labels(found["labels"], "labels"),
        found.get("clean"),
        _scalar(found, "epsilon", float),
        _scalar(found, "norm", lambda value: str(value).lower()),
    )
    check(saved, image_shape)
    as_float = lambda images: None if images is None else images.astype(np.float32)
    return saved._replace(
        adversarial=saved.adversarial.astype(np.float32),
        clean=as_float(saved.clean),
    )


Scalar = TypeVar("Scalar")


def _scalar(
    found: dict[str, np.ndarray], name: str, convert: Callable[[Any], Scalar]
) -> Scalar | None:
    if name not in found:
        return None
    if found[name].size != 1:
        raise InputError(f"{name}: got shape {found[name].shape}, expected a single value")
    try:
        return convert(found[name].item())
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: got {found[name].item()!r}, expected a number") from error
