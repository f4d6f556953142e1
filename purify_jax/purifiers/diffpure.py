"""Purifiers that run a diffusion forwards for a while and backwards again.

Each is a pure function (diffusion, keys ``[batch]``, images in [0, 1], settings) → :class:`Trace`;
:class:`DiffusionPurifier` makes a ``Purifier`` of any of them. Every one is a scan over
checkpointed steps, so that an exact gradient stores one image a step. Inside, states are signed and
variance preserving where the method's paper has them so (:mod:`purify_jax.diffusions`).

Noise depends on an image's key and the step alone; ``first_noise`` and ``step_noise`` replace it
where a reference fixed the draws.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from purify_jax.arrays import l2_norm
from purify_jax.checks import InputError, check_count, check_images, check_number
from purify_jax.diffusions import Diffusion, LinearSchedule, pixels, score_at, signed
from purify_jax.keys import fold_keys, normal_like, stream
from purify_jax.pytrees import Replaceable, pytree, static
from purify_jax.types import BOUNDS, Array, Keys, PurifyInfo, ScoreFn

_SCHEDULE = LinearSchedule()
#: The most steps that a dt may make, a hundred times the published number; a table has a row for each.
MOST_STEPS = 100_000


class Trace(NamedTuple):
    """A purification of T steps: images ``[batch, h, w, c]`` (not clipped), sizes and norms ``[T, batch]``."""

    images: Array
    step_sizes: Array
    score_norms: Array


#: (state, step's index, its row of the table) → (state, (size, norm) per image).
Step: TypeAlias = Callable[[Any, Array, Array], tuple[Any, tuple[Array, Array]]]


def scan_steps(step: Step, state: Any, table: np.ndarray) -> tuple[Any, Array, Array]:
    """Runs a checkpointed step over the rows of a table of coefficients ``[T, ...]``."""
    remembered = jax.checkpoint(step, prevent_cse=False)
    body = lambda carry, row: remembered(carry, *row)
    rows = (jnp.arange(len(table)), jnp.asarray(table, jnp.float32))
    state, (sizes, norms) = jax.lax.scan(body, state, rows)
    return state, sizes, norms


def step_info(size: Array, score: Array) -> tuple[Array, Array]:
    """What a step reports: its size and the norm of its score, each ``[batch]``."""
    return jnp.full(score.shape[0], size, score.dtype), l2_norm(score)


def _times(t_star: float, dt: float, end: float) -> np.ndarray:
    """t*, t* − dt, … down to ``end``, the last step shorter: ``[T + 1]``."""
    check_number("dt", dt, 0, open_low=True)
    check_number("t_star", t_star)
    check_number("end", end)
    if not 0 <= end < t_star <= 1:
        raise InputError(f"t_star: got {t_star} with end = {end}, expected 0 <= end < t_star <= 1")
    if t_star - end > MOST_STEPS * dt:
        raise InputError(
            f"dt: got {dt:g}, which is {(t_star - end) / dt:.0f} steps from t_star = {t_star:g} on, "
            f"expected at most {MOST_STEPS} steps"
        )
    count = int(np.ceil((t_star - end) / dt - 1e-6))
    return np.append(t_star - dt * np.arange(count), end)


def diffuse(
    keys: Keys,
    images: Array,
    t_star: float,
    schedule: LinearSchedule = _SCHEDULE,
    first_noise: Array | None = None,
) -> Array:
    """Pixels → the variance-preserving state at t*, by the discrete ᾱ of step t*·N − 1.

    √ᾱ·u + √(1 − ᾱ)·n, as DiffPure does it (Nie et al. 2022, arXiv 2205.07460).
    """
    check_number("t_star", t_star)
    step = round(t_star * schedule.num_steps) - 1
    if not 0 <= step < schedule.num_steps:
        raise InputError(f"t_star: got {t_star}, expected {1 / schedule.num_steps} to 1")
    kept = float(schedule.alphas_bar()[step])
    noise = normal_like(stream(keys, "start"), images) if first_noise is None else first_noise
    return math.sqrt(kept) * signed(images) + math.sqrt(1 - kept) * noise


# --- DiffPure ---------------------------------------------------------------------------------


def reverse_sde(
    diffusion: Diffusion,
    keys: Keys,
    images: Array,
    *,
    t_star: float = 0.1,
    dt: float = 1e-3,
    end: float = 1e-5,
    first_noise: Array | None = None,
    step_noise: Array | None = None,
) -> Trace:
    """DiffPure: diffuse to t*, then the reverse VP SDE by Euler–Maruyama (Nie et al. 2022).

    u ← u + β(t)·(½u + s(u, t))·dt + √(β(t)·dt)·n with s = −ε̂/√(1 − α(t)²), from t* to ``end``.
    Published: t* = 0.1 on CIFAR-10 with Linf 8/255 (0.075 with L2 0.5), 0.15 on ImageNet.

    step_noise: ``[T, batch, h, w, c]`` standard normals in place of draws from the keys.
    """
    return _reverse(
        diffusion, keys, images, t_star, dt, end, first_noise, step_noise, stochastic=True
    )


def probability_flow(
    diffusion: Diffusion,
    keys: Keys,
    images: Array,
    *,
    t_star: float = 0.1,
    dt: float = 1e-3,
    end: float = 1e-5,
    first_noise: Array | None = None,
) -> Trace:
    """DiffPure's ODE: diffuse to t*, then u ← u + ½β(t)·(u + s(u, t))·dt (Song et al. 2021, eq. 13)."""
    return _reverse(diffusion, keys, images, t_star, dt, end, first_noise, None, stochastic=False)


