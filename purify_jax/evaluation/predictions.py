"""Predictions that may be counted: an answer that is not a number is an error, never a class."""

import jax
import jax.numpy as jnp
import numpy as np

from purify_jax.attacks.norms import get
from purify_jax.checks import InputError, check_count, check_images, check_outputs
from purify_jax.keys import fold_keys
from purify_jax.pytrees import Pytree, jit, static
from purify_jax.types import Array, Attack, Keys, PredictFn

#: The class of a prediction that is not finite (argmax would say 0).
NOT_FINITE = -1


def is_finite(log_probs: Array) -> Array:
    """Whether the largest log-probability ``[...]`` is a number; −inf elsewhere is a probability of 0."""
    return jnp.isfinite(jnp.max(log_probs, axis=-1))


def predicted_class(log_probs: Array, num_classes: int | None = None) -> Array:
    """The most probable class ``[batch]``, or :data:`NOT_FINITE`.

    Raises InputError unless there is a column for each class, see :func:`purify_jax.checks.check_outputs`.
    """
    check_outputs("defense", log_probs.shape, num_classes)
    return jnp.where(is_finite(log_probs), log_probs.argmax(-1), NOT_FINITE).astype(jnp.int32)


def check_classes(predicted: np.ndarray | Array, name: str) -> None:
    """Raises InputError that names ``name`` if some prediction is :data:`NOT_FINITE`."""
    _refuse(np.asarray(predicted) == NOT_FINITE, name)


def check_log_probs(log_probs: np.ndarray, batch: int, num_classes: int, name: str) -> None:
    """Raises InputError unless ``log_probs [draws, batch, classes]`` are numbers, for all classes."""
    check_outputs(f"{name}, defense", log_probs.shape[1:], num_classes)
    if log_probs.shape[1] != batch:
        raise InputError(
            f"{name}: the defense answers shape {log_probs.shape[1:]}, expected "
            f"({batch}, {num_classes}), [batch, classes]"
        )
    _refuse(~np.isfinite(log_probs.max(-1)), name)
    if log_probs.shape[-1] > 1 and log_probs.size and bool(np.all(are_probabilities(log_probs))):
        raise InputError(
            f"{name}: the defense answers probabilities (each row is >= 0 and sums to 1), expected "
            "log-probabilities, their jnp.log"
        )


def are_probabilities(outputs: np.ndarray | Array) -> Array:
    """Whether rows ``[..., classes]`` are probabilities, not logits or their logarithms: ≥ 0 with the sum 1.

    Within 0.01, as half precision rounds.

    >>> are_probabilities(jnp.array([[0.9, 0.1], [2.0, -1.0]])).tolist()
    [True, False]
    """
    sums = jnp.sum(outputs, axis=-1)
    return (jnp.min(outputs, axis=-1) >= 0) & (jnp.abs(sums - 1) < 0.01)


def check_logits(defense: PredictFn, images: np.ndarray) -> None:
    """Raises InputError if the ``logits_fn`` of a defense returns probabilities, on images ``[batch, h, w, c]``.

    A softmax of a softmax has small gradients: attacks look weak, and robust accuracy too high.
    """
    logits_fn = getattr(defense, "logits_fn", None)
    if logits_fn is None:
        return
    outputs = jit(logits_fn)(jnp.asarray(images, jnp.float32))
    if outputs.ndim == 2 and outputs.shape[-1] > 1 and bool(jnp.all(are_probabilities(outputs))):
        raise InputError(
            "logits_fn: returns probabilities (each row is >= 0 and sums to 1), expected logits: remove the last "
            "softmax, or give lambda x: jnp.log(f(x))"
        )


def _refuse(bad: np.ndarray, name: str) -> None:
    if bad.any():
        raise InputError(
            f"{name}: {int(bad.sum())} of {bad.size} predictions are not finite, expected numbers"
        )


class Predicted(Pytree):
    """(keys, images) → :func:`predicted_class` of a defense for data of ``num_classes`` classes."""

    defense: PredictFn
    num_classes: int | None = static(default=None)

    def __call__(self, keys: Keys, images: Array) -> Array:
        return predicted_class(self.defense(keys, images), self.num_classes)


class Draws(Pytree):
    """(keys, images) → log-probabilities of independent draws, ``[draws, batch, classes]``.

    defense: (keys, images) → log-probabilities.
    draws: how many draws, ≥ 1.

    Raises InputError for fewer than one draw.
    """

    defense: PredictFn
    draws: int = static()

    def __post_init__(self) -> None:
        check_count("draws", self.draws)

    def __call__(self, keys: Keys, images: Array) -> Array:
        one = lambda draw: self.defense(fold_keys(keys, draw), images)
        return jax.lax.map(one, jnp.arange(self.draws))


def ball_of(attack: Attack | None) -> tuple[str, float] | None:
    """(norm, ε) that an attack declares; None where it declares none, as a plain function."""
    norm, epsilon = getattr(attack, "norm", None), getattr(attack, "epsilon", None)
    if norm is None or epsilon is None or np.size(epsilon) != 1:
        return None
    return get(norm).name, float(np.asarray(epsilon).reshape(()))


def check_adversarial(
    name: str,
    adversarial: np.ndarray | Array,
    images: np.ndarray,
    ball: tuple[str, float] | None = None,
) -> None:
    """Raises InputError, which names the attack, for images that may not be scored.

    They have the shape of ``images``, are finite, in [0, 1], and inside ``ball`` (norm, ε) if that
    is known, up to rounding.
    """
    name = f"attack {name!r}"
    if np.shape(adversarial) != images.shape:
        raise InputError(
            f"{name}: returned shape {np.shape(adversarial)}, expected that of its images, {images.shape}"
        )
    found = np.asarray(adversarial)
    check_images(found, name)
    if ball is None:
        return
    norm, epsilon = ball
    largest = float(np.max(np.asarray(get(norm).size(jnp.asarray(found - images)))))
    if largest > 1.001 * epsilon + 1e-5:
        raise InputError(
            f"{name}: moved an image by {largest:g} ({norm}), expected at most epsilon = {epsilon:g}"
        )
