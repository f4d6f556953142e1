"""Purifiers that denoise down a ladder of noise levels, and one-step denoising.

A score network here need not see σ; a ``NoiseScore`` (images, σ) → ∇log p_σ turns its output into the
score of the σ-smoothed data (``models.noise_score``). Every purifier starts from x in [0, 1] and ends
clipped to [0, 1].
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY

import jax
import jax.numpy as jnp
import numpy as np

from purify_jax.checks import (
    InputError,
    check_at_least,
    check_count,
    check_number,
    is_traced,
    shown,
)
from purify_jax.diffusions import ScoreAt
from purify_jax.keys import fold_keys, normal_like, stream
from purify_jax.purifiers.loop import ClippedPurifier, step_info
from purify_jax.pytrees import static
from purify_jax.types import Array, Carry, Keys, NoiseScore, ScoreFn


class LadderPurifier(ClippedPurifier):
    """Noise of the first level, then one step for each level.

    score: (images, σ) → ∇log p_σ.
    sigmas: the levels σ₁ > σ₂ > … > 0; another ladder of the same length does not recompile.

    Raises InputError for levels that are not positive, or not in descending order.
    """

    score: NoiseScore
    sigmas: Sequence[float] | Sequence[Sequence[float]] | Array
    num_steps: int = static(init=False)
    rank = 1

    def __post_init__(self) -> None:
        self.fill(sigmas=_ladder(self.sigmas, self.rank))
        self.fill(num_steps=self.count_steps())
        super().__post_init__()

    def count_steps(self) -> int:
        """T, of the levels' number."""
        return int(np.size(self.sigmas))

    @property
    def levels(self) -> Array:
        """The levels, and a 0 at the end of each ladder."""
        sigmas = jnp.asarray(self.sigmas)
        return jnp.pad(sigmas, [(0, 0)] * (sigmas.ndim - 1) + [(0, 1)])

    @property
    def score_fn(self) -> ScoreFn:
        """The score at the smallest level: what the images' own density looks like."""
        return ScoreAt(self.score, jnp.min(jnp.asarray(self.sigmas)))

    def start(self, keys: Keys, images: Array) -> Carry:
        return (images + self.levels[0] * normal_like(stream(keys, "start"), images),)


