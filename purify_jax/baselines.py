"""The purifiers to beat, all behind the same ``Purifier`` type: samplers, denoisers, controls.

A score network here does not see σ; a :data:`NoiseScore` (images, σ) → ∇log p_σ turns its output
into the score of the σ-smoothed data (``models.noise_score``). Every purifier starts from
:math:`x` in [0, 1] and ends clipped to [0, 1].
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from purify_jax import energy
from purify_jax.types import (
    BOUNDS,
    Array,
    EnergyFn,
    InputError,
    Keys,
    Purifier,
    PurifyInfo,
    ScoreFn,
    check_at_least,
    check_images,
    fold_keys,
    l2_norm,
    normal_like,
    per_image,
)

#: (images, σ) → the score of the data smoothed by Gaussian noise of standard deviation σ.
NoiseScore: TypeAlias = Callable[[Array, Array], Array]
#: (keys, images, index) → (images, (step size, score norm)) of each image.
Step: TypeAlias = Callable[[Keys, Array, Array], tuple[Array, tuple[Array, Array]]]

_START = 2**31  # folded into the keys for the noise before the steps, far from any step's index


def _purifier(
    step: Step,
    num_steps: int,
    num_restarts: int,
    noise_scale: float = 0.0,
    bounds: tuple[float, float] | None = BOUNDS,
) -> Purifier:
    """Noise, ``num_steps`` steps in a scan, clipping to ``bounds``; one vmap over restarts."""
    check_at_least("num_restarts", num_restarts, 1)
    check_at_least("num_steps", num_steps, 1)
    check_at_least("noise_scale", noise_scale, 0.0)
    remembered = jax.checkpoint(step, prevent_cse=False)

    def one_restart(keys: Keys, images: Array) -> tuple[Array, tuple[Array, Array]]:
        x = images
        if noise_scale > 0:
            x = x + noise_scale * normal_like(fold_keys(keys, _START), images)
        body = lambda x, index: remembered(fold_keys(keys, index), x, index)
        x, info = jax.lax.scan(body, x, jnp.arange(num_steps))
        return (x if bounds is None else jnp.clip(x, *bounds)), info

    def purify(keys: Keys, images: Array) -> tuple[Array, PurifyInfo]:
        if bounds is not None:
            check_images(images)
        restart = lambda r: one_restart(fold_keys(keys, r), images)
        purified, (sizes, norms) = jax.vmap(restart)(jnp.arange(num_restarts))
        steps = jnp.full((num_restarts, images.shape[0]), num_steps, jnp.int32)
        return purified, PurifyInfo(jnp.moveaxis(sizes, 1, 0), jnp.moveaxis(norms, 1, 0), steps)

    return purify


def _info(images: Array, size: Any, score: Array) -> tuple[Array, Array]:
    return jnp.full(images.shape[0], size, images.dtype), l2_norm(score)


# --- Markov chains ----------------------------------------------------------------------------


def langevin(
    score_fn: ScoreFn,
    *,
    step_size: float,
    num_steps: int,
    temperature: float = 1.0,
    num_restarts: int = 1,
    bounds: tuple[float, float] | None = BOUNDS,
) -> Purifier:
    """Long-run Langevin MCMC (Hill, Mitchell & Zhu 2021, arXiv 2005.13525, equation 3).

    x ← x + ½τ²·s(x)/temperature + τ·n with τ = ``step_size``; its stationary law is
    exp(−E/temperature) up to a bias of order τ². ``bounds`` clips after the last step only.
    """
    check_at_least("step_size", step_size, 0.0)
    check_at_least("temperature", temperature, 1e-12)

    def step(keys: Keys, x: Array, index: Array) -> tuple[Array, tuple[Array, Array]]:
        score = score_fn(x)
        drift = 0.5 * step_size**2 / temperature * score
        return x + drift + step_size * normal_like(keys, x), _info(x, step_size, score)

    return _purifier(step, num_steps, num_restarts, bounds=bounds)


def mala(
    score_fn: ScoreFn,
    energy_fn: EnergyFn | None = None,
    *,
    step_size: float,
    num_steps: int,
    temperature: float = 1.0,
    num_restarts: int = 1,
    bounds: tuple[float, float] | None = BOUNDS,
) -> Purifier:
    """Metropolis-adjusted Langevin: :func:`langevin` without its bias (Roberts & Tweedie 1996).

    A proposal is accepted with probability min(1, p(x')q(x|x')/p(x)q(x'|x)). Without an
    ``energy_fn`` the energy difference is the score's line integral by the trapezoid rule, which
    is exact for quadratic energies. Its derivative is that of the accepted or kept image.
    """
    check_at_least("step_size", step_size, 1e-12)
    check_at_least("temperature", temperature, 1e-12)
    drift = 0.5 * step_size**2 / temperature

    def step(keys: Keys, x: Array, index: Array) -> tuple[Array, tuple[Array, Array]]:
        score = score_fn(x)
        proposal = x + drift * score + step_size * normal_like(keys, x)
        there = score_fn(proposal)
        if energy_fn is None:
            rise = energy.difference(score_fn, x, proposal, scores=(score, there))
        else:
            rise = energy_fn(proposal) - energy_fn(x)
        forth = l2_norm(proposal - x - drift * score) ** 2
        back = l2_norm(x - proposal - drift * there) ** 2
        log_ratio = -rise / temperature + (forth - back) / (2 * step_size**2)
        uniform = jax.vmap(jax.random.uniform)(fold_keys(keys, 1))
        accepted = jnp.log(uniform) < log_ratio
        moved = jnp.where(per_image(accepted, x), proposal, x)
        return moved, (jnp.where(accepted, step_size, 0.0), l2_norm(score))

    return _purifier(step, num_steps, num_restarts, bounds=bounds)


# --- denoisers and diffusions -----------------------------------------------------------------


def tweedie(score: NoiseScore, sigma: float, *, num_restarts: int = 1) -> Purifier:
    """Noise of σ, then one step to the posterior mean, x + σ²·s(x, σ) (Robbins 1956; Efron 2011)."""
    return probability_flow(score, (sigma,), num_restarts=num_restarts)


def annealed(
    score: NoiseScore,
    sigmas: Sequence[float],
    *,
    steps_per_level: int = 1,
    rate: float = 0.5,
    temperature: float = 0.0,
    num_restarts: int = 1,
) -> Purifier:
    """Annealed denoising: x ← x + ½a·s(x, σᵢ) + √(temperature·a)·n with a = 2·rate·σᵢ².

    Noise of σ₁ first, then ``steps_per_level`` steps at each level. Temperature 1 is annealed
    Langevin dynamics (Song & Ermon 2019, arXiv 1907.05600, algorithm 1); 0 only denoises.
    """
    levels = _levels(sigmas)
    check_at_least("steps_per_level", steps_per_level, 1)
    check_at_least("rate", rate, 0.0)
    check_at_least("temperature", temperature, 0.0)

    def step(keys: Keys, x: Array, index: Array) -> tuple[Array, tuple[Array, Array]]:
        sigma = levels[index // steps_per_level]
        size = rate * sigma**2
        direction = score(x, sigma)
        noise = jnp.sqrt(2 * size * temperature) * normal_like(keys, x) if temperature else 0.0
        return x + size * direction + noise, _info(x, size, direction)

    return _purifier(step, len(sigmas) * steps_per_level, num_restarts, float(sigmas[0]))


def probability_flow(
    score: NoiseScore,
    sigmas: Sequence[float],
    *,
    num_restarts: int = 1,
    bounds: tuple[float, float] | None = BOUNDS,
) -> Purifier:
    """Noise of σ₁, then the variance-exploding probability-flow ODE dx/dσ = −σ·s(x, σ) down to 0.

    Euler steps along ``sigmas`` (descending), the last one from the smallest level to 0 (Song et
    al. 2021, arXiv 2011.13456, equation 13; DiffPure's idea, Nie et al. 2022).
    """
    levels = _levels(sigmas)

    def step(keys: Keys, x: Array, index: Array) -> tuple[Array, tuple[Array, Array]]:
        sigma, following = levels[index], levels[index + 1]
        direction = score(x, sigma)
        size = sigma * (sigma - following)
        return x + size * direction, _info(x, size, direction)

    return _purifier(step, len(sigmas), num_restarts, float(sigmas[0]), bounds)


def reverse_sde(
    score: NoiseScore,
    sigmas: Sequence[float],
    *,
    num_restarts: int = 1,
    bounds: tuple[float, float] | None = BOUNDS,
) -> Purifier:
    """Noise of σ₁, then the variance-exploding reverse SDE by ancestral sampling, down to 0.

    x ← x + (σᵢ² − σᵢ₊₁²)·s(x, σᵢ) + σᵢ₊₁·√(σᵢ² − σᵢ₊₁²)/σᵢ·n (Song et al. 2021, appendix F,
    equation 47). DiffPure (Nie et al. 2022, arXiv 2205.07460) with the same score network.
    """
    levels = _levels(sigmas)

    def step(keys: Keys, x: Array, index: Array) -> tuple[Array, tuple[Array, Array]]:
        sigma, following = levels[index], levels[index + 1]
        direction = score(x, sigma)
        size = sigma**2 - following**2
        spread = following * jnp.sqrt(size) / sigma
        return x + size * direction + spread * normal_like(keys, x), _info(x, size, direction)

    return _purifier(step, len(sigmas), num_restarts, float(sigmas[0]), bounds)


def gradual(
    score: NoiseScore,
    stages: Sequence[float],
    *,
    smallest: float = 0.05,
    steps_per_stage: int = 4,
    num_restarts: int = 1,
) -> Purifier:
    """Gradual noise scheduling (Lee & Kim 2023, arXiv 2303.09051, section 5).

    One stage after the other, each with its own (usually growing) noise: noise of σ, then
    ``steps_per_stage`` probability-flow steps from σ to 0 in geometric progression down to
    ``smallest``.
    """
    for stage in stages:
        check_at_least("stages", stage, smallest)
    check_at_least("steps_per_stage", steps_per_stage, 1)
    if not stages:
        raise InputError("stages: got none, expected at least one noise scale")
    ladders = [jnp.append(jnp.geomspace(s, min(smallest, s), steps_per_stage), 0.0) for s in stages]
    table = jnp.stack(ladders)

    def step(keys: Keys, x: Array, index: Array) -> tuple[Array, tuple[Array, Array]]:
        stage, inner = index // steps_per_stage, index % steps_per_stage
        sigma, following = table[stage, inner], table[stage, inner + 1]
        fresh = jnp.where(inner == 0, sigma, 0.0)
        x = x + fresh * normal_like(keys, x)
        direction = score(x, sigma)
        size = sigma * (sigma - following)
        return x + size * direction, _info(x, size, direction)

    return _purifier(step, len(stages) * steps_per_stage, num_restarts)


def _levels(sigmas: Sequence[float]) -> Array:
    values = [float(s) for s in sigmas]
    if not values or any(a <= b for a, b in itertools.pairwise(values)) or values[-1] <= 0:
        raise InputError(f"sigmas: got {values}, expected positive levels, largest first")
    return jnp.asarray([*values, 0.0], jnp.float32)


# --- controls ---------------------------------------------------------------------------------


def filtered(function: Callable[[Array], Array]) -> Purifier:
    """A deterministic map of images as a purifier of one restart."""

    def purify(keys: Keys, images: Array) -> tuple[Array, PurifyInfo]:
        del keys
        check_images(images)
        purified = jnp.clip(function(images), *BOUNDS)[None]
        none = jnp.zeros((0, 1, images.shape[0]), images.dtype)
        return purified, PurifyInfo(none, none, jnp.zeros((1, images.shape[0]), jnp.int32))

    return purify


def gaussian_blur(sigma: float) -> Purifier:
    """A Gaussian filter of ``sigma`` pixels, cut at 4σ, edges repeated."""
    check_at_least("sigma", sigma, 0.0)
    if sigma == 0:
        return filtered(lambda images: images)
    reach = int(4 * sigma + 0.5)
    weights = jnp.exp(-0.5 * (jnp.arange(-reach, reach + 1) / sigma) ** 2)
    weights = weights / jnp.sum(weights)

    def blur(images: Array) -> Array:
        for axis in (1, 2):
            pad = [(reach, reach) if a == axis else (0, 0) for a in range(4)]
            padded = jnp.pad(images, pad, mode="edge")
            size = images.shape[axis]
            images = sum(
                weight * jax.lax.slice_in_dim(padded, i, i + size, axis=axis)
                for i, weight in enumerate(weights)
            )  # type: ignore[assignment]
        return images

    return filtered(blur)
