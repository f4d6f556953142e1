"""Gradients an attacker may follow, from the exact one to those that look away.

Each is a ``GradientFn``: (keys, images, labels) → (gradient, loss ``[batch]``). The approximate ones are
exact gradients of a changed defense, so that what is attacked stays the deployed
:class:`~purify_jax.defense.Defense`.
"""

from collections.abc import Callable
from dataclasses import KW_ONLY

import jax
import jax.numpy as jnp

from purify_jax.arrays import per_image
from purify_jax.attacks.averages import mean_over
from purify_jax.attacks.norms import get
from purify_jax.checks import InputError, check_at_least, check_count
from purify_jax.defense import Defense, undefended
from purify_jax.keys import draw_each, fold_keys, signs, stream
from purify_jax.losses import cross_entropy
from purify_jax.purifiers import ADP, HeldConstant
from purify_jax.purifiers.loop import WrappedPurifier
from purify_jax.pytrees import Pytree, static
from purify_jax.types import (
    Array,
    Keys,
    LogitsFn,
    LossFn,
    PredictFn,
    PurifyFn,
    PurifyInfo,
    ScoreFn,
)


class ExactGradient(Pytree):
    """The gradient through everything: noise, every step, the step sizes and the stopping mask.

    defense: (keys, images) → log-probabilities. loss_fn: (log-probabilities, labels) → loss ``[batch]``.
    """

    defense: PredictFn
    loss_fn: LossFn = cross_entropy

    def __call__(self, keys: Keys, images: Array, labels: Array) -> tuple[Array, Array]:
        return loss_gradient(lambda x: self.loss_fn(self.defense(keys, x), labels), images)


def loss_gradient(loss_of: Callable[[Array], Array], at: Array) -> tuple[Array, Array]:
    """(the gradient of each image's loss, the losses) of a function that returns one loss per image."""

    def total(x: Array) -> tuple[Array, Array]:
        loss = loss_of(x)
        return jnp.sum(loss), loss

    return jax.grad(total, has_aux=True)(at)


def exact_held_steps(defense: Defense, loss_fn: LossFn = cross_entropy) -> ExactGradient:
    """Exact, but with the step sizes as constants: what an attack misses that ignores them.

    Raises InputError unless the defense's purifier has a step rule (ADP).
    """
    purifier = defense.purifier
    if not isinstance(purifier, ADP):
        raise InputError(
            f"defense: its purifier is a {type(purifier).__name__}, expected one with a step rule (ADP)"
        )
    held = purifier.replace(step_rule=HeldConstant(purifier.step_rule))
    return ExactGradient(defense.replace(purifier=held), loss_fn)


class IdentityBackward(WrappedPurifier):
    """The same purifier, whose backward pass pretends it were the identity (BPDA).

    Athalye, Carlini & Wagner 2018, arXiv 1802.00420, section 4.1. The forward value is the purifier's own.
    """

    def __call__(self, keys: Keys, images: Array) -> tuple[Array, PurifyInfo]:
        return _straight_through(self.purifier, keys, images)


@jax.custom_vjp
def _straight_through(purifier: PurifyFn, keys: Keys, images: Array) -> tuple[Array, PurifyInfo]:
    return purifier(keys, images)


def _forward(
    purifier: PurifyFn, keys: Keys, images: Array
) -> tuple[tuple[Array, PurifyInfo], None]:
    return purifier(keys, images), None


def _backward(_: None, cotangents: tuple[Array, PurifyInfo]) -> tuple[None, None, Array]:
    # An attack differentiates with respect to the images alone, not to the parameters or keys.
    return None, None, jnp.sum(cotangents[0], axis=0)


_straight_through.defvjp(_forward, _backward)


def bpda(defense: Defense, loss_fn: LossFn = cross_entropy) -> ExactGradient:
    """Backward-pass differentiable approximation: the purifier's Jacobian taken as the identity."""
    return ExactGradient(defense.replace(purifier=IdentityBackward(defense.purifier)), loss_fn)


def blind(logits_fn: LogitsFn, loss_fn: LossFn = cross_entropy) -> ExactGradient:
    """The bare classifier's gradient: an attack without knowledge of the purifier (transfer)."""
    return ExactGradient(undefended(logits_fn), loss_fn)


