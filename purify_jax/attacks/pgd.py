"""Projected gradient descent: one loop for every gradient, norm and number of steps."""

import jax
import jax.numpy as jnp

from purify_jax.attacks.norms import Norm, check_epsilon, get, project_into
from purify_jax.types import (
    BOUNDS,
    Array,
    Attack,
    GradientFn,
    Keys,
    check_at_least,
    check_images,
    fold_keys,
    per_image,
)


def pgd(
    gradient: GradientFn,
    *,
    norm: str | Norm = "linf",
    epsilon: float,
    step_size: float,
    num_steps: int,
    random_start: bool = True,
    best_iterate: bool = True,
) -> Attack:
    """PGD (Madry et al. 2018, arXiv 1706.06083): x ← project(x + η·steepest(∇L)).

    Args:
      gradient: (keys, images, labels) → (gradient, loss); every step gets fresh keys.
      norm: "linf", "l2", "l1" or a ``Norm``.
      epsilon: radius of the ball ≥ 0, in units of a pixel's range (and of the norm).
      step_size: η, in the same units.
      num_steps: ≥ 1.
      random_start: start at a random point of the ball instead of the clean image.
      best_iterate: return the iterate of highest loss, the last one included (which costs one
        more loss evaluation), instead of the last.

    Returns an ``Attack``: (keys ``[batch]``, images, labels) → adversarial images. A gradient
    that is not finite moves nothing. Raises InputError for ε < 0 or zero steps.
    """
    ball = get(norm)
    check_epsilon(epsilon)
    check_at_least("step_size", step_size, 0.0)
    check_at_least("num_steps", num_steps, 1)

    def attack(keys: Keys, images: Array, labels: Array) -> Array:
        check_images(images)
        start = images
        if random_start:
            start_keys = fold_keys(keys, num_steps + 1)
            start = jnp.clip(images + ball.random(start_keys, images, epsilon), *BOUNDS)

        def step(carry: tuple[Array, Array, Array], index: Array) -> tuple[tuple, None]:
            current, best, best_loss = carry
            grads, loss = gradient(fold_keys(keys, index), current, labels)
            best, best_loss = _keep_better(best, best_loss, current, loss)
            direction = ball.steepest(jnp.where(jnp.isfinite(grads), grads, 0.0))
            moved = project_into(ball, images, current + step_size * direction, epsilon)
            return (moved, best, best_loss), None

        carry = (start, start, jnp.full(images.shape[0], -jnp.inf, images.dtype))
        (last, best, best_loss), _ = jax.lax.scan(step, carry, jnp.arange(num_steps))
        if not best_iterate:
            return last
        _, loss = gradient(fold_keys(keys, num_steps), last, labels)
        return _keep_better(best, best_loss, last, loss)[0]

    return attack


def _keep_better(best: Array, best_loss: Array, images: Array, loss: Array) -> tuple[Array, Array]:
    # "Not worse" rather than "better", so that of equal losses the later iterate is kept.
    better = loss >= best_loss
    return jnp.where(per_image(better, images), images, best), jnp.where(better, loss, best_loss)
