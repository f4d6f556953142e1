"""Adversarial purification: noise, a few adaptive steps along the score, several restarts."""

from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import TypeAlias

import chex
import jax.numpy as jnp

from purify_jax.arrays import each, l2_norm, per_image
from purify_jax.checks import check_at_least
from purify_jax.keys import normal_like
from purify_jax.purifiers.loop import SteppedPurifier
from purify_jax.purifiers.step_rules import Adaptive, StepRule
from purify_jax.pytrees import Pytree, static
from purify_jax.types import BOUNDS, Array, Carry, Keys, ScoreFn

#: Images → σ ``[batch]``.
NoiseScaleFn: TypeAlias = Callable[[Array], Array]


class PublishedPixelScaling(Pytree):
    """The quirk of the published code, for comparisons: x·255/256 + 1/512 once before the steps,
    but its inverse, x·256/255 − 1/510 (clipped to [0, 1]), after *every* step."""

    def before(self, images: Array) -> Array:
        """Once, after the noise."""
        return images * 255 / 256 + 1 / 512

    def after(self, images: Array) -> Array:
        """After every step."""
        return jnp.clip(images * 256 / 255 - 1 / 510, *BOUNDS)


class ADP(SteppedPurifier):
    """Adversarial purification along a score (Yoon, Hwang & Lee, ICML 2021, arXiv 2106.06041, algorithm 1).

    With x₀ = clip(x + σn, 0, 1), n ~ N(0, I), and for t = 1..T:

        κ = −⟨s, J s⟩ / ⟨s, s⟩        (curvature of the energy along its score, at x)
        α = clip(λ / κ, α_min, α_max)  (one step size per image)
        x ← clip(x + α s(x), 0, 1)

    An image stops for good once α ≤ τ. All S restarts are returned; the defense averages over them.
    Arrays and numbers (σ, λ, τ) are leaves: changing them does not trigger a recompile.

    score_fn: images → same shape; raw network output or −∇E.
    step_rule: step sizes; the published :class:`Adaptive` rule by default.
    num_steps: T ≥ 1.
    noise_scale: σ ≥ 0 of the Gaussian noise before the steps, in units of a pixel's range,
      or a function images → σ ``[batch]`` (the decision of a detector, for example).
    num_restarts: S ≥ 1 independent noise draws.
    stop_threshold: τ; an image stops once its step size is ≤ τ. 0 means never.
    pixel_scaling: :class:`PublishedPixelScaling` to compare with the published code.

    Raises InputError for zero steps or restarts, or a negative noise scale or threshold.
    """

    score_fn: ScoreFn
    step_rule: StepRule = Adaptive()
    _: KW_ONLY
    num_steps: int = static(default=10)
    noise_scale: float | NoiseScaleFn = 0.25
    num_restarts: int = static(default=10)
    stop_threshold: float = 1e-3
    pixel_scaling: PublishedPixelScaling | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("stop_threshold", self.stop_threshold, 0.0)
        if not callable(self.noise_scale):
            check_at_least("noise_scale", self.noise_scale, 0.0)

    def noised(self, keys: Keys, images: Array) -> Array:
        """x₀ = clip(x + σn, 0, 1) of one restart, in the steps' pixel scaling."""
        sigma = self.noise_scale(images) if callable(self.noise_scale) else self.noise_scale
        sigma = per_image(jnp.broadcast_to(jnp.asarray(sigma), images.shape[:1]), images)
        noisy = jnp.clip(images + sigma.astype(images.dtype) * normal_like(keys, images), *BOUNDS)
        return self.pixel_scaling.before(noisy) if self.pixel_scaling else noisy

    def start(self, keys: Keys, images: Array) -> Carry:
        noisy = self.noised(keys, images)
        return noisy, each(images, True, bool), self.step_rule.init(noisy)

    def step(self, keys: Keys, carry: Carry, index: Array) -> tuple[Carry, tuple[Array, Array]]:
        images, active, state = carry
        score = self.score_fn(images)
        chex.assert_equal_shape((images, score))
        alpha, state = self.step_rule.step_size(self.score_fn, state, images, score)
        active = active & (alpha > self.stop_threshold)
        alpha = jnp.where(active, alpha, 0.0)
        images = jnp.clip(images + per_image(alpha, images) * score, *BOUNDS)
        if self.pixel_scaling:
            images = self.pixel_scaling.after(images)
        return (images, active, state), (alpha, l2_norm(score))
