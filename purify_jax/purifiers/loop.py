"""What all purifiers share: noise restarts, a scan over steps, and flat memory backwards."""

import functools
from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Protocol, TypeAlias, runtime_checkable

import chex
import jax
import jax.numpy as jnp

from purify_jax.arrays import each, l2_norm
from purify_jax.checks import check_count, check_images
from purify_jax.keys import fold_keys, threefry
from purify_jax.pytrees import Pytree, static
from purify_jax.types import BOUNDS, Array, Carry, Keys, PurifyFn, PurifyInfo, ScoreFn

#: (carry, index of the step) → (carry, (step size, score norm) of each image).
Step: TypeAlias = Callable[[Carry, Array], tuple[Carry, tuple[Array, Array]]]


@runtime_checkable
class Purifier(Protocol):
    """(keys ``[batch]``, images) → (purified ``[restarts, batch, h, w, c]``, :class:`~purify_jax.types.PurifyInfo`).

    A pytree, see :mod:`purify_jax.pytrees`. Everything that takes a purifier takes a plain function
    of this signature too; it then counts as random and without a score.
    """

    @property
    def score_fn(self) -> ScoreFn | None:
        """The score that the purifier climbs, or None: what the joint attack climbs."""

    @property
    def is_deterministic(self) -> bool:
        """Whether it draws nothing from its keys: one draw is then as good as many."""

    def __call__(self, keys: Keys, images: Array) -> tuple[Array, PurifyInfo]: ...


def score_of(purifier: object) -> ScoreFn | None:
    """The purifier's ``score_fn``, or None if it has none."""
    return getattr(purifier, "score_fn", None)


def is_deterministic(purifier: object) -> bool:
    """Whether a purifier says that it draws nothing."""
    return bool(getattr(purifier, "is_deterministic", False))


class WrappedPurifier(Pytree):
    """Another purifier with its score and randomness; a subclass changes what a call does."""

    purifier: PurifyFn

    @property
    def score_fn(self) -> ScoreFn | None:
        """The purifier's own."""
        return score_of(self.purifier)

    @property
    def is_deterministic(self) -> bool:
        """As the purifier."""
        return is_deterministic(self.purifier)


class SteppedPurifier(Pytree):
    """Restarts and steps; a subclass says what happens in ``start``, ``step`` and ``end``.

    num_steps: T ≥ 1, num_restarts: S ≥ 1.
    restarts_at_once: how many restarts are computed side by side; all by default. Fewer take less memory.

    Raises InputError for zero steps or restarts.
    """

    _: KW_ONLY
    num_steps: int = static(default=1)
    num_restarts: int = static(default=1)
    restarts_at_once: int | None = static(default=None)
    is_deterministic = False

    def __post_init__(self) -> None:
        check_count("num_steps", self.num_steps)
        check_count("num_restarts", self.num_restarts)
        if self.restarts_at_once is not None:
            check_count("restarts_at_once", self.restarts_at_once)

    def start(self, keys: Keys, images: Array) -> Carry:
        """The carry before the first step of one restart; its first element are images."""
        raise NotImplementedError(f"{type(self).__name__}.start")

    def step(self, keys: Keys, carry: Carry, index: Array) -> tuple[Carry, tuple[Array, Array]]:
        """The carry after step ``index``, and (step size, score norm) of each image.

        ``keys`` are those of the restart; a step that draws folds its index into them.
        """
        raise NotImplementedError(f"{type(self).__name__}.step")

    def stepper(self, keys: Keys, images: Array) -> Step:
        """``step`` of one restart; a purifier whose steps look at its input again overrides it."""
        return functools.partial(self.step, keys)

    def end(self, images: Array) -> Array:
        """The purified images from those of the last carry."""
        return images

    def check(self, images: Array) -> None:
        """Raises InputError for images that cannot be purified."""
        check_images(images)

    def __call__(self, keys: Keys, images: Array) -> tuple[Array, PurifyInfo]:
        """(keys ``[batch]``, images in [0, 1]) → (purified ``[restarts, batch, h, w, c]``, info).

        Raises InputError for images of wrong rank or type, or, outside jit, of wrong values.
        """
        self.check(images)
        keys = threefry(keys)
        chex.assert_shape(keys, images.shape[:1])
        restart = lambda r: self._one_restart(fold_keys(keys, r), images)
        indices = jnp.arange(self.num_restarts)
        if self.restarts_at_once is None or self.restarts_at_once >= self.num_restarts:
            purified, (sizes, norms) = jax.vmap(restart)(indices)
        else:
            purified, (sizes, norms) = jax.lax.map(
                restart, indices, batch_size=self.restarts_at_once
            )
        active = jnp.sum(sizes > 0, axis=1, dtype=jnp.int32)
        return purified, PurifyInfo(jnp.moveaxis(sizes, 1, 0), jnp.moveaxis(norms, 1, 0), active)

    def _one_restart(self, keys: Keys, images: Array) -> tuple[Array, tuple[Array, Array]]:
        # Each step is a checkpoint: the backward pass keeps the carried images only and computes
        # a network's activations again, so its memory does not grow with the network × T.
        step = jax.checkpoint(self.stepper(keys, images), prevent_cse=False)
        carry, info = jax.lax.scan(step, self.start(keys, images), jnp.arange(self.num_steps))
        return self.end(carry[0]), info

    def trajectory(self, keys: Keys, images: Array, restart: int = 0) -> Array:
        """All iterates of one restart, ``[T + 1, batch, h, w, c]``, from the first carry on."""
        restart_keys = fold_keys(keys, restart)
        carry, step = self.start(restart_keys, images), self.stepper(restart_keys, images)
        moved = lambda carry, index: (new := step(carry, index)[0], new[0])
        _, iterates = jax.lax.scan(moved, carry, jnp.arange(self.num_steps))
        return jnp.concatenate([carry[0][None], iterates])


class ClippedPurifier(SteppedPurifier):
    """A purifier whose steps may leave the pixels' range: the result is clipped once, at the end.

    bounds: None for inputs and results of any value.
    """

    _: KW_ONLY
    bounds: tuple[float, float] | None = static(default=BOUNDS)

    def check(self, images: Array) -> None:
        if self.bounds is not None:
            check_images(images)

    def end(self, images: Array) -> Array:
        return clip_to(self.bounds, images)


def clip_to(bounds: tuple[float, float] | None, images: Array) -> Array:
    """The images clipped to ``bounds`` (as they are for None)."""
    return images if bounds is None else jnp.clip(images, *bounds)


def step_info(images: Array, size: float | Array, score: Array) -> tuple[Array, Array]:
    """(step size, score norm) of each image, for a step size that all images share."""
    chex.assert_equal_shape((images, score))
    return each(images, size), l2_norm(score)


class Filter(Pytree):
    """A deterministic map of images as a purifier of one restart and no steps.

    function: images → images. bounds: the result is clipped to them; None for a map that stays inside
    by itself, since clipping halves the derivative of a pixel that lies on the bound.
    """

    function: Callable[[Array], Array]
    bounds: tuple[float, float] | None = static(default=BOUNDS)
    num_restarts = 1
    is_deterministic = True
    score_fn = None

    def __call__(self, keys: Keys, images: Array) -> tuple[Array, PurifyInfo]:
        """(keys, which are not used, images) → (purified ``[1, batch, h, w, c]``, info)."""
        del keys
        check_images(images)
        none = jnp.zeros((0, 1, images.shape[0]), images.dtype)
        info = PurifyInfo(none, none, jnp.zeros((1, images.shape[0]), jnp.int32))
        return clip_to(self.bounds, self.function(images))[None], info
