"""Expectations over a defense's randomness: mean gradients, mean predictions, in chunks."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from purify_jax.checks import check_count
from purify_jax.keys import fold_keys
from purify_jax.pytrees import Pytree, static
from purify_jax.types import Array, GradientFn, Keys, PredictFn

T = TypeVar("T")
#: Draws side by side where ``samples_at_once`` is None.
AT_ONCE = 4


class EOT(Pytree):
    """Expectation over transformation: the mean gradient and mean loss over fresh draws.

    Athalye et al. 2018, arXiv 1707.07397. Draw i uses each image's key folded with i; a single sample is
    the inner gradient, with the keys as they are. Gradients are averaged, not signs.

    gradient: the gradient of one draw.
    num_samples: draws, ≥ 1.
    samples_at_once: draws computed side by side; the largest divisor of ``num_samples`` not above this is
      used. By default at most 4, fewer where memory asks. Memory grows with it, not with the draws.
    """

    gradient: GradientFn
    num_samples: int = static()
    samples_at_once: int | None = static(default=None)

    most_at_once = AT_ONCE

    def __post_init__(self) -> None:
        check_samples(self.num_samples, self.samples_at_once)

    def __call__(self, keys: Keys, images: Array, labels: Array) -> tuple[Array, Array]:
        if self.num_samples == 1:
            return self.gradient(keys, images, labels)
        one = lambda index: self.gradient(fold_keys(keys, index), images, labels)
        return mean_over(one, self.num_samples, self.samples_at_once)


class MeanPrediction(Pytree):
    """The mean log-probability over draws, for losses of the mean rather than mean losses.

    ``ExactGradient(MeanPrediction(defense, num_samples=n), margin)`` is the margin of the mean prediction,
    where ``EOT(ExactGradient(defense, margin), num_samples=n)`` is the mean margin. The backward pass
    recomputes each chunk, so memory grows with ``samples_at_once`` alone. The fields are those of
    :class:`EOT`.
    """

    defense: PredictFn
    num_samples: int = static()
    samples_at_once: int | None = static(default=None)

    most_at_once = AT_ONCE

    def __post_init__(self) -> None:
        check_samples(self.num_samples, self.samples_at_once)

    def __call__(self, keys: Keys, images: Array) -> Array:
        if self.num_samples == 1:
            return self.defense(keys, images)
        one = jax.checkpoint(lambda index: self.defense(fold_keys(keys, index), images))
        return mean_over(one, self.num_samples, self.samples_at_once)


def check_samples(num_samples: int, samples_at_once: int | None) -> None:
    """Raises InputError unless both are whole numbers ≥ 1 (``samples_at_once`` may be None)."""
    check_count("num_samples", num_samples)
    if samples_at_once is not None:
        check_count("samples_at_once", samples_at_once)


def largest_divisor(number: int, limit: int | None) -> int:
    """The largest divisor of ``number`` that is not above ``limit`` (:data:`AT_ONCE` for None)."""
    limit = max(1, min(AT_ONCE if limit is None else limit, number))
    return next(d for d in range(limit, 0, -1) if number % d == 0)


def mean_over(function: Callable[[Array], T], count: int, at_once: int | None) -> T:
    """The mean of ``function(i)`` over i < count: vmapped in chunks, accumulated by a scan."""
    chunk = largest_divisor(count, at_once)
    indices = jnp.arange(count).reshape(-1, chunk)
    add_up = lambda row: jax.tree.map(lambda a: jnp.sum(a, axis=0), jax.vmap(function)(row))
    if len(indices) == 1:
        total = add_up(indices[0])
    else:
        zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(add_up, indices[0]))
        body = lambda carry, row: (jax.tree.map(jnp.add, carry, add_up(row)), None)
        total, _ = jax.lax.scan(body, zero, indices)
    return jax.tree.map(lambda a: a / count, total)
