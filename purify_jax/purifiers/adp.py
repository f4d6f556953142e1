"""Adversarial purification: noise, a few adaptive steps along the score, several restarts.

The algorithm is ADP (Yoon, Hwang & Lee, ICML 2021, arXiv 2106.06041, sections 3.2 and 3.3).
With x₀ = clip(x + σn, 0, 1), n ~ N(0, I), and for t = 1..T:

    κ = −⟨s, J s⟩ / ⟨s, s⟩        (curvature of the energy along its score, at x)
    α = clip(λ / κ, α_min, α_max)  (one step size per image)
    x ← clip(x + α s(x), 0, 1)

An image stops for good once α ≤ τ. All S restarts are returned; averaging is the defense's.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from purify_jax.arrays import l2_norm, per_image
from purify_jax.checks import check_at_least, check_count
from purify_jax.keys import normal_like
from purify_jax.purifiers.loop import SteppedPurifier
from purify_jax.purifiers.step_rules import Adaptive, StepRule
from purify_jax.pytrees import pytree
from purify_jax.types import BOUNDS, Array, Keys, ScoreFn


@pytree
class PublishedPixelScaling:
    """See :func:`published_pixel_scaling`."""

    def before(self, images: Array) -> Array:
        """Once, after the noise."""
        return images * 255 / 256 + 1 / 512

    def after(self, images: Array) -> Array:
        """After every step."""
        return jnp.clip(images * 256 / 255 - 1 / 510, *BOUNDS)


def published_pixel_scaling() -> PublishedPixelScaling:
    """The quirk of the published code, for comparisons: x·255/256 + 1/512 once before the steps,
    but its inverse, x·256/255 − 1/510 (clipped to [0, 1]), after *every* step."""
    return PublishedPixelScaling()


@pytree
class ADP(SteppedPurifier):
    """A purifier along a score; make one with :func:`purifier`, vary it with ``replace``.

    Arrays and numbers (σ, λ, τ) are leaves: changing them compiles nothing.
    """

    score_fn: ScoreFn
    step_rule: Any
    noise_scale: Any
    stop_threshold: float
    pixel_scaling: Any

    def noised(self, keys: Keys, images: Array) -> Array:
        """x₀ = clip(x + σn, 0, 1) of one restart, in the steps' pixel scaling."""
        sigma = self.noise_scale(images) if callable(self.noise_scale) else self.noise_scale
        sigma = per_image(jnp.broadcast_to(jnp.asarray(sigma), images.shape[:1]), images)
        noisy = jnp.clip(images + sigma.astype(images.dtype) * normal_like(keys, images), *BOUNDS)
        return self.pixel_scaling.before(noisy) if self.pixel_scaling else noisy

    def start(self, keys: Keys, images: Array) -> Any:
        noisy = self.noised(keys, images)
        return noisy, jnp.ones(images.shape[0], bool), self.step_rule.init(noisy)

    def step(self, keys: Keys, carry: Any, index: Array) -> tuple[Any, tuple[Array, Array]]:
        images, active, state = carry
        score = self.score_fn(images)
        alpha, state = self.step_rule.step_size(self.score_fn, state, images, score)
        active = active & (alpha > self.stop_threshold)
        alpha = jnp.where(active, alpha, 0.0)
        images = jnp.clip(images + per_image(alpha, images) * score, *BOUNDS)
        if self.pixel_scaling:
            images = self.pixel_scaling.after(images)
        return (images, active, state), (alpha, l2_norm(score))


def purifier(
    score_fn: ScoreFn,
    step_rule: StepRule | None = None,
    *,
    num_steps: int = 10,
    noise_scale: float | Callable[[Array], Array] = 0.25,
    num_restarts: int = 10,
    stop_threshold: float = 1e-3,
    pixel_scaling: PublishedPixelScaling | None = None,
    restarts_at_once: int | None = None,
) -> ADP:
    """Adversarial purification along a score (ADP, arXiv 2106.06041, algorithm 1).

    Args:
      score_fn: images → same shape; raw network output or −∇E.
      step_rule: step sizes; the published :class:`Adaptive` rule by default.
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
    check_count("num_steps", num_steps)
    check_count("num_restarts", num_restarts)
    check_at_least("stop_threshold", stop_threshold, 0.0)
    if not callable(noise_scale):
        check_at_least("noise_scale", noise_scale, 0.0)
    if restarts_at_once is not None:
        check_count("restarts_at_once", restarts_at_once)
    return ADP(
        score_fn=score_fn,
        step_rule=Adaptive() if step_rule is None else step_rule,
        num_steps=num_steps,
        noise_scale=noise_scale,
        num_restarts=num_restarts,
        stop_threshold=stop_threshold,
        pixel_scaling=pixel_scaling,
        restarts_at_once=restarts_at_once,
    )