class JointScore(Pytree):
    """Joint attack (score): mean of sign(classifier gradient) and sign(s(x)) (ADP, section 4.1).

    Climbs the purifier's own score, towards images that purification leaves where they are.

    norm: of the attack that follows it. L1 needs to know which pixels matter most, so there each of the two
      is divided by its mean magnitude in place of its sign.
    """

    score_fn: ScoreFn
    logits_fn: LogitsFn
    loss_fn: LossFn = cross_entropy
    norm: str = static(default="linf")

    def __post_init__(self) -> None:
        self.fill(norm=get(self.norm).name)

    def __call__(self, keys: Keys, images: Array, labels: Array) -> tuple[Array, Array]:
        grads, loss = blind(self.logits_fn, self.loss_fn)(keys, images, labels)
        return _mean_direction(self.norm, grads, self.score_fn(images)), loss


class JointFull(Pytree):
    """Joint attack (full): mean of sign(classifier gradient at the purified image) and
    sign(purified − x) (ADP, section 4.1); restarts are averaged in both.

    norm: as in :class:`JointScore`.
    """

    defense: Defense
    loss_fn: LossFn = cross_entropy
    norm: str = static(default="linf")

    def __post_init__(self) -> None:
        self.fill(norm=get(self.norm).name)

    def __call__(self, keys: Keys, images: Array, labels: Array) -> tuple[Array, Array]:
        purified, _ = self.defense.purifier(keys, images)
        grads, loss = at_purified(self.defense, self.loss_fn, purified, labels)
        displacement = jnp.mean(purified, axis=0) - images
        return _mean_direction(self.norm, grads, displacement), loss


def _mean_direction(norm: str, first: Array, second: Array) -> Array:
    """The mean of two directions that count alike."""
    size = lambda x: per_image(jnp.mean(jnp.abs(x), axis=(1, 2, 3)), x)
    alike = lambda x: x / jnp.maximum(size(x), 1e-30) if norm == "l1" else jnp.sign(x)
    return 0.5 * (alike(first) + alike(second))


def at_purified(
    defense: Defense, loss_fn: LossFn, purified: Array, labels: Array
) -> tuple[Array, Array]:
    """(gradient with respect to ``purified [restarts, batch, h, w, c]``, summed over restarts; loss).

    Taken as the gradient with respect to the images, it is that of :func:`bpda`.
    """
    grads, loss = loss_gradient(lambda x: loss_fn(defense.classify(x), labels), purified)
    return jnp.sum(grads, axis=0), loss


class SPSA(Pytree):
    """Simultaneous perturbation stochastic approximation: a gradient from forward passes alone.

    g = mean over v of (L(x + δv) − L(x − δv)) / 2δ · v with v ∈ {−1, 1}^d (Spall 1992; Uesato et al. 2018,
    arXiv 1802.05666). Both sides share the defense's keys, which lowers the variance.

    delta: δ > 0.
    num_queries: number of loss values ≥ 2, two for each direction v.
    queries_at_once: how many of them are computed side by side.
    """

    defense: PredictFn
    loss_fn: LossFn = cross_entropy
    _: KW_ONLY
    delta: float = 0.01
    num_queries: int = static(default=128)
    queries_at_once: int = static(default=32)

    def __post_init__(self) -> None:
        check_count("num_queries", self.num_queries, 2)
        check_at_least("delta", self.delta, 1e-12)
        check_count("queries_at_once", self.queries_at_once)

    def __call__(self, keys: Keys, images: Array, labels: Array) -> tuple[Array, Array]:
        # The directions have a stream of their own: folding the same integers into the same keys
        # as the defense's restarts do would make direction i the sign of restart i's noise.
        direction_keys = stream(keys, "direction")
        predict_keys = stream(keys, "value")

        def one(index: Array) -> tuple[Array, Array]:
            draw = lambda key: signs(key, images.shape[1:], images.dtype)
            direction = draw_each(draw, fold_keys(direction_keys, index))
            value = lambda x: self.loss_fn(self.defense(predict_keys, x), labels)
            above = value(images + self.delta * direction)
            below = value(images - self.delta * direction)
            slope = (above - below) / (2 * self.delta)
            return per_image(slope, images) * direction, 0.5 * (above + below)

        return mean_over(one, self.num_queries // 2, max(1, self.queries_at_once // 2))
