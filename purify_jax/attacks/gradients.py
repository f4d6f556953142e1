"""Gradients an attacker may follow, from the exact one to those that look away.

Each factory returns a ``GradientFn``: (keys, images, labels) → (gradient, loss ``[batch]``).
The approximate ones are exact gradients of a changed defense, so that what is attacked stays
the deployed :class:`~purify_jax.defense.Defense`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from purify_jax.defense import Defense, undefended
from purify_jax.losses import cross_entropy
from purify_jax.purification import ScorePurifier, held_constant
from purify_jax.types import (
    Array,
    GradientFn,
    InputError,
    Keys,
    LogitsFn,
    LossFn,
    PredictFn,
    Purifier,
    PurifyInfo,
    ScoreFn,
    check_at_least,
    fold_keys,
)


def exact(defense: PredictFn, loss_fn: LossFn = cross_entropy) -> GradientFn:
    """The gradient through everything: noise, every step, the step sizes and the stopping mask."""

    def gradient(keys: Keys, images: Array, labels: Array) -> tuple[Array, Array]:
        def total(x: Array) -> tuple[Array, Array]:
            loss = loss_fn(defense(keys, x), labels)
            return jnp.sum(loss), loss

        grads, loss = jax.grad(total, has_aux=True)(images)
        return grads, loss

    return gradient


def exact_held_steps(defense: Defense, loss_fn: LossFn = cross_entropy) -> GradientFn:
    """Exact, but with the step sizes as constants: what an attack misses that ignores them.

    Raises InputError unless the defense's purifier is a ``ScorePurifier``.
    """
    purifier = _score_purifier(defense)
    held = purifier.replace(step_rule=held_constant(purifier.step_rule))
    return exact(defense.replace(purifier=held), loss_fn)


def identity_backward(purifier: Purifier) -> Purifier:
    """The same purifier, whose backward pass pretends it were the identity (BPDA).

    Athalye, Carlini & Wagner 2018, arXiv 1802.00420, section 4.1. The forward value is the
    purifier's own.
    """

    @jax.custom_vjp
    def straight_through(keys: Keys, images: Array) -> tuple[Array, PurifyInfo]:
        return purifier(keys, images)

    def forward(keys: Keys, images: Array) -> tuple[tuple[Array, PurifyInfo], None]:
        return purifier(keys, images), None

    def backward(_: None, cotangents: tuple[Array, PurifyInfo]) -> tuple[None, Array]:
        return None, jnp.sum(cotangents[0], axis=0)

    straight_through.defvjp(forward, backward)
    return straight_through


def bpda(defense: Defense, loss_fn: LossFn = cross_entropy) -> GradientFn:
    """Backward-pass differentiable approximation: the purifier's Jacobian taken as the identity."""
    return exact(defense.replace(purifier=identity_backward(defense.purifier)), loss_fn)


def blind(logits_fn: LogitsFn, loss_fn: LossFn = cross_entropy) -> GradientFn:
    """The bare classifier's gradient: an attacker who does not know of the purifier (transfer)."""
    return exact(undefended(logits_fn), loss_fn)


def joint_score(
    score_fn: ScoreFn, logits_fn: LogitsFn, loss_fn: LossFn = cross_entropy
) -> GradientFn:
    """Joint attack (score): mean of sign(classifier gradient) and sign(s(x)) (ADP, section 4.1).

    Climbs the purifier's own score, towards images that purification leaves where they are.
    """
    classifier_gradient = blind(logits_fn, loss_fn)

    def gradient(keys: Keys, images: Array, labels: Array) -> tuple[Array, Array]:
        grads, loss = classifier_gradient(keys, images, labels)
        return 0.5 * (jnp.sign(grads) + jnp.sign(score_fn(images))), loss

    return gradient


def joint_full(defense: Defense, loss_fn: LossFn = cross_entropy) -> GradientFn:
    """Joint attack (full): mean of sign(classifier gradient at the purified image) and
    sign(purified − x) (ADP, section 4.1); restarts are averaged in both."""
    classifier_gradient = bpda(defense, loss_fn)

    def gradient(keys: Keys, images: Array, labels: Array) -> tuple[Array, Array]:
        grads, loss = classifier_gradient(keys, images, labels)
        purified, _ = defense.purifier(keys, images)
        displacement = jnp.mean(purified, axis=0) - images
        return 0.5 * (jnp.sign(grads) + jnp.sign(displacement)), loss

    return gradient


