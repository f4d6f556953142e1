"""Adversarial purification: noise, a few adaptive steps along the score, several restarts.

The algorithm is ADP (Yoon, Hwang & Lee, ICML 2021, arXiv 2106.06041, sections 3.2 and 3.3).
With x₀ = clip(x + σn, 0, 1), n ~ N(0, I), and for t = 1..T:

    κ = −⟨s, J s⟩ / ⟨s, s⟩        (curvature of the energy along its score, at x)
    α = clip(λ / κ, α_min, α_max)  (one step size per image)
    x ← clip(x + α s(x), 0, 1)

An image stops for good once α ≤ τ. All S restarts are returned; averaging is the defense's.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purify_jax.types import (
    BOUNDS,
    Array,
    Keys,
    PurifyInfo,
    ScoreFn,
    check_at_least,
    check_images,
    dot,
    fold_keys,
    l2_norm,
    normal_like,
    per_image,
)


class Curvature(NamedTuple):
    """An estimator of κ, as an ``init``/``estimate`` pair.

    init: images → state (whatever the next estimate needs).
    estimate: (score_fn, state, images, score) → (κ ``[batch]``, state).
    """

    init: Callable[[Array], Any]
    estimate: Callable[[ScoreFn, Any, Array, Array], tuple[Array, Any]]


class StepRule(NamedTuple):
    """A rule for step sizes: ``init`` images → state; ``step_size`` → (α ``[batch]``, state)."""

    init: Callable[[Array], Any]
    step_size: Callable[[ScoreFn, Any, Array, Array], tuple[Array, Any]]


def _safe_divide(numerator: Array, denominator: Array) -> Array:
    """a/b, and 0 with zero gradient where b is 0 (a score that vanishes has no direction)."""
    nonzero = denominator != 0
    return jnp.where(nonzero, numerator / jnp.where(nonzero, denominator, 1.0), 0.0)


def finite_difference(delta: float = 1e-3) -> Curvature:
    """κ from one more network call at x + δs, as published.

    The published code forms z = ⟨s, s(x+δs)⟩/⟨s, s⟩ and κ = (1 − z)/δ. The difference of the
    two scores is taken here before the inner product: the same number, with fewer digits lost.
    """

    def estimate(score_fn: ScoreFn, state: Any, images: Array, score: Array) -> tuple[Array, Any]:
        change = score_fn(images + delta * score) - score
        return -_safe_divide(dot(score, change), dot(score, score)) / delta, state

    return Curvature(lambda images: (), estimate)


def jacobian_vector_product() -> Curvature:
    """κ exactly, by forward-mode differentiation: the limit δ → 0.

    It costs three network calls a step to finite differences' two, because forward mode computes
    the score once more.
    """

    def estimate(score_fn: ScoreFn, state: Any, images: Array, score: Array) -> tuple[Array, Any]:
        _, change = jax.jvp(score_fn, (images,), (score,))
        return -_safe_divide(dot(score, change), dot(score, score)), state

    return Curvature(lambda images: (), estimate)


def secant(initial_curvature: float = 1.0) -> Curvature:
    """κ from the last two iterates, −⟨Δx, Δs⟩/⟨Δx, Δx⟩: no network call of its own.

    One step behind the other two: along Δx = αs of the last step. The first step, and any
    step after one that did not move, uses the last known curvature, at first
    ``initial_curvature`` (1 is the value of a score that is a displacement, ``per_variance``).
    """

    def init(images: Array) -> Any:
        curvature = jnp.full(images.shape[0], initial_curvature, images.dtype)
        return images, jnp.zeros_like(images), curvature

    def estimate(score_fn: ScoreFn, state: Any, images: Array, score: Array) -> tuple[Array, Any]:
        del score_fn
        last_images, last_score, last_curvature = state
        moved = images - last_images
        squared = dot(moved, moved)
        new = -_safe_divide(dot(moved, score - last_score), squared)
        curvature = jnp.where(squared > 0, new, last_curvature)
        return curvature, (images, score, curvature)

    return Curvature(init, estimate)


def adaptive(
    rate: float = 0.05,
    curvature: Curvature | None = None,
    min_step: float = 1e-5,
    max_step: float = 1e-1,
) -> StepRule:
    """α = clip(λ/κ, α_min, α_max) with λ = ``rate`` (ADP, equation 8); κ by finite difference.

    Where κ ≤ 0 (the energy is concave along the score) the quotient is negative and α is
    α_min, as in the published code; κ = 0 gives α_max.
    """
    check_at_least("rate", rate, 0.0)
    estimator = finite_difference() if curvature is None else curvature

    def step_size(score_fn: ScoreFn, state: Any, images: Array, score: Array) -> tuple[Array, Any]:
        kappa, state = estimator.estimate(score_fn, state, images, score)
        flat = kappa == 0
        quotient = jnp.where(flat, jnp.inf, rate / jnp.where(flat, 1.0, kappa))
        return jnp.clip(quotient, min_step, max_step), state

    return StepRule(estimator.init, step_size)


def constant(step_size: float) -> StepRule:
    """The same α for every image and step."""
    check_at_least("step_size", step_size, 0.0)

    def rule(score_fn: ScoreFn, state: Any, images: Array, score: Array) -> tuple[Array, Any]:
        return jnp.full(images.shape[0], step_size, images.dtype), state

    return StepRule(lambda images: (), rule)


def held_constant(rule: StepRule) -> StepRule:
    """The same step sizes, as constants in the backward pass (the published attack's gradient)."""

    def step_size(score_fn: ScoreFn, state: Any, images: Array, score: Array) -> tuple[Array, Any]:
        frozen = jax.lax.stop_gradient((images, score))
        alpha, state = rule.step_size(score_fn, state, *frozen)
        return jax.lax.stop_gradient((alpha, state))

    return StepRule(rule.init, step_size)


class PixelScaling(NamedTuple):
    """Maps around the steps: ``before`` once after the noise, ``after`` after every step."""

    before: Callable[[Array], Array]
    after: Callable[[Array], Array]


def published_pixel_scaling() -> PixelScaling:
    """The quirk of the published code, for comparisons: x·255/256 + 1/512 once before the steps,
    but its inverse, x·256/255 − 1/510 (clipped to [0, 1]), after *every* step."""
    return PixelScaling(
        before=lambda x: x * 255 / 256 + 1 / 512,
        after=lambda x: jnp.clip(x * 256 / 255 - 1 / 510, *BOUNDS),
    )


@dataclasses.dataclass(frozen=True)
class ScorePurifier:
    """A purifier along a score; make one with :func:`purifier`, vary it with ``replace``."""

    score_fn: ScoreFn
    step_rule: StepRule
    num_steps: int
    noise_scale: float | Callable[[Array], Array]
    num_restarts: int
    stop_threshold: float
    pixel_scaling: PixelScaling | None
    restarts_at_once: int | None

    def replace(self, **changes: Any) -> "ScorePurifier":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def __call__(self, keys: Keys, images: Array) -> tuple[Array, PurifyInfo]:
        """(keys ``[batch]``, images in [0, 1]) → (purified ``[restarts, batch, h, w, c]``, info).

        Raises InputError for images of wrong rank or type, or, outside jit, of wrong values.
        """
        check_images(images)
        restart = lambda r: self._one_restart(fold_keys(keys, r), images)
        indices = jnp.arange(self.num_restarts)
        if self.restarts_at_once is None or self.restarts_at_once >= self.num_restarts:
            purified, (sizes, norms), active = jax.vmap(restart)(indices)
        else:
            purified, (sizes, norms), active = jax.lax.map(
                restart, indices, batch_size=self.restarts_at_once
            )
        info = PurifyInfo(jnp.moveaxis(sizes, 1, 0), jnp.moveaxis(norms, 1, 0), active)
        return purified, info

    def noised(self, keys: Keys, images: Array) -> Array:
        """x₀ = clip(x + σn, 0, 1) of one restart, in the steps' pixel scaling."""
        sigma = self.noise_scale(images) if callable(self.noise_scale) else self.noise_scale
        sigma = per_image(jnp.broadcast_to(jnp.asarray(sigma), images.shape[:1]), images)
        noisy = jnp.clip(images + sigma.astype(images.dtype) * normal_like(keys, images), *BOUNDS)
        return self.pixel_scaling.before(noisy) if self.pixel_scaling else noisy

    def trajectory(self, keys: Keys, images: Array, restart: int = 0) -> Array:
        """All iterates of one restart, ``[T + 1, batch, h, w, c]``, from the noised images on."""
        carry = self._start(fold_keys(keys, restart), images)
        step = lambda carry, _: (new := self._step(carry)[0], new[0])
        _, iterates = jax.lax.scan(step, carry, length=self.num_steps)
        return jnp.concatenate([carry[0][None], iterates])

    def _start(self, keys: Keys, images: Array) -> tuple[Array, Array, Any]:
        noisy = self.noised(keys, images)
        return noisy, jnp.ones(images.shape[0], bool), self.step_rule.init(noisy)

    def _step(self, carry: tuple[Array, Array, Any]) -> tuple[Any, tuple[Array, Array]]:
        images, active, state = carry
        score = self.score_fn(images)
        alpha, state = self.step_rule.step_size(self.score_fn, state, images, score)
        active = active & (alpha > self.stop_threshold)
        alpha = jnp.where(active, alpha, 0.0)
        images = jnp.clip(images + per_image(alpha, images) * score, *BOUNDS)
        if self.pixel_scaling:
            images = self.pixel_scaling.after(images)
        return (images, active, state), (alpha, l2_norm(score))

    def _one_restart(self, keys: Keys, images: Array) -> tuple[Array, Any, Array]:
        # Each step is a checkpoint: the backward pass keeps the carried images only and computes
        # a network's activations again, so its memory does not grow with the network × T.
        step = jax.checkpoint(lambda carry, _: self._step(carry), prevent_cse=False)
        carry = self._start(keys, images)
        (images, _, _), (sizes, norms) = jax.lax.scan(step, carry, length=self.num_steps)
        return images, (sizes, norms), jnp.sum(sizes > 0, axis=0, dtype=jnp.int32)


def purifier(
    score_fn: ScoreFn,
    step_rule: StepRule | None = None,
    *,
    num_steps: int = 10,
    noise_scale: float | Callable[[Array], Array] = 0.25,
    num_restarts: int = 10,
    stop_threshold: float = 1e-3,
    pixel_scaling: PixelScaling | None = None,
    restarts_at_once: int | None = None,
) -> ScorePurifier:
    """Adversarial purification along a score (ADP, arXiv 2106.06041, algorithm 1).

    Args:
      score_fn: images → same shape; raw network output or −∇E.
      step_rule: step sizes; the published :func:`adaptive` rule by default.
      num_steps: T ≥ 1.
      noise_scale: σ ≥ 0 of the Gaussian noise before the steps, in units of a pixel's range,
        or a function images → σ ``[batch]`` (a detector's decision, say).
      num_restarts: S ≥ 1 independent noise draws.
      stop_threshold: τ; an image stops once its step size is ≤ τ. 0 means never.
      pixel_scaling: :func:`published_pixel_scaling` to compare with the published code.
      restarts_at_once: how many restarts are computed side by side; all by default. Fewer
        take less memory.

    Returns:
      a ``Purifier``: (keys, images) → (purified ``[S, batch, h, w, c]``, info).

    Raises InputError for zero steps or restarts, or a negative noise scale or threshold.
    """
    check_at_least("num_steps", num_steps, 1)
    check_at_least("num_restarts", num_restarts, 1)
    check_at_least("stop_threshold", stop_threshold, 0.0)
    if not callable(noise_scale):
        check_at_least("noise_scale", noise_scale, 0.0)
    if restarts_at_once is not None:
        check_at_least("restarts_at_once", restarts_at_once, 1)
    return ScorePurifier(
        score_fn=score_fn,
        step_rule=adaptive() if step_rule is None else step_rule,
        num_steps=int(num_steps),
        noise_scale=noise_scale,
        num_restarts=int(num_restarts),
        stop_threshold=stop_threshold,
        pixel_scaling=pixel_scaling,
        restarts_at_once=restarts_at_once,
    )


def identity(keys: Keys, images: Array) -> tuple[Array, PurifyInfo]:
    """The purifier that does nothing: one restart, zero steps. The undefended case."""
    del keys
    check_images(images)
    none = jnp.zeros((0, 1, images.shape[0]), images.dtype)
    return images[None], PurifyInfo(none, none, jnp.zeros((1, images.shape[0]), jnp.int32))
