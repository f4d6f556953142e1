"""Purifiers that denoise along a ladder of noise levels: diffusions, and one-step denoising.

A score network here need not see σ; a ``NoiseScore`` (images, σ) → ∇log p_σ turns its output into the
score of the σ-smoothed data (``models.noise_score``). Every purifier starts from x in [0, 1] and ends
clipped to [0, 1].
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from purify_jax.checks import InputError, check_at_least, check_count, check_images, check_number
from purify_jax.keys import fold_keys, normal_like, stream
from purify_jax.purifiers.loop import SteppedPurifier, clip_to, step_info
from purify_jax.pytrees import Partial, pytree, static
from purify_jax.types import BOUNDS, Array, Keys, NoiseScore, ScoreFn


def _at_level(score: NoiseScore, sigma: Array, images: Array) -> Array:
    return score(images, sigma)


@pytree
class LadderPurifier(SteppedPurifier):
    """Noise of the first level, then one step after the other down the ladder.

    score: (images, σ) → ∇log p_σ.
    levels: σ₁ > σ₂ > … > 0, and a 0 at the end.
    """

    score: NoiseScore
    levels: Array
    bounds: tuple[float, float] | None = static(default=BOUNDS)

    @property
    def score_fn(self) -> ScoreFn:
        """The score at the smallest level: what the images' own density looks like."""
        return Partial(_at_level, self.score, jnp.min(self._positive()))

    def _positive(self) -> Array:
        return self.levels[:-1]

    def check(self, images: Array) -> None:
        if self.bounds is not None:
            check_images(images)

    def start(self, keys: Keys, images: Array) -> Any:
        return (images + self.levels[0] * normal_like(stream(keys, "start"), images),)

    def end(self, images: Array) -> Array:
        return clip_to(self.bounds, images)


