"""Purifiers that are Markov chains: Langevin dynamics, and with a Metropolis correction."""

from dataclasses import KW_ONLY

import chex
import jax
import jax.numpy as jnp

from purify_jax import energy
from purify_jax.arrays import l2_norm, per_image
from purify_jax.checks import check_at_least
from purify_jax.keys import draw_each, fold_keys, normal_like, stream
from purify_jax.purifiers.loop import ClippedPurifier, step_info
from purify_jax.pytrees import static
from purify_jax.types import Array, Carry, EnergyFn, Keys, ScoreFn


class Langevin(ClippedPurifier):
    """Long-run Langevin MCMC (Hill, Mitchell & Zhu 2021, arXiv 2005.13525, equation 3).

    x ← x + ½τ²·s(x)/temperature + τ·n with τ = ``step_size``; its stationary law is
    exp(−E/temperature) up to a bias of order τ². ``bounds`` clips after the last step only.

    Raises InputError for a negative step size, a temperature that is not positive, or zero steps.
    """

    score_fn: ScoreFn
    _: KW_ONLY
    step_size: float
    num_steps: int = static()
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("step_size", self.step_size, 0.0)
        check_at_least("temperature", self.temperature, 1e-12)

    def start(self, keys: Keys, images: Array) -> Carry:
        return (images,)

    def drift(self, score: Array) -> Array:
        """½τ²·s/temperature."""
        return 0.5 * self.step_size**2 / self.temperature * score

    def step(self, keys: Keys, carry: Carry, index: Array) -> tuple[Carry, tuple[Array, Array]]:
        (x,), keys = carry, fold_keys(keys, index)
        score = self.score_fn(x)
        moved = x + self.drift(score) + self.step_size * normal_like(keys, x)
        return (moved,), step_info(x, self.step_size, score)


class MALA(Langevin):
    """Metropolis-adjusted Langevin: :class:`Langevin` without its bias (Roberts & Tweedie 1996).

    A proposal is accepted with probability ``min(1, p(x')q(x|x')/p(x)q(x'|x))``. Without an
    ``energy_fn`` the energy difference is the score's line integral by the trapezoid rule, which
    is exact for quadratic energies. Its derivative is that of the accepted or kept image.
    The info's step size is 0 where a proposal was rejected, so that ``active_steps`` counts the
    accepted ones.

    Raises InputError as :class:`Langevin`, and for a step size of 0.
    """

    energy_fn: EnergyFn | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("step_size", self.step_size, 1e-12)

    def start(self, keys: Keys, images: Array) -> Carry:
        # The score and the energy of the current images are carried, not computed again each step.
        return images, self.score_fn(images), self._energy(images)

    def _energy(self, images: Array) -> Array | None:
        return None if self.energy_fn is None else self.energy_fn(images)

    def step(self, keys: Keys, carry: Carry, index: Array) -> tuple[Carry, tuple[Array, Array]]:
        (x, score, here), keys = carry, fold_keys(keys, index)
        noise = normal_like(stream(keys, "proposal"), x)
        proposal = x + self.drift(score) + self.step_size * noise
        there, proposed = self.score_fn(proposal), self._energy(proposal)
        chex.assert_equal_shape((x, there))
        if proposed is None:
            rise = energy.difference(self.score_fn, x, proposal, scores=(score, there))
        else:
            rise = proposed - here
        forth = l2_norm(proposal - x - self.drift(score)) ** 2
        back = l2_norm(x - proposal - self.drift(there)) ** 2
        log_ratio = -rise / self.temperature + (forth - back) / (2 * self.step_size**2)
        uniform = draw_each(
            lambda key: jax.random.uniform(key, (), x.dtype), stream(keys, "accept")
        )
        accepted = jnp.log(uniform) < log_ratio
        choose = lambda new, old: jnp.where(per_image(accepted, new), new, old)
        carry = jax.tree.map(choose, (proposal, there, proposed), carry)
        taken = jnp.where(accepted, self.step_size, jnp.zeros((), x.dtype))
        return carry, (taken, l2_norm(score))
