"""Momentum PGD for random defenses: the mean over draws is taken along the path, not at every point.

A defense that draws fresh noise gives another gradient at every call. Expectation over transformation
averages many at one point and then moves once; momentum over normalised gradients averages them while
moving, and a step size that falls to zero lets the path settle, so that the last iterate is the
result. Momentum: Dong et al. 2018 (MI-FGSM, arXiv 1710.06081), equation 6.
"""

from dataclasses import KW_ONLY

import jax
import jax.numpy as jnp

from purify_jax.arrays import per_image
from purify_jax.attacks.norms import climb, get, project_into
from purify_jax.checks import (
    check_at_least,
    check_count,
    check_epsilon,
    check_images,
    check_number,
)
from purify_jax.keys import fold_keys
from purify_jax.pytrees import Pytree, static
from purify_jax.types import BOUNDS, Array, Attack, GradientFn, Keys


class MomentumPGD(Pytree):
    """x ← project(x + η_t · steepest(g_t)) with g_t = μ g_{t−1} + ∇L / mean|∇L|; the last x.

    η_t falls from ``step_size`` to 0 along half a cosine.

    gradient: (keys, images, labels) → (gradient, loss); every step gets fresh keys.
    epsilon: radius of the ball ≥ 0.
    step_size: η_0, in units of ε's; by default ε/4, or 4ε/T for T < 16 steps, so that the path is as long
      as the ball is wide.
    momentum: μ in [0, 1).
    start: an attack whose result is where this one begins (a warm start); else a random point.
    norm: "linf", "l2" or "l1".
    num_steps: ≥ 1.

    Raises InputError for ε < 0, zero steps, momentum outside [0, 1).
    """

    gradient: GradientFn
    _: KW_ONLY
    epsilon: float
    step_size: float | None = None
    momentum: float = 0.9
    start: Attack | None = None
    norm: str = static(default="linf")
    num_steps: int = static()

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon, get(self.norm).name)
        check_count("num_steps", self.num_steps)
        check_number("momentum", self.momentum, 0.0, 1.0, open_high=True)
        if self.step_size is None:
            self.fill(step_size=self.epsilon * max(1 / 4, 4 / self.num_steps))
        check_at_least("step_size", self.step_size, 0.0)
        self.fill(norm=get(self.norm).name)

    def __call__(self, keys: Keys, images: Array, labels: Array) -> Array:
        check_images(images)
        norm, epsilon, step_size = get(self.norm), self.epsilon, self.step_size
        assert step_size is not None  # __post_init__ has set it
        start_keys = fold_keys(keys, self.num_steps + 1)
        if self.start is None:
            begin = jnp.clip(images + norm.random(start_keys, images, epsilon), *BOUNDS)
            begin = begin.astype(images.dtype)
        else:
            begin = self.start(start_keys, images, labels)

        def step(carry: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], None]:
            current, average = carry
            grads, _ = self.gradient(fold_keys(keys, index), current, labels)
            grads = jnp.where(jnp.isfinite(grads), grads, 0.0).astype(images.dtype)
            # Every draw counts the same, however steep the loss is there.
            size = jnp.mean(jnp.abs(grads), axis=(1, 2, 3))
            average = self.momentum * average + grads / per_image(jnp.maximum(size, 1e-30), grads)
            left = 0.5 * (1.0 + jnp.cos(jnp.pi * index.astype(images.dtype) / self.num_steps))
            moved = climb(norm, current, average, left * step_size)
            return (project_into(norm, images, moved, epsilon), average), None

        carry = (begin, jnp.zeros_like(images))
        (last, _), _ = jax.lax.scan(step, carry, jnp.arange(self.num_steps))
        return last
