"""A defense: a purifier before a classifier that nobody retrained. Deployed and attacked as one."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from purify_jax.checks import InputError, check_count
from purify_jax.purifiers.filters import identity
from purify_jax.purifiers.loop import is_deterministic
from purify_jax.pytrees import Replaceable, pytree, static
from purify_jax.types import Array, Keys, LogitsFn

#: logits of every restart ``[restarts, batch, classes]`` → log-probabilities ``[batch, classes]``.
Combine = Callable[[Array], Array]


def mean_probabilities(logits: Array) -> Array:
    """log of the average softmax over restarts (ADP, section 3.3)."""
    log_probs = jax.nn.log_softmax(logits)
    return jax.nn.logsumexp(log_probs, axis=0) - jnp.log(logits.shape[0])


def mean_logits(logits: Array) -> Array:
    """log-softmax of the average logits over restarts."""
    return jax.nn.log_softmax(jnp.mean(logits, axis=0))


def vote(logits: Array) -> Array:
    """log of each class's share of the restarts' votes, with one vote spread over all classes.

    A vote's own derivative is zero almost everywhere, which would stop an attacker for no good
    reason; so the backward pass is that of :func:`mean_probabilities`.
    """
    classes = logits.shape[-1]
    votes = jnp.sum(jax.nn.one_hot(jnp.argmax(logits, axis=-1), classes), axis=0)
    hard = jnp.log((votes + 1 / classes) / (logits.shape[0] + 1))
    soft = mean_probabilities(logits)
    return soft + jax.lax.stop_gradient(hard - soft)


@pytree
class Defense(Replaceable):
    """(keys ``[batch]``, images) → log-probabilities ``[batch, classes]``; make one with :func:`defend`.

    purifier: (keys, images) → (purified ``[restarts, batch, h, w, c]``, info).
    logits_fn: images → logits; applied to every restart's purified images.
    combine: how the restarts' logits become one prediction.
    """

    purifier: Any
    logits_fn: Any
    combine: Combine = static(default=mean_probabilities)

    @property
    def is_deterministic(self) -> bool:
        """Whether the purifier draws nothing, so that EOT and several draws would change nothing."""
        return is_deterministic(self.purifier)

    def with_restarts(self, num_restarts: int) -> "Defense":
        """The same with another number of noise restarts: one restart is a draw of what more would average.

        A purifier that draws nothing stays as it is. Raises InputError for fewer than one, and for a purifier
        without a ``num_restarts`` to change.
        """
        check_count("num_restarts", num_restarts)
        if self.is_deterministic:
            return self
        purifier: Any = self.purifier
        has_restarts = dataclasses.is_dataclass(purifier) and hasattr(purifier, "num_restarts")
        if not has_restarts:
            raise InputError(
                f"num_restarts: got {num_restarts} for {type(purifier).__name__}, expected a purifier that "
                "has a number of restarts"
            )
        return self.replace(purifier=dataclasses.replace(purifier, num_restarts=num_restarts))

    def __call__(self, keys: Keys, images: Array) -> Array:
        purified, _ = self.purifier(keys, images)
        return self.classify(purified)

    def classify(self, purified: Array) -> Array:
        """Log-probabilities ``[batch, classes]`` from the purified images of every restart."""
        flat = purified.reshape((-1, *purified.shape[2:]))
        logits = self.logits_fn(flat)
        if logits.ndim != 2:
            raise InputError(f"logits_fn: output shape {logits.shape}, expected [batch, classes]")
        return self.combine(logits.reshape(purified.shape[:2] + logits.shape[1:]))


def defend(purifier: Any, logits_fn: LogitsFn, combine: Combine = mean_probabilities) -> Defense:
    """Puts ``purifier`` before ``logits_fn``; the average of the softmax over restarts by default.

    Plain functions work for each; what they have closed over is constant in compiled programs.
    """
    return Defense(purifier=purifier, logits_fn=logits_fn, combine=combine)


def undefended(logits_fn: LogitsFn) -> Defense:
    """The bare classifier in the form of a defense, so that it is attacked by the same code."""
    return defend(identity, logits_fn)
