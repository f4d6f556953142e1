"""Projected gradient descent: one loop for every gradient, norm and number of steps."""

from dataclasses import KW_ONLY

import jax
import jax.numpy as jnp

from purify_jax.arrays import each, per_image
from purify_jax.attacks.norms import climb, get, project_into
from purify_jax.checks import check_at_least, check_count, check_epsilon, check_images
from purify_jax.keys import fold_keys
from purify_jax.pytrees import Pytree, static
from purify_jax.types import BOUNDS, Array, GradientFn, Keys


class PGD(Pytree):
    """PGD (Madry et al. 2018, arXiv 1706.06083): x ← project(x + η·steepest(∇L)).

    An ``Attack``: (keys ``[batch]``, images, labels) → adversarial images. ε and η are leaves, so that
    another ball does not recompile. A gradient that is not finite moves nothing.

    gradient: (keys, images, labels) → (gradient, loss); every step gets fresh keys.
    epsilon: radius of the ball ≥ 0, in units of a pixel's range (and of the norm).
    step_size: η, in the same units; None for 2.5·ε/min(num_steps, 40).
    norm: "linf", "l2" or "l1".
    num_steps: ≥ 1.
    random_start: start at a random point of the ball instead of the clean image.
    best_iterate: return the iterate of highest loss, the last one included (which costs one more loss
      evaluation), instead of the last.

    Raises InputError for ε < 0, a negative step size, zero steps or an unknown norm.
    """

    gradient: GradientFn
    _: KW_ONLY
    epsilon: float
    step_size: float | None = None
    norm: str = static(default="linf")
    num_steps: int = static()
    random_start: bool = static(default=True)
    best_iterate: bool = static(default=True)

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon, get(self.norm).name)
        check_count("num_steps", self.num_steps)
        if self.step_size is None:
            self.fill(step_size=default_step_size(self.epsilon, self.num_steps))
        check_at_least("step_size", self.step_size, 0.0)
        self.fill(norm=get(self.norm).name)

    def __call__(self, keys: Keys, images: Array, labels: Array) -> Array:
        check_images(images)
        norm, gradient, epsilon = get(self.norm), self.gradient, self.epsilon
        step_size = self.step_size
        assert step_size is not None  # __post_init__ has set it
        start = images
        if self.random_start:
            # Beyond the steps and the loss after the last one, which take 0 to num_steps.
            moved = norm.random(fold_keys(keys, self.num_steps + 1), images, epsilon)
            start = jnp.clip(images + moved, *BOUNDS).astype(images.dtype)

        def step(carry: tuple[Array, Array, Array], index: Array) -> tuple[tuple, None]:
            current, best, best_loss = carry
            grads, loss = gradient(fold_keys(keys, index), current, labels)
            best, best_loss = _keep_better(best, best_loss, current, loss)
            moved = climb(norm, current, jnp.where(jnp.isfinite(grads), grads, 0.0), step_size)
            return (project_into(norm, images, moved, epsilon), best, best_loss), None

        carry = (start, start, each(images, -jnp.inf, jnp.float32))
        # One more step for the loss of the last iterate; where that step leads is not used. A call after the loop
        # would trace and compile the gradient a second time.
        steps = jnp.arange(self.num_steps + self.best_iterate)
        (last, best, _), _ = jax.lax.scan(step, carry, steps)
        return best if self.best_iterate else last


def default_step_size(epsilon: float, num_steps: int) -> float:
    """2.5 ε/T with at most T = 40: far enough to cross the ball (Madry et al. 2018, section 5.1), and
    steps of ε/16 and more, so that a mean gradient means something."""
    return 2.5 * epsilon / min(num_steps, 40)


def _keep_better(best: Array, best_loss: Array, images: Array, loss: Array) -> tuple[Array, Array]:
    # "Not worse" rather than "better", so that of equal losses the later iterate is kept.
    better = (loss := loss.astype(best_loss.dtype)) >= best_loss
    return jnp.where(per_image(better, images), images, best), jnp.where(better, loss, best_loss)
