"""A diffusion that is guided back to its input while it denoises (GDMP)."""

import math
from dataclasses import KW_ONLY

import jax.numpy as jnp
import numpy as np

from purify_jax.checks import check_at_least, check_count, check_number
from purify_jax.diffusions import LinearSchedule, pixels, signed
from purify_jax.keys import fold_keys, normal_like
from purify_jax.purifiers.diffpure import DiffusionPurifier, check_t_star
from purify_jax.purifiers.loop import Step, step_info
from purify_jax.pytrees import static
from purify_jax.types import BOUNDS, Array, Carry, Keys

PUBLISHED_GUIDANCE = 2 * 60_000 / 3072


def stable(t_star: float, schedule: LinearSchedule, epsilon: float = 8 / 255) -> float:
    """The published guidance, or less where a step from t* would overshoot the input.

    A step pulls by ``guidance``·β_k·3·√(1 − ᾱ_k)/(2ε·√ᾱ_k) of the distance to the diffused input; above
    1 it lands behind it, above 2 the images diverge.
    """
    count = round(t_star * schedule.num_steps)
    bars = schedule.alphas_bar()[:count]
    pulls = schedule.betas()[:count] * 3 * np.sqrt((1 - bars) / bars) / (2 * epsilon)
    return float(min(PUBLISHED_GUIDANCE, 1 / pulls.max()))


class GDMP(DiffusionPurifier):
    """GDMP: ancestral DDPM steps pulled towards the diffused input (Wang et al. 2022, arXiv 2205.14969).

    ``num_rounds`` times: diffuse to step K = t*·N, then for k = K − 1 … 0
    u ← μ(u, û₀) + β_k·a_k·(u_k' − u) + √β_k·n, with û₀ the denoised image, μ the posterior mean,
    u_k' the input diffused to step k with fresh noise, and
    a_k = ``guidance``·3·√(1 − ᾱ_k)/(2·``epsilon``·√ᾱ_k); no noise at k = 0.

    t_star: t*; one step for each of the schedule's N up to it, so that there are ``num_rounds``·K in all.
    guidance: a pull per pixel. The published code scales by 60,000 the gradient of a squared
      difference averaged over all pixels of the whole batch, so its pull weakens as images and
      batches grow; the default is its value for one 32×32×3 image. Above t* = 0.12 that pull
      exceeds 2 a step and the images diverge: lower it there.
    clip_denoised: whether û₀ is clipped to the pixels' range.
    """

    _: KW_ONLY
    t_star: float = static(default=0.036)
    num_rounds: int = static(default=4)
    guidance: float = PUBLISHED_GUIDANCE
    epsilon: float = static(default=8 / 255)
    clip_denoised: bool = static(default=True)
    num_steps: int = static(init=False)

    def __post_init__(self) -> None:
        check_count("num_rounds", self.num_rounds)
        check_number("guidance", self.guidance)
        check_at_least("epsilon", self.epsilon, 1e-6)
        check_t_star(self.t_star, self.diffusion)
        self.fill(num_steps=self.num_rounds * self._count())
        super().__post_init__()

    def _count(self) -> int:
        """K, the steps of a round."""
        return round(self.t_star * self.diffusion.schedule.num_steps)

    def _row(self, index: Array) -> Array:
        """The coefficients of a step."""
        schedule, count = self.diffusion.schedule, self._count()
        betas, bars = schedule.betas(), schedule.alphas_bar()
        before = np.append(1.0, bars[:-1])
        variances = np.append(betas[1] * (1 - before[1]) / (1 - bars[1]), betas[1:])
        columns = [
            bars,
            betas * np.sqrt(before) / (1 - bars),
            (1 - before) * np.sqrt(1 - betas) / (1 - bars),
            variances,
            variances * (3 * np.sqrt((1 - bars) / bars) / (2 * self.epsilon)),
            np.arange(schedule.num_steps) > 0,
            np.arange(schedule.num_steps) == count - 1,
        ]
        table = np.stack([np.asarray(c, np.float64)[count - 1 :: -1] for c in columns], axis=1)
        return jnp.asarray(table, jnp.float32)[index % count]

    def start(self, keys: Keys, images: Array) -> Carry:
        return (signed(images),)

    def stepper(self, keys: Keys, images: Array) -> Step:
        return lambda carry, index: self._pulled(keys, signed(images), carry, index)

    def _pulled(
        self, keys: Keys, target: Array, carry: tuple[Array], index: Array
    ) -> tuple[tuple[Array], tuple[Array, Array]]:
        """A step pulled towards the signed input."""
        (state,), schedule = carry, self.diffusion.schedule
        bar, towards_clean, towards_state, variance, pull, noisy, first = self._row(index)
        # Three draws an image at once: to diffuse the state, the input, and for the step itself.
        draws = normal_like(fold_keys(keys, index), jnp.stack([state] * 3, axis=1))
        draws = jnp.moveaxis(draws, 1, 0)
        kept, spread = jnp.sqrt(bar), jnp.sqrt(1 - bar)
        start = float(schedule.alphas_bar()[min(self._count(), schedule.num_steps - 1)])
        diffused = math.sqrt(start) * state + math.sqrt(1 - start) * draws[0]
        state = jnp.where(first > 0, diffused, state)
        level = jnp.full(state.shape[0], spread / kept, state.dtype)
        noise = self.diffusion.noise(state / kept, level)
        clean = (state - spread * noise) / kept
        clean = jnp.clip(clean, *map(signed, BOUNDS)) if self.clip_denoised else clean
        mean = towards_clean * clean + towards_state * state
        mean = mean + self.guidance * pull * (kept * target + spread * draws[1] - state)
        moved = mean + noisy * jnp.sqrt(variance) * draws[2]
        return (moved,), step_info(state, variance, noise / spread)

    def end(self, images: Array) -> Array:
        return super().end(pixels(images))
