"""Expectations over a defense's randomness: mean gradients, mean predictions, in chunks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from purify_jax.checks import check_count
from purify_jax.keys import fold_keys
from purify_jax.pytrees import as_pytree, pytree, static
from purify_jax.types import Array, GradientFn, Keys, PredictFn

#: Draws side by side where ``samples_at_once`` is None.
AT_ONCE = 4


@pytree
class MeanGradient:
    """See :func:`eot`."""

    gradient: Any
    num_samples: int = static()
    samples_at_once: int | None = static(default=None)

    most_at_once = AT_ONCE

    def __call__(self, keys: Keys, images: Array, labels: Array) -> tuple[Array, Array]:
        one = lambda index: self.gradient(fold_keys(keys, index), images, labels)
        return mean_over(one, self.num_samples, self.samples_at_once)


def eot(gradient: GradientFn, num_samples: int, samples_at_once: int | None = None) -> GradientFn:
    """Expectation over transformation: the mean gradient and mean loss over fresh draws.

    Athalye et al. 2018, arXiv 1707.07397. Draw i uses each image's key folded with i; a single
    sample is the gradient itself, with the keys as they are. Gradients are averaged, not signs.

    Args:
      gradient: the gradient of one draw.
      num_samples: draws, ≥ 1.
      samples_at_once: draws computed side by side; the largest divisor of ``num_samples`` not
        above this is used. By default at most 4, fewer where memory asks. Memory grows with it, not
        with the draws.
    """
    check_count("num_samples", num_samples)
    if samples_at_once is not None:
        check_count("samples_at_once", samples_at_once)
    gradient = as_pytree(gradient)
    if num_samples == 1:
        return gradient
    return MeanGradient(gradient=gradient, num_samples=num_samples, samples_at_once=samples_at_once)


@pytree
class MeanPrediction:
    """See :func:`average_draws`."""

    defense: Any
    num_samples: int = static()
    samples_at_once: int | None = static(default=None)

    most_at_once = AT_ONCE

    def __call__(self, keys: Keys, images: Array) -> Array:
        one = jax.checkpoint(lambda index: self.defense(fold_keys(keys, index), images))
        return mean_over(one, self.num_samples, self.samples_at_once)


def average_draws(
    defense: PredictFn, num_samples: int, samples_at_once: int | None = None
) -> PredictFn:
    """The mean log-probability over draws, for losses of the mean rather than mean losses.

    ``exact(average_draws(defense, n), margin)`` is the margin of the mean prediction, where
    ``eot(exact(defense, margin), n)`` is the mean margin. The backward pass recomputes each
    chunk, so memory grows with ``samples_at_once`` alone.
    """
    check_count("num_samples", num_samples)
    defense = as_pytree(defense)
    if num_samples == 1:
        return defense
    return MeanPrediction(defense=defense, num_samples=num_samples, samples_at_once=samples_at_once)


def largest_divisor(number: int, limit: int | None) -> int:
    """The largest divisor of ``number`` that is not above ``limit`` (:data:`AT_ONCE` for None)."""
    limit = max(1, min(AT_ONCE if limit is None else limit, number))
    return next(d for d in range(limit, 0, -1) if number % d == 0)


def mean_over(function: Callable, count: int, at_once: int | None) -> Any:
    """The mean of ``function(i)`` over i < count: vmapped in chunks, accumulated by a scan."""
    chunk = largest_divisor(count, at_once)
    indices = jnp.arange(count).reshape(-1, chunk)
    add_up = lambda row: jax.tree.map(lambda a: jnp.sum(a, axis=0), jax.vmap(function)(row))
    if len(indices) == 1:
        total = add_up(indices[0])
    else:
        zero = jax.tree.map(
            lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(add_up, indices[0])
        )
        body = lambda carry, row: (jax.tree.map(jnp.add, carry, add_up(row)), None)
        total, _ = jax.lax.scan(body, zero, indices)
    return jax.tree.map(lambda a: a / count, total)
