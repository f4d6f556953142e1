"""Purifiers that run a diffusion forwards for a while and backwards again.

Inside, states are signed and variance preserving, as in the methods' papers (:mod:`purify_jax.diffusions`).
An exact gradient stores one image a step. Noise depends on an image's key and the step alone.
"""

import math
from dataclasses import KW_ONLY

import jax.numpy as jnp
import numpy as np

from purify_jax.checks import InputError, check_count, check_number
from purify_jax.diffusions import Diffusion, ScoreAt, noise_score, pixels, signed
from purify_jax.keys import fold_keys, normal_like, stream
from purify_jax.purifiers.loop import ClippedPurifier, step_info
from purify_jax.pytrees import static
from purify_jax.types import Array, Carry, Keys, ScoreFn

#: The most steps of a purifier that holds a table with a row for each: a hundred times the published number.
MOST_STEPS = 100_000


class DiffusionPurifier(ClippedPurifier):
    """What the purifiers along a diffusion share; a method is a subclass with its ``step``."""

    diffusion: Diffusion

    @property
    def score_fn(self) -> ScoreFn:
        """The score at a small noise, 0.01 of a pixel's range: what the images' density looks like."""
        return ScoreAt(noise_score(self.diffusion), 0.01)


class VPPurifier(DiffusionPurifier):
    """Diffuses to t*, then steps in the variance-preserving state along a table of coefficients.

    t_star: t* in (0, 1]. num_steps: T ≥ 1.

    Raises InputError for a t* outside of the diffusion's schedule, or too many steps.
    """

    _: KW_ONLY
    t_star: float = static(default=0.1)
    num_steps: int = static(default=100)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("num_steps", self.num_steps, 1, MOST_STEPS)
        check_t_star(self.t_star, self.diffusion)

    def table(self) -> np.ndarray:
        """The coefficients of every step, ``[T, ...]``."""
        raise NotImplementedError(f"{type(self).__name__}.table")

    def row(self, index: Array) -> Array:
        """The coefficients of one step."""
        return jnp.asarray(self.table(), jnp.float32)[index]

    def start(self, keys: Keys, images: Array) -> Carry:
        """√ᾱ·u + √(1 − ᾱ)·n by the discrete ᾱ of step t*·N − 1, as DiffPure does it."""
        schedule = self.diffusion.schedule
        kept = float(schedule.alphas_bar()[round(self.t_star * schedule.num_steps) - 1])
        noise = normal_like(stream(keys, "start"), images)
        return (math.sqrt(kept) * signed(images) + math.sqrt(1 - kept) * noise,)

    def end(self, images: Array) -> Array:
        return super().end(pixels(images))


def check_t_star(t_star: float, diffusion: Diffusion) -> None:
    """Raises InputError unless t* is at least one step of a diffusion's schedule, and at most all of them."""
    check_number("t_star", t_star)
    steps = diffusion.schedule.num_steps
    if not 1 <= round(t_star * steps) <= steps:
        raise InputError(f"t_star: got {t_star}, expected {1 / steps} to 1")


class DiffPureSDE(VPPurifier):
    """DiffPure: diffuse to t*, then the reverse VP SDE by Euler–Maruyama (Nie et al. 2022, arXiv 2205.07460).

    u ← u + β(t)·(½u + s(u, t))·dt + √(β(t)·dt)·n with s = −ε̂/√(1 − α(t)²) and dt = t*/T, the last step
    down to ``end``. Published: steps of 1/1000 from t* = 0.1 on CIFAR-10 with Linf 8/255 (0.075 with L2 0.5),
    0.15 on ImageNet.

    Raises InputError for an ``end`` that is not in [0, t*/T).
    """

    end_time: float = static(default=1e-5)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("end_time", self.end_time, 0.0, self.t_star / self.num_steps, open_high=True)

    def table(self) -> np.ndarray:
        length = self.t_star / self.num_steps
        times = np.append(self.t_star - length * np.arange(self.num_steps), self.end_time)
        return np.stack([times[:-1], times[:-1] - times[1:]], axis=1)

    def slope(self, state: Array, index: Array) -> tuple[Array, Array]:
        """(β(t)·dt, the score) of a step."""
        (t, length), schedule = self.row(index), self.diffusion.schedule
        return schedule.beta(t) * length, -self.diffusion.noise_at(state, t) / schedule.std(t)

    def step(self, keys: Keys, carry: Carry, index: Array) -> tuple[Carry, tuple[Array, Array]]:
        (state,) = carry
        size, score = self.slope(state, index)
        noise = normal_like(fold_keys(keys, index), state)
        drift = size * (0.5 * state + score)
        return (state + drift + jnp.sqrt(size) * noise,), step_info(state, size, score)


class DiffPureODE(DiffPureSDE):
    """DiffPure's ODE: diffuse to t*, then u ← u + ½β(t)·(u + s(u, t))·dt (Song et al. 2021, equation 13)."""

    def step(self, keys: Keys, carry: Carry, index: Array) -> tuple[Carry, tuple[Array, Array]]:
        (state,) = carry
        size, score = self.slope(state, index)
        return (state + 0.5 * size * (state + score),), step_info(state, size, score)


class DDIM(VPPurifier):
    """Diffuse to t*, then deterministic DDIM steps to 0 (Song et al. 2021, arXiv 2010.02502).

    u ← α(t')·(u − √(1 − α(t)²)·ε̂)/α(t) + √(1 − α(t')²)·ε̂ along equal steps in t (equation 12 with
    σ = 0). ADBM (Li et al. 2025, arXiv 2408.00315) purifies with 5 steps.
    """

    _: KW_ONLY
    num_steps: int = static(default=5)

    def table(self) -> np.ndarray:
        times = np.linspace(self.t_star, 0, self.num_steps + 1)
        return np.stack([times[:-1], times[1:]], axis=1)

    def step(self, keys: Keys, carry: Carry, index: Array) -> tuple[Carry, tuple[Array, Array]]:
        (state,), (t, following) = carry, self.row(index)
        schedule = self.diffusion.schedule
        noise = self.diffusion.noise_at(state, t)
        clean = (state - schedule.std(t) * noise) / schedule.mean(t)
        moved = schedule.mean(following) * clean + schedule.std(following) * noise
        return (moved,), step_info(state, t - following, noise / schedule.std(t))
