"""Gradients an attacker may follow, from the exact one to those that look away.

Each factory returns a ``GradientFn``: (keys, images, labels) → (gradient, loss ``[batch]``).
The approximate ones are exact gradients of a changed defense, so that what is attacked stays
the deployed :class:`~purify_jax.defense.Defense`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from purify_jax.attacks.averages import largest_divisor, mean_over
from purify_jax.checks import InputError, check_at_least, check_count
from purify_jax.defense import Defense, undefended
from purify_jax.keys import fold_keys, stream
from purify_jax.losses import cross_entropy
from purify_jax.purifiers import ADP, HeldConstant, is_deterministic, score_of
from purify_jax.pytrees import pytree, static
from purify_jax.types import (
    Array,
    GradientFn,
    Keys,
    LogitsFn,
    LossFn,
    PredictFn,
    PurifyInfo,
    ScoreFn,
)


@pytree
class Exact:
    """See :func:`exact`."""

    defense: Any
    loss_fn: Any

    def __call__(self, keys: Keys, images: Array, labels: Array) -> tuple[Array, Array]:
        def total(x: Array) -> tuple[Array, Array]:
            loss = self.loss_fn(self.defense(keys, x), labels)
            return jnp.sum(loss), loss

        grads, loss = jax.grad(total, has_aux=True)(images)
        return grads, loss


def exact(defense: PredictFn, loss_fn: LossFn = cross_entropy) -> GradientFn:
    """The gradient through everything: noise, every step, the step sizes and the stopping mask."""
    return Exact(defense=defense, loss_fn=loss_fn)


def exact_held_steps(defense: Defense, loss_fn: LossFn = cross_entropy) -> GradientFn:
    """Exact, but with the step sizes as constants: what an attack misses that ignores them.

    Raises InputError unless the defense's purifier has a step rule (ADP).
    """
    purifier = defense.purifier
    if not isinstance(purifier, ADP):
        raise InputError(
            f"defense: its purifier is a {type(purifier).__name__}, expected one with a step rule (ADP)"
        )
    held = purifier.replace(step_rule=HeldConstant(purifier.step_rule))
    return exact(defense.replace(purifier=held), loss_fn)


@pytree
class IdentityBackward:
    """See :func:`identity_backward`."""

    purifier: Any

    @property
    def score_fn(self) -> ScoreFn | None:
        """The purifier's own."""
        return score_of(self.purifier)

    @property
    def is_deterministic(self) -> bool:
        """As the purifier."""
        return is_deterministic(self.purifier)

    def __call__(self, keys: Keys, images: Array) -> tuple[Array, PurifyInfo]:
        return _straight_through(self.purifier, keys, images)


@jax.custom_vjp
def _straight_through(purifier: Any, keys: Keys, images: Array) -> tuple[Array, PurifyInfo]:
    return purifier(keys, images)


def _forward(purifier: Any, keys: Keys, images: Array) -> tuple[tuple[Array, PurifyInfo], None]:
    return purifier(keys, images), None


def _backward(_: None, cotangents: tuple[Array, PurifyInfo]) -> tuple[None, None, Array]:
    # The parameters are the defender's; nobody differentiates with respect to them here.
    return None, None, jnp.sum(cotangents[0], axis=0)


_straight_through.defvjp(_forward, _backward)


def identity_backward(purifier: Any) -> IdentityBackward:
    """The same purifier, whose backward pass pretends it were the identity (BPDA).

    Athalye, Carlini & Wagner 2018, arXiv 1802.00420, section 4.1. The forward value is the
    purifier's own.
    """
    return IdentityBackward(purifier=purifier)


def bpda(defense: Defense, loss_fn: LossFn = cross_entropy) -> GradientFn:
    """Backward-pass differentiable approximation: the purifier's Jacobian taken as the identity."""
    return exact(defense.replace(purifier=identity_backward(defense.purifier)), loss_fn)


def blind(logits_fn: LogitsFn, loss_fn: LossFn = cross_entropy) -> GradientFn:
    """The bare classifier's gradient: an attacker who does not know of the purifier (transfer)."""
    return exact(undefended(logits_fn), loss_fn)


@pytree
class JointScore:
    """See :func:`joint_score`."""

    score_fn: Any
    classifier_gradient: Any

    def __call__(self, keys: Keys, images: Array, labels: Array) -> tuple[Array, Array]:
        grads, loss = self.classifier_gradient(keys, images, labels)
        return 0.5 * (jnp.sign(grads) + jnp.sign(self.score_fn(images))), loss


def joint_score(
    score_fn: ScoreFn, logits_fn: LogitsFn, loss_fn: LossFn = cross_entropy
) -> GradientFn:
    """Joint attack (score): mean of sign(classifier gradient) and sign(s(x)) (ADP, section 4.1).

    Climbs the purifier's own score, towards images that purification leaves where they are.
    """
    return JointScore(score_fn=score_fn, classifier_gradient=blind(logits_fn, loss_fn))


@pytree
class JointFull:
    """See :func:`joint_full`."""

    purifier: Any
    classifier_gradient: Any

    def __call__(self, keys: Keys, images: Array, labels: Array) -> tuple[Array, Array]:
        grads, loss = self.classifier_gradient(keys, images, labels)
        purified, _ = self.purifier(keys, images)
        displacement = jnp.mean(purified, axis=0) - images
        return 0.5 * (jnp.sign(grads) + jnp.sign(displacement)), loss


def joint_full(defense: Defense, loss_fn: LossFn = cross_entropy) -> GradientFn:
    """Joint attack (full): mean of sign(classifier gradient at the purified image) and
    sign(purified − x) (ADP, section 4.1); restarts are averaged in both."""
    return JointFull(purifier=defense.purifier, classifier_gradient=bpda(defense, loss_fn))


@pytree
class SPSA:
    """See :func:`spsa`."""

    defense: Any
    loss_fn: Any
    delta: float
    num_directions: int = static()
    directions_at_once: int = static()

    def __call__(self, keys: Keys, images: Array, labels: Array) -> tuple[Array, Array]:
        # The directions have a stream of their own: folding the same integers into the same keys
        # as the defense's restarts do would make direction i the sign of restart i's noise.
        direction_keys = stream(keys, "direction")
        predict_keys = stream(keys, "value")

        def one(index: Array) -> tuple[Array, Array]:
            draw = lambda key: jax.random.rademacher(key, images.shape[1:], images.dtype)
            direction = jax.vmap(draw)(fold_keys(direction_keys, index))
            value = lambda x: self.loss_fn(self.defense(predict_keys, x), labels)
            above = value(images + self.delta * direction)
            below = value(images - self.delta * direction)
            slope = (above - below) / (2 * self.delta)
            slopes = slope.reshape((-1,) + (1,) * (images.ndim - 1))
            return slopes * direction, 0.5 * (above + below)

        return mean_over(one, self.num_directions, self.directions_at_once)


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
    check_count("num_queries", num_queries, 2)
    check_at_least("delta", delta, 1e-12)
    check_count("queries_at_once", queries_at_once)
    return SPSA(
        defense=defense,
        loss_fn=loss_fn,
        delta=delta,
        num_directions=num_queries // 2,
        directions_at_once=largest_divisor(num_queries // 2, max(1, queries_at_once // 2)),
    )