@pytree
class Annealed(LadderPurifier):
    """See :func:`annealed`."""

    rate: float
    temperature: float
    steps_per_level: int = static(default=1)

    def step(self, keys: Keys, carry: Any, index: Array) -> tuple[Any, tuple[Array, Array]]:
        (x,) = carry
        sigma = self.levels[index // self.steps_per_level]
        size = self.rate * sigma**2
        direction = self.score(x, sigma)
        spread = jnp.sqrt(2 * size * self.temperature)
        moved = x + size * direction + spread * normal_like(fold_keys(keys, index), x)
        return (moved,), step_info(x, size, direction)


def annealed(
    score: NoiseScore,
    sigmas: Sequence[float],
    *,
    steps_per_level: int = 1,
    rate: float = 0.5,
    temperature: float = 0.0,
    num_restarts: int = 1,
) -> Annealed:
    """Annealed denoising: x ← x + ½a·s(x, σᵢ) + √(temperature·a)·n with a = 2·rate·σᵢ².

    Noise of σ₁ first, then ``steps_per_level`` steps at each level. Temperature 1 is annealed
    Langevin dynamics (Song & Ermon 2019, arXiv 1907.05600, algorithm 1); 0 only denoises.
    """
    check_count("steps_per_level", steps_per_level)
    check_at_least("rate", rate, 0.0)
    check_at_least("temperature", temperature, 0.0)
    return Annealed(
        **_ladder(score, sigmas, num_restarts, steps_per_level),
        rate=rate,
        temperature=temperature,
        steps_per_level=steps_per_level,
    )


@pytree
class ProbabilityFlow(LadderPurifier):
    """See :func:`probability_flow`."""

    def step(self, keys: Keys, carry: Any, index: Array) -> tuple[Any, tuple[Array, Array]]:
        (x,) = carry
        sigma, following = self.levels[index], self.levels[index + 1]
        direction = self.score(x, sigma)
        size = sigma * (sigma - following)
        return (x + size * direction,), step_info(x, size, direction)


def probability_flow(
    score: NoiseScore,
    sigmas: Sequence[float],
    *,
    num_restarts: int = 1,
    bounds: tuple[float, float] | None = BOUNDS,
) -> ProbabilityFlow:
    """Noise of σ₁, then the variance-exploding probability-flow ODE dx/dσ = −σ·s(x, σ) down to 0.

    Euler steps along ``sigmas`` (descending), the last one from the smallest level to 0 (Song et
    al. 2021, arXiv 2011.13456, equation 13; DiffPure's idea, Nie et al. 2022).
    """
    return ProbabilityFlow(**_ladder(score, sigmas, num_restarts), bounds=bounds)


def tweedie(score: NoiseScore, sigma: float, *, num_restarts: int = 1) -> ProbabilityFlow:
    """Noise of σ, then one step to the posterior mean, x + σ²·s(x, σ) (Robbins 1956; Efron 2011)."""
    return probability_flow(score, (sigma,), num_restarts=num_restarts)


@pytree
class OneDenoising(ProbabilityFlow):
    """See :func:`denoise`."""

    is_deterministic: bool = static(default=True)

    def start(self, keys: Keys, images: Array) -> Any:
        return (images,)


def denoise(score: NoiseScore, sigma: float) -> OneDenoising:
    """One step to the posterior mean, x + σ²·s(x, σ), of images that hold noise of σ already.

    Draws nothing. What stands before a classifier that is certified by smoothing with noise of σ (Salman
    et al. 2020, arXiv 2003.01908; Carlini et al. 2023, arXiv 2206.10550). Images without noise lose detail.
    """
    return OneDenoising(**_ladder(score, (sigma,), 1))


@pytree
class ReverseSDE(LadderPurifier):
    """See :func:`reverse_sde`."""

    def step(self, keys: Keys, carry: Any, index: Array) -> tuple[Any, tuple[Array, Array]]:
        (x,) = carry
        sigma, following = self.levels[index], self.levels[index + 1]
        direction = self.score(x, sigma)
        size = sigma**2 - following**2
        spread = following * jnp.sqrt(size) / sigma
        moved = x + size * direction + spread * normal_like(fold_keys(keys, index), x)
        return (moved,), step_info(x, size, direction)


def reverse_sde(
    score: NoiseScore,
    sigmas: Sequence[float],
    *,
    num_restarts: int = 1,
    bounds: tuple[float, float] | None = BOUNDS,
) -> ReverseSDE:
    """Noise of σ₁, then the variance-exploding reverse SDE by ancestral sampling, down to 0.

    x ← x + (σᵢ² − σᵢ₊₁²)·s(x, σᵢ) + σᵢ₊₁·√(σᵢ² − σᵢ₊₁²)/σᵢ·n (Song et al. 2021, appendix F,
    equation 47). DiffPure (Nie et al. 2022, arXiv 2205.07460) with the same score network.
    """
    return ReverseSDE(**_ladder(score, sigmas, num_restarts), bounds=bounds)


@pytree
class GradualNoise(LadderPurifier):
    """See :func:`gradual`; ``levels`` is a table, a row for each stage."""

    steps_per_stage: int = static(default=4)

    def _positive(self) -> Array:
        return self.levels[:, :-1]

    def start(self, keys: Keys, images: Array) -> Any:
        return (images,)

    def step(self, keys: Keys, carry: Any, index: Array) -> tuple[Any, tuple[Array, Array]]:
        (x,) = carry
        stage, inner = index // self.steps_per_stage, index % self.steps_per_stage
        sigma, following = self.levels[stage, inner], self.levels[stage, inner + 1]
        fresh = jnp.where(inner == 0, sigma, 0.0)
        x = x + fresh * normal_like(fold_keys(keys, index), x)
        direction = self.score(x, sigma)
        size = sigma * (sigma - following)
        return (x + size * direction,), step_info(x, size, direction)


def gradual(
    score: NoiseScore,
    stages: Sequence[float],
    *,
    smallest: float = 0.05,
    steps_per_stage: int = 4,
    num_restarts: int = 1,
) -> GradualNoise:
    """Gradual noise scheduling (Lee & Kim 2023, arXiv 2303.09051, section 5).

    One stage after the other, each with its own (usually growing) noise: noise of σ, then
    ``steps_per_stage`` probability-flow steps from σ to 0 in geometric progression down to
    ``smallest``.
    """
    check_number("smallest", smallest, 0.0, open_low=True)
    for stage in stages:
        check_at_least("stages", stage, smallest)
    check_count("steps_per_stage", steps_per_stage)
    check_count("num_restarts", num_restarts)
    if not stages:
        raise InputError("stages: got none, expected at least one noise scale")
    ladders = [jnp.append(jnp.geomspace(s, min(smallest, s), steps_per_stage), 0.0) for s in stages]
    return GradualNoise(
        score=score,
        levels=jnp.stack(ladders),
        num_steps=len(stages) * steps_per_stage,
        num_restarts=num_restarts,
        steps_per_stage=steps_per_stage,
    )


def _ladder(
    score: NoiseScore, sigmas: Sequence[float], num_restarts: int, steps_per_level: int = 1
) -> dict[str, Any]:
    check_count("num_restarts", num_restarts)
    for sigma in sigmas:
        check_number("sigmas", sigma)
    values = [float(s) for s in sigmas]
    descends = all(a > b for a, b in itertools.pairwise(values))
    if not values or not descends or not 0 < values[-1] <= values[0] < float("inf"):
        raise InputError(f"sigmas: got {values}, expected positive levels, largest first")
    return {
        "score": score,
        "levels": jnp.asarray([*values, 0.0], jnp.float32),
        "num_steps": len(values) * steps_per_level,
        "num_restarts": num_restarts,
    }
