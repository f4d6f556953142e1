"""Step sizes along a score: estimates of the energy's curvature, and the rules that use them.

κ = −⟨s, J s⟩ / ⟨s, s⟩ is the Rayleigh quotient of the energy's Hessian along its score s; ADP's step
size is λ/κ (Yoon, Hwang & Lee 2021, arXiv 2106.06041, equation 8).
"""

from typing import Protocol

import jax
import jax.numpy as jnp

from purify_jax.arrays import dot, each
from purify_jax.checks import check_at_least, check_number
from purify_jax.pytrees import Pytree
from purify_jax.types import Array, Carry, ScoreFn


class Curvature(Protocol):
    """An estimator of κ, as an ``init``/``estimate`` pair; a pytree."""

    def init(self, images: Array) -> Carry:
        """Whatever the first estimate needs."""

    def estimate(
        self, score_fn: ScoreFn, state: Carry, images: Array, score: Array
    ) -> tuple[Array, Carry]:
        """(κ ``[batch]``, the next estimate's state)."""


class StepRule(Protocol):
    """A rule for step sizes, as an ``init``/``step_size`` pair; a pytree."""

    def init(self, images: Array) -> Carry:
        """Whatever the first step size needs."""

    def step_size(
        self, score_fn: ScoreFn, state: Carry, images: Array, score: Array
    ) -> tuple[Array, Carry]:
        """(α ``[batch]``, the next step's state)."""


def _safe_divide(numerator: Array, denominator: Array) -> Array:
    """a/b, and 0 with zero gradient where b is 0 (a score that vanishes has no direction)."""
    nonzero = denominator != 0
    return jnp.where(nonzero, numerator / jnp.where(nonzero, denominator, 1.0), 0.0)


class FiniteDifference(Pytree):
    """κ from one more network call at x + δs, as published.

    The published code forms z = ⟨s, s(x+δs)⟩/⟨s, s⟩ and κ = (1 − z)/δ. The difference of the
    two scores is taken here before the inner product: the same number, with fewer digits lost.
    Raises InputError unless δ > 0.
    """

    delta: float = 1e-3

    def __post_init__(self) -> None:
        check_number("delta", self.delta, 0.0, open_low=True)

    def init(self, images: Array) -> Carry:
        return ()

    def estimate(
        self, score_fn: ScoreFn, state: Carry, images: Array, score: Array
    ) -> tuple[Array, Carry]:
        change = score_fn(images + self.delta * score) - score
        return -_safe_divide(dot(score, change), dot(score, score)) / self.delta, state


class JacobianVectorProduct(Pytree):
    """κ exactly, by forward-mode differentiation: the limit δ → 0.

    It costs three network calls a step to finite differences' two, because forward mode computes
    the score once more.
    """

    def init(self, images: Array) -> Carry:
        return ()

    def estimate(
        self, score_fn: ScoreFn, state: Carry, images: Array, score: Array
    ) -> tuple[Array, Carry]:
        _, change = jax.jvp(score_fn, (images,), (score,))
        return -_safe_divide(dot(score, change), dot(score, score)), state


class Secant(Pytree):
    """κ from the last two iterates, −⟨Δx, Δs⟩/⟨Δx, Δx⟩: no network call of its own.

    One step behind the other two: along Δx = αs of the last step. The first step, and any
    step after one that did not move, uses the last known curvature, at first
    ``initial_curvature`` (1 is the value of a score that is a displacement, ``per_variance``).
    """

    initial_curvature: float = 1.0

    def __post_init__(self) -> None:
        check_number("initial_curvature", self.initial_curvature)

    def init(self, images: Array) -> Carry:
        curvature = each(images, self.initial_curvature)
        return images, jnp.zeros_like(images), curvature

    def estimate(
        self, score_fn: ScoreFn, state: Carry, images: Array, score: Array
    ) -> tuple[Array, Carry]:
        del score_fn
        last_images, last_score, last_curvature = state
        moved = images - last_images
        squared = dot(moved, moved)
        new = -_safe_divide(dot(moved, score - last_score), squared)
        curvature = jnp.where(squared > 0, new, last_curvature)
        return curvature, (images, score, curvature)


class Adaptive(Pytree):
    """α = clip(λ/κ, α_min, α_max) with λ = ``rate`` (ADP, equation 8); κ by finite difference.

    Where κ ≤ 0 (the energy is concave along the score) the quotient is negative and α is
    α_min, as in the published code; κ = 0 gives α_max.

    Raises InputError for a negative rate or step, or ``min_step > max_step``.
    """

    rate: float = 0.05
    curvature: Curvature = FiniteDifference()
    min_step: float = 1e-5
    max_step: float = 1e-1

    def __post_init__(self) -> None:
        check_at_least("rate", self.rate, 0.0)
        check_at_least("min_step", self.min_step, 0.0)
        check_at_least("max_step", self.max_step, self.min_step)

    def init(self, images: Array) -> Carry:
        return self.curvature.init(images)

    def step_size(
        self, score_fn: ScoreFn, state: Carry, images: Array, score: Array
    ) -> tuple[Array, Carry]:
        kappa, state = self.curvature.estimate(score_fn, state, images, score)
        flat = kappa == 0
        quotient = jnp.where(flat, jnp.inf, self.rate / jnp.where(flat, 1.0, kappa))
        return jnp.clip(quotient, self.min_step, self.max_step), state


class Constant(Pytree):
    """The same α = ``alpha`` ≥ 0 for every image and step."""

    alpha: float

    def __post_init__(self) -> None:
        check_at_least("alpha", self.alpha, 0.0)

    def init(self, images: Array) -> Carry:
        return ()

    def step_size(
        self, score_fn: ScoreFn, state: Carry, images: Array, score: Array
    ) -> tuple[Array, Carry]:
        return each(images, self.alpha), state


class HeldConstant(Pytree):
    """The step sizes of a rule, as constants in the backward pass (the published attack's gradient)."""

    rule: StepRule

    def init(self, images: Array) -> Carry:
        return self.rule.init(images)

    def step_size(
        self, score_fn: ScoreFn, state: Carry, images: Array, score: Array
    ) -> tuple[Array, Carry]:
        frozen = jax.lax.stop_gradient((images, score))
        alpha, state = self.rule.step_size(score_fn, state, *frozen)
        return jax.lax.stop_gradient((alpha, state))