class Annealed(LadderPurifier):
    """Annealed denoising: x ← x + ½a·s(x, σᵢ) + √(temperature·a)·n with a = 2·rate·σᵢ².

    Noise of σ₁ first, then ``steps_per_level`` steps at each level. Temperature 1 is annealed
    Langevin dynamics (Song & Ermon 2019, arXiv 1907.05600, algorithm 1); 0 only denoises.
    """

    _: KW_ONLY
    rate: float = 0.5
    temperature: float = 0.0
    steps_per_level: int = static(default=1)

    def __post_init__(self) -> None:
        check_count("steps_per_level", self.steps_per_level)
        check_at_least("rate", self.rate, 0.0)
        check_at_least("temperature", self.temperature, 0.0)
        super().__post_init__()

    def count_steps(self) -> int:
        return super().count_steps() * self.steps_per_level

    def step(self, keys: Keys, carry: Carry, index: Array) -> tuple[Carry, tuple[Array, Array]]:
        (x,) = carry
        sigma = self.levels[index // self.steps_per_level]
        size = self.rate * sigma**2
        direction = self.score(x, sigma)
        spread = jnp.sqrt(2 * size * self.temperature)
        moved = x + size * direction + spread * normal_like(fold_keys(keys, index), x)
        return (moved,), step_info(x, size, direction)


class ProbabilityFlow(LadderPurifier):
    """Noise of σ₁, then the variance-exploding probability-flow ODE dx/dσ = −σ·s(x, σ) down to 0.

    Euler steps along ``sigmas``, the last one from the smallest level to 0 (Song et
    al. 2021, arXiv 2011.13456, equation 13; DiffPure's idea, Nie et al. 2022).
    """

    def step(self, keys: Keys, carry: Carry, index: Array) -> tuple[Carry, tuple[Array, Array]]:
        (x,) = carry
        sigma, following = self.levels[index], self.levels[index + 1]
        direction = self.score(x, sigma)
        size = sigma * (sigma - following)
        return (x + size * direction,), step_info(x, size, direction)


def tweedie(score: NoiseScore, sigma: float, *, num_restarts: int = 1) -> ProbabilityFlow:
    """Noise of σ, then one step to the posterior mean, x + σ²·s(x, σ) (Robbins 1956; Efron 2011)."""
    return ProbabilityFlow(score, (sigma,), num_restarts=num_restarts)


class Denoiser(ProbabilityFlow):
    """:class:`ProbabilityFlow` without its noise, for images that hold noise of σ₁ already.

    With one level, the posterior mean x + σ²·s(x, σ): what stands before a classifier that is certified by
    smoothing with noise of σ (Salman et al. 2020, arXiv 2003.01908; Carlini et al. 2023, arXiv
    2206.10550). It draws nothing from its keys. Images without noise lose detail.
    """

    is_deterministic = True

    def start(self, keys: Keys, images: Array) -> Carry:
        return (images,)


class ReverseSDE(LadderPurifier):
    """Noise of σ₁, then the variance-exploding reverse SDE by ancestral sampling, down to 0.

    x ← x + (σᵢ² − σᵢ₊₁²)·s(x, σᵢ) + σᵢ₊₁·√(σᵢ² − σᵢ₊₁²)/σᵢ·n (Song et al. 2021, appendix F,
    equation 47). For the variance-preserving one see :class:`~purify_jax.purifiers.DiffPureSDE`.
    """

    def step(self, keys: Keys, carry: Carry, index: Array) -> tuple[Carry, tuple[Array, Array]]:
        (x,) = carry
        sigma, following = self.levels[index], self.levels[index + 1]
        direction = self.score(x, sigma)
        size = sigma**2 - following**2
        spread = following * jnp.sqrt(size) / sigma
        moved = x + size * direction + spread * normal_like(fold_keys(keys, index), x)
        return (moved,), step_info(x, size, direction)


class GradualNoise(LadderPurifier):
    """Gradual noise scheduling (Lee & Kim 2023, arXiv 2303.09051, section 5).

    One stage after the other, each with its own (usually growing) noise: noise of the stage's first level,
    then probability-flow steps down its ladder to 0.

    sigmas: ``[stages, steps]``, a ladder for each stage.
    """

    rank = 2

    def start(self, keys: Keys, images: Array) -> Carry:
        return (images,)

    def step(self, keys: Keys, carry: Carry, index: Array) -> tuple[Carry, tuple[Array, Array]]:
        (x,), levels = carry, self.levels
        steps = levels.shape[-1] - 1
        stage, inner = index // steps, index % steps
        sigma, following = levels[stage, inner], levels[stage, inner + 1]
        fresh = jnp.where(inner == 0, sigma, 0.0)
        x = x + fresh * normal_like(fold_keys(keys, index), x)
        direction = self.score(x, sigma)
        size = sigma * (sigma - following)
        return (x + size * direction,), step_info(x, size, direction)


def _ladder(sigmas: Sequence[float] | Sequence[Sequence[float]] | Array, rank: int) -> Array:
    """Noise levels as float32; InputError unless each ladder's are positive, the largest first."""
    given = jax.tree.leaves(sigmas)
    if not is_traced(*given):
        for leaf in given:
            for sigma in np.ravel(leaf) if hasattr(leaf, "dtype") else [leaf]:
                check_number("sigmas", sigma)
        try:
            with np.errstate(over="ignore"):  # infinity is refused next
                values = np.array(sigmas, np.float32)
        except (TypeError, ValueError):
            values = np.zeros(0, np.float32)
        falls = np.isfinite(values).all() and (values > 0).all() and (np.diff(values) < 0).all()
        if values.ndim != rank or not values.size or not falls:
            wanted = "positive levels, largest first" + (", for each stage" if rank == 2 else "")
            raise InputError(f"sigmas: got {shown(sigmas)}, expected {wanted}")
    return jnp.asarray(sigmas, jnp.float32)