def _reverse(
    diffusion: Diffusion,
    keys: Keys,
    images: Array,
    t_star: float,
    dt: float,
    end: float,
    first_noise: Array | None,
    step_noise: Array | None,
    stochastic: bool,
) -> Trace:
    schedule, times = diffusion.schedule, _times(t_star, dt, end)

    def step(state: Array, index: Array, row: Array) -> tuple[Array, tuple[Array, Array]]:
        t, length = row
        score = -diffusion.noise_at(state, t) / schedule.std(t)
        size = schedule.beta(t) * length
        if not stochastic:
            return state + 0.5 * size * (state + score), step_info(size, score)
        if step_noise is None:
            noise = normal_like(fold_keys(keys, index), state)
        else:
            noise = jnp.asarray(step_noise)[index]
        drift = size * (0.5 * state + score)
        return state + drift + jnp.sqrt(size) * noise, step_info(size, score)

    start = diffuse(keys, images, t_star, schedule, first_noise)
    table = np.stack([times[:-1], times[:-1] - times[1:]], axis=1)
    state, sizes, norms = scan_steps(step, start, table)
    return Trace(pixels(state), sizes, norms)


# --- few steps --------------------------------------------------------------------------------


def ddim(
    diffusion: Diffusion,
    keys: Keys,
    images: Array,
    *,
    t_star: float = 0.1,
    num_steps: int = 5,
    first_noise: Array | None = None,
) -> Trace:
    """Diffuse to t*, then ``num_steps`` deterministic DDIM steps to 0 (Song et al. 2021, 2010.02502).

    u ← α(t')·(u − √(1 − α(t)²)·ε̂)/α(t) + √(1 − α(t')²)·ε̂ along equal steps in t (equation 12 with
    σ = 0). ADBM (Li et al. 2025, arXiv 2408.00315) purifies with 5 steps.
    """
    check_count("num_steps", num_steps)
    schedule = diffusion.schedule

    def step(state: Array, index: Array, row: Array) -> tuple[Array, tuple[Array, Array]]:
        t, following = row
        noise = diffusion.noise_at(state, t)
        clean = (state - schedule.std(t) * noise) / schedule.mean(t)
        moved = schedule.mean(following) * clean + schedule.std(following) * noise
        return moved, step_info(t - following, noise / schedule.std(t))

    times = np.linspace(t_star, 0, num_steps + 1)
    start = diffuse(keys, images, t_star, schedule, first_noise)
    state, sizes, norms = scan_steps(step, start, np.stack([times[:-1], times[1:]], axis=1))
    return Trace(pixels(state), sizes, norms)


# --- as Purifier ------------------------------------------------------------------------------


@pytree
class DiffusionPurifier(Replaceable):
    """(keys ``[batch]``, images) → (purified ``[restarts, batch, h, w, c]``, info), in [0, 1].

    method: one of the functions above, ``guidance.guided`` or ``likelihood.likelihood_maximisation``.
    settings: its keyword arguments, as sorted pairs.
    """

    diffusion: Diffusion
    method: Callable[..., Trace] = static()
    settings: tuple[tuple[str, Any], ...] = static(default=())
    num_restarts: int = static(default=1)
    restarts_at_once: int | None = static(default=None)
    is_deterministic: bool = static(default=False)

    @property
    def score_fn(self) -> ScoreFn:
        """The score at a small noise, 0.01 of a pixel's range: what the images' density looks like."""
        return score_at(self.diffusion, 0.01)

    def __call__(self, keys: Keys, images: Array) -> tuple[Array, PurifyInfo]:
        check_images(images)

        def restart(index: Array) -> Trace:
            return self.method(
                self.diffusion, fold_keys(keys, index), images, **dict(self.settings)
            )

        indices, at_once = jnp.arange(self.num_restarts), self.restarts_at_once
        if at_once is None or at_once >= self.num_restarts:
            trace = jax.vmap(restart)(indices)
        else:
            trace = jax.lax.map(restart, indices, batch_size=at_once)
        sizes, norms = (jnp.moveaxis(a, 1, 0) for a in (trace.step_sizes, trace.score_norms))
        steps = jnp.full((self.num_restarts, images.shape[0]), sizes.shape[0], jnp.int32)
        return jnp.clip(trace.images, *BOUNDS), PurifyInfo(sizes, norms, steps)


def diffusion_purifier(
    method: Callable[..., Trace],
    diffusion: Diffusion,
    *,
    num_restarts: int = 1,
    restarts_at_once: int | None = None,
    **settings: Any,
) -> DiffusionPurifier:
    """A ``Purifier`` of one such function, e.g. ``diffusion_purifier(ddim, diffusion, num_steps=5)``."""
    check_count("num_restarts", num_restarts)
    return DiffusionPurifier(
        diffusion=diffusion,
        method=method,
        settings=tuple(sorted(settings.items())),
        num_restarts=num_restarts,
        restarts_at_once=restarts_at_once,
    )