def spsa(
    defense: PredictFn,
    loss_fn: LossFn = cross_entropy,
    *,
    num_queries: int = 128,
    delta: float = 0.01,
    queries_at_once: int = 32,
) -> GradientFn:
    """Simultaneous perturbation stochastic approximation: a gradient from forward passes alone.

    g = mean over v of (L(x + δv) − L(x − δv)) / 2δ · v with v ∈ {−1, 1}^d (Spall 1992; Uesato et
    al. 2018, arXiv 1802.05666). Both sides share the defense's keys, which lowers the variance.
    ``num_queries`` is the number of loss values, two for each direction v.
    """
    check_at_least("num_queries", num_queries, 2)
    directions = num_queries // 2

    def gradient(keys: Keys, images: Array, labels: Array) -> tuple[Array, Array]:
        def one(index: Array) -> tuple[Array, Array]:
            draw = lambda key: jax.random.rademacher(key, images.shape[1:], images.dtype)
            direction = jax.vmap(draw)(fold_keys(keys, index))
            above = loss_fn(defense(keys, images + delta * direction), labels)
            below = loss_fn(defense(keys, images - delta * direction), labels)
            slope = (above - below) / (2 * delta)
            return slope.reshape((-1,) + (1,) * (images.ndim - 1)) * direction, 0.5 * (
                above + below
            )

        return _mean_over(one, directions, max(1, queries_at_once // 2))

    return gradient


def eot(gradient: GradientFn, num_samples: int, samples_at_once: int | None = None) -> GradientFn:
    """Expectation over transformation: the mean gradient and mean loss over fresh draws.

    Athalye et al. 2018, arXiv 1707.07397. Draw i uses each image's key folded with i; a single
    sample is the gradient itself, with the keys as they are. Gradients are averaged, not signs.

    Args:
      gradient: the gradient of one draw.
      num_samples: draws, ≥ 1.
      samples_at_once: draws computed side by side; the largest divisor of ``num_samples`` not
        above this is used (all of them by default). Memory grows with it, not with the draws.
    """
    check_at_least("num_samples", num_samples, 1)
    if num_samples == 1:
        return gradient

    def averaged(keys: Keys, images: Array, labels: Array) -> tuple[Array, Array]:
        one = lambda index: gradient(fold_keys(keys, index), images, labels)
        return _mean_over(one, num_samples, samples_at_once)

    return averaged


def average_draws(
    defense: PredictFn, num_samples: int, samples_at_once: int | None = None
) -> PredictFn:
    """The mean log-probability over draws, for losses of the mean rather than mean losses.

    ``exact(average_draws(defense, n), margin)`` is the margin of the mean prediction, where
    ``eot(exact(defense, margin), n)`` is the mean margin. The backward pass recomputes each
    chunk, so memory grows with ``samples_at_once`` alone.
    """
    check_at_least("num_samples", num_samples, 1)
    if num_samples == 1:
        return defense

    def predict(keys: Keys, images: Array) -> Array:
        one = jax.checkpoint(lambda index: defense(fold_keys(keys, index), images))
        return _mean_over(one, num_samples, samples_at_once)

    return predict


def _largest_divisor(number: int, limit: int | None) -> int:
    limit = number if limit is None else max(1, min(limit, number))
    return next(d for d in range(limit, 0, -1) if number % d == 0)


def _mean_over(function: Callable, count: int, at_once: int | None):
    """The mean of ``function(i)`` over i < count: vmapped in chunks, accumulated by a scan."""
    chunk = _largest_divisor(count, at_once)
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


def _score_purifier(defense: Defense) -> ScorePurifier:
    if not isinstance(defense.purifier, ScorePurifier):
        raise InputError(
            f"defense: its purifier is a {type(defense.purifier).__name__}, expected a ScorePurifier"
        )
    return defense.purifier
