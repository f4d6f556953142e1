"""Auto-PGD: a step size that halves itself, momentum, and restarts from the best point.

Croce & Hein 2020, arXiv 2003.01690, algorithm 1, with the constants of the published code. For L1 the published
attack has a schedule of its own for how many pixels move (Croce & Hein 2021, arXiv 2103.01208). Here the step size
decides that as well: as it halves, fewer pixels reach their bound in a step (:func:`~purify_jax.attacks.norms.climb`).
"""

import functools
from dataclasses import KW_ONLY
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purify_jax.arrays import each, per_image
from purify_jax.attacks.norms import Norm, climb, get, project_into
from purify_jax.checks import check_at_least, check_count, check_epsilon, check_images
from purify_jax.keys import fold_keys
from purify_jax.pytrees import Pytree, static
from purify_jax.types import BOUNDS, Array, GradientFn, Keys, PredictFn


class _State(NamedTuple):
    images: Array
    previous: Array
    gradient: Array
    loss: Array
    best_images: Array
    best_gradient: Array
    best_loss: Array
    fooled_images: Array
    fooled: Array
    step_size: Array
    increases: Array
    reduced_last: Array
    loss_last_check: Array


def _checkpoints(num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """For the start and each step, whether the step size is reviewed after it, and the window's length."""
    window = max(int(0.22 * num_steps), 1)
    shrink, shortest = max(int(0.03 * num_steps), 1), max(int(0.06 * num_steps), 1)
    review, length, count = np.zeros(num_steps, bool), np.ones(num_steps, np.float32), 0
    for step in range(num_steps):
        count += 1
        length[step] = window
        if count == window:
            review[step], count = True, 0
            window = max(window - shrink, shortest)
    return np.append(False, review), np.append(np.float32(1), length)


class APGD(Pytree):
    """Auto-PGD along a gradient.

    For a random defense pass an :class:`~purify_jax.attacks.EOT` gradient; the schedule then follows the
    mean loss.

    gradient: (keys, images, labels) → (gradient, loss); every step gets fresh keys.
    epsilon: radius of the ball ≥ 0.
    predict: of a *deterministic* model. The attack then returns an iterate that was misclassified, if
      there was one, else that of highest loss. Leave it out for a random defense: one lucky draw is not a
      success there, and the attack returns the iterate of highest mean loss.
    rho: share of steps that must improve the loss for the step size to stay.
    norm: "linf", "l2" or "l1".
    num_steps: gradient steps ≥ 1.
    num_restarts: independent random starts ≥ 1; the one of highest loss is kept.

    Raises InputError for an unknown norm, ε < 0, zero steps or restarts.
    """

    gradient: GradientFn
    _: KW_ONLY
    epsilon: float
    predict: PredictFn | None = None
    rho: float = 0.75
    norm: str = static(default="linf")
    num_steps: int = static(default=100)
    num_restarts: int = static(default=1)

    def __post_init__(self) -> None:
        self.fill(norm=get(self.norm).name)
        check_epsilon(self.epsilon, self.norm)
        check_count("num_steps", self.num_steps)
        check_count("num_restarts", self.num_restarts)
        check_at_least("rho", self.rho, 0.0)

    def __call__(self, keys: Keys, images: Array, labels: Array) -> Array:
        check_images(images)
        if self.num_restarts == 1:
            return self._one_start(keys, images, labels)[0]
        restart = lambda r: self._one_start(fold_keys(keys, r), images, labels)
        results, loss, fooled = jax.lax.map(restart, jnp.arange(self.num_restarts))
        return pick(results, jnp.where(fooled, jnp.inf, loss))

    def _is_fooled(self, keys: Keys, images: Array, labels: Array) -> Array:
        if self.predict is None:
            return each(images, False, bool)
        return jnp.argmax(self.predict(keys, images), axis=-1) != labels

    def _one_start(self, keys: Keys, images: Array, labels: Array) -> tuple[Array, Array, Array]:
        norm, epsilon, num_steps = get(self.norm), self.epsilon, self.num_steps
        review, length = _checkpoints(num_steps)
        inside = _linf_inside if norm.name == "linf" else functools.partial(project_into, norm)
        start = _start(norm, fold_keys(keys, num_steps + 1), images, epsilon)
        of_each = functools.partial(each, images, dtype=jnp.result_type(images, jnp.float32))
        state = _State(
            images=start,
            previous=start,
            gradient=jnp.zeros_like(start),
            loss=of_each(0.0),
            best_images=start,
            best_gradient=jnp.zeros_like(start),
            best_loss=of_each(-jnp.inf),
            fooled_images=start,
            fooled=each(images, False, bool),
            step_size=each(images, 2.0 * epsilon),
            increases=of_each(0.0),
            reduced_last=each(images, True, bool),
            loss_last_check=of_each(0.0),
        )

        def step(state: _State, xs: tuple[Array, Array, Array]) -> tuple[_State, None]:
            index, reviewed, window = xs
            # The start is looked at within the loop, too: the gradient is traced and compiled once, not twice.
            is_start = index == num_steps
            grads = jnp.where(jnp.isfinite(state.gradient), state.gradient, 0.0)
            size = per_image(state.step_size, images)
            stepped = inside(images, climb(norm, state.images, grads, size), epsilon)
            momentum = jnp.where(index > 0, 0.75, 1.0)
            moved = (
                state.images
                + momentum * (stepped - state.images)
                + (1 - momentum) * (state.images - state.previous)
            )
            moved = jnp.where(is_start, start, inside(images, moved, epsilon))
            step_keys = fold_keys(keys, index)
            grads, loss = self.gradient(step_keys, moved, labels)
            grads, loss = grads.astype(images.dtype), loss.astype(state.loss.dtype)
            fooled = self._is_fooled(step_keys, moved, labels)
            better = loss > state.best_loss
            improved = (loss > state.loss).astype(state.increases.dtype)
            state = state._replace(
                images=moved,
                previous=state.images,
                gradient=grads,
                loss=jnp.where(
                    is_start, 0.0, loss
                ),  # as published: the first step is compared with 0
                best_images=_where(better, moved, state.best_images),
                best_gradient=_where(better, grads, state.best_gradient),
                best_loss=jnp.where(better, loss, state.best_loss),
                fooled_images=_where(fooled, moved, state.fooled_images),
                fooled=state.fooled | fooled,
                increases=jnp.where(is_start, 0.0, state.increases + improved),
                loss_last_check=jnp.where(is_start, loss, state.loss_last_check),
            )
            return _review(state, reviewed, window, self.rho), None

        indices = np.concatenate([[num_steps], np.arange(num_steps)]).astype(np.int32)
        xs = (jnp.asarray(indices), jnp.asarray(review), jnp.asarray(length))
        state, _ = jax.lax.scan(step, state, xs)
        result = _where(state.fooled, state.fooled_images, state.best_images)
        return result, state.best_loss, state.fooled


def _review(state: _State, reviewed: Array, window: Array, rho: float) -> _State:
    oscillates = state.increases <= window * rho
    stalled = ~state.reduced_last & (state.loss_last_check >= state.best_loss)
    reduce = reviewed & (oscillates | stalled)
    return state._replace(
        images=_where(reduce, state.best_images, state.images),
        gradient=_where(reduce, state.best_gradient, state.gradient),
        step_size=jnp.where(reduce, state.step_size / 2, state.step_size),
        increases=jnp.where(reviewed, 0.0, state.increases),
        reduced_last=jnp.where(reviewed, reduce, state.reduced_last),
        loss_last_check=jnp.where(reviewed, state.best_loss, state.loss_last_check),
    )


def _start(norm: Norm, keys: Keys, images: Array, epsilon: float) -> Array:
    # As published for Linf and L2: a uniform or normal draw, scaled to lie on the ball's surface.
    noise = norm.random(keys, images, 1.0)
    noise = noise / per_image(jnp.maximum(norm.size(noise), 1e-12), images)
    return jnp.clip(images + epsilon * noise, *BOUNDS).astype(images.dtype)


def _linf_inside(images: Array, moved: Array, epsilon: float) -> Array:
    inside = jnp.clip(jnp.clip(moved, images - epsilon, images + epsilon), *BOUNDS)
    return inside.astype(images.dtype)


def _where(condition: Array, yes: Array, no: Array) -> Array:
    return jnp.where(per_image(condition, yes), yes, no)


def pick(results: Array, values: Array) -> Array:
    """Per image, the result of the highest value: ``[n, batch, ...]``, ``[n, batch]`` → ``[batch, ...]``."""
    best = jnp.argmax(values, axis=0)
    return jax.vmap(lambda rows, i: rows[i], in_axes=(1, 0))(results, best)
