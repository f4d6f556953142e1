"""Purifiers that are Markov chains: Langevin dynamics, and with a Metropolis correction."""

from typing import Any

import jax
import jax.numpy as jnp

from purify_jax import energy
from purify_jax.arrays import l2_norm, per_image
from purify_jax.checks import check_at_least, check_count, check_images
from purify_jax.keys import fold_keys, normal_like, stream
from purify_jax.purifiers.loop import SteppedPurifier, clip_to, step_info
from purify_jax.pytrees import pytree, static
from purify_jax.types import BOUNDS, Array, EnergyFn, Keys, ScoreFn


@pytree
class Langevin(SteppedPurifier):
    """See :func:`langevin`."""

    score_fn: ScoreFn
    step_size: float
    temperature: float
    bounds: tuple[float, float] | None = static(default=BOUNDS)

    def check(self, images: Array) -> None:
        if self.bounds is not None:
            check_images(images)

    def start(self, keys: Keys, images: Array) -> Any:
        return (images,)

    def drift(self, score: Array) -> Array:
        """½τ²·s/temperature."""
        return 0.5 * self.step_size**2 / self.temperature * score

    def step(self, keys: Keys, carry: Any, index: Array) -> tuple[Any, tuple[Array, Array]]:
        (x,), keys = carry, fold_keys(keys, index)
        score = self.score_fn(x)
        moved = x + self.drift(score) + self.step_size * normal_like(keys, x)
        return (moved,), step_info(x, self.step_size, score)

    def end(self, images: Array) -> Array:
        return clip_to(self.bounds, images)


@pytree
class MALA(Langevin):
    """See :func:`mala`."""

    energy_fn: Any = None

    def step(self, keys: Keys, carry: Any, index: Array) -> tuple[Any, tuple[Array, Array]]:
        (x,), keys = carry, fold_keys(keys, index)
        score = self.score_fn(x)
        noise = normal_like(stream(keys, "proposal"), x)
        proposal = x + self.drift(score) + self.step_size * noise
        there = self.score_fn(proposal)
        if self.energy_fn is None:
            rise = energy.difference(self.score_fn, x, proposal, scores=(score, there))
        else:
            rise = self.energy_fn(proposal) - self.energy_fn(x)
        forth = l2_norm(proposal - x - self.drift(score)) ** 2
        back = l2_norm(x - proposal - self.drift(there)) ** 2
        log_ratio = -rise / self.temperature + (forth - back) / (2 * self.step_size**2)
        uniform = jax.vmap(jax.random.uniform)(stream(keys, "accept"))
        accepted = jnp.log(uniform) < log_ratio
        moved = jnp.where(per_image(accepted, x), proposal, x)
        return (moved,), (jnp.where(accepted, self.step_size, 0.0), l2_norm(score))


def langevin(
    score_fn: ScoreFn,
    *,
    step_size: float,
    num_steps: int,
    temperature: float = 1.0,
    num_restarts: int = 1,
    bounds: tuple[float, float] | None = BOUNDS,
) -> Langevin:
    """Long-run Langevin MCMC (Hill, Mitchell & Zhu 2021, arXiv 2005.13525, equation 3).

    x ← x + ½τ²·s(x)/temperature + τ·n with τ = ``step_size``; its stationary law is
    exp(−E/temperature) up to a bias of order τ². ``bounds`` clips after the last step only.
    """
    _check(step_size, 0.0, num_steps, temperature, num_restarts)
    return Langevin(
        score_fn=score_fn,
        step_size=step_size,
        num_steps=num_steps,
        temperature=temperature,
        num_restarts=num_restarts,
        bounds=bounds,
    )


def mala(
    score_fn: ScoreFn,
    energy_fn: EnergyFn | None = None,
    *,
    step_size: float,
    num_steps: int,
    temperature: float = 1.0,
    num_restarts: int = 1,
    bounds: tuple[float, float] | None = BOUNDS,
) -> MALA:
    """Metropolis-adjusted Langevin: :func:`langevin` without its bias (Roberts & Tweedie 1996).

    A proposal is accepted with probability ``min(1, p(x')q(x|x')/p(x)q(x'|x))``. Without an
    ``energy_fn`` the energy difference is the score's line integral by the trapezoid rule, which
    is exact for quadratic energies. Its derivative is that of the accepted or kept image.
    """
    _check(step_size, 1e-12, num_steps, temperature, num_restarts)
    return MALA(
        score_fn=score_fn,
        energy_fn=energy_fn,
        step_size=step_size,
        num_steps=num_steps,
        temperature=temperature,
        num_restarts=num_restarts,
        bounds=bounds,
    )


def _check(
    step_size: float, smallest: float, num_steps: int, temperature: float, num_restarts: int
) -> None:
    check_at_least("step_size", step_size, smallest)
    check_at_least("temperature", temperature, 1e-12)
    check_count("num_steps", num_steps)
    check_count("num_restarts", num_restarts)
