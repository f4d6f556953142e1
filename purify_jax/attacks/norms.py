"""Norm balls: size, projection, steepest ascent and random points. One table, three norms.

An L1 ball reaches far beyond the bounds of a pixel. L1 attacks therefore project onto the intersection of ball and
bounds, and step along the steepest direction that the bounds allow (Croce & Hein 2021, arXiv 2103.01208). How many
pixels a step moves follows from its size. Linf and L2 project onto the ball and clip afterwards, as published.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from purify_jax.arrays import per_image
from purify_jax.checks import check_choice
from purify_jax.keys import draw_each, stream
from purify_jax.types import BOUNDS, Array, Keys

_TINY = 1e-12
_HALVINGS = 30


class Norm(NamedTuple):
    """What an attack needs to know of a norm; all arrays are ``[batch, ...]``.

    size: difference → its norm ``[batch]``.
    project: (difference, ε, low, high) → the nearest difference no larger than ε; for L1 the nearest that
      also lies between low ≤ 0 and high ≥ 0.
    step: (gradient, η, low, high) → the change of size η that ascends the gradient fastest; for L1 the
      fastest between low and high, shorter than η only where they leave less. η is a number or one per
      image, ``[batch, 1, ...]``.
    random: (keys ``[batch]``, like, ε) → a random difference inside the ball.
    """

    name: str
    size: Callable[[Array], Array]
    project: Callable[[Array, float, Array | float, Array | float], Array]
    step: Callable[[Array, Array | float, Array | float, Array | float], Array]
    random: Callable[[Keys, Array, float], Array]

    def steepest(self, gradient: Array) -> Array:
        """The direction of unit norm that ascends a gradient fastest, bounds aside."""
        return self.step(gradient, 1.0, -jnp.inf, jnp.inf)


def _flat(x: Array) -> Array:
    return x.reshape(x.shape[0], -1)


def _draw(sampler: Callable, keys: Keys, like: Array) -> Array:
    return draw_each(lambda key: sampler(key, like.shape[1:], like.dtype), keys)


def _l2_size(x: Array) -> Array:
    return jnp.sqrt(jnp.sum(_flat(x) ** 2, axis=-1))


def _l2_project(x: Array, epsilon: float, *_: Array | float) -> Array:
    scale = jnp.minimum(1.0, epsilon / jnp.maximum(_l2_size(x), _TINY))
    return x * per_image(scale, x)


def _l2_steepest(x: Array) -> Array:
    return x / per_image(jnp.maximum(_l2_size(x), _TINY), x)


def _l2_step(gradient: Array, eta: Array | float, *_: Array | float) -> Array:
    return eta * _l2_steepest(gradient)


def _l2_random(keys: Keys, like: Array, epsilon: float) -> Array:
    # Uniform in the ball: uniform direction, radius ε·u^(1/d).
    direction = _l2_steepest(_draw(jax.random.normal, stream(keys, "direction"), like))
    return direction * per_image(_radius(keys, like, epsilon), like)


def _radius(keys: Keys, like: Array, epsilon: float) -> Array:
    draw = lambda key: jax.random.uniform(key, (), like.dtype)
    uniform = draw_each(draw, stream(keys, "radius"))
    return epsilon * uniform ** (1 / _flat(like).shape[1])


def _linf_random(keys: Keys, like: Array, epsilon: float) -> Array:
    return epsilon * (2 * _draw(jax.random.uniform, keys, like) - 1)


def _l1_size(x: Array) -> Array:
    return jnp.sum(jnp.abs(_flat(x)), axis=-1)


def _level(
    amount: Callable[[Array], Array], limit: Array | float, top: Array
) -> tuple[Array, Array]:
    """(a, b) per image with amount(a) > limit ≥ amount(b), for an amount that falls to 0 at ``top``.

    Bisected to float precision. a is 0 where amount(0) is within the limit.
    """

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        above = amount(middle) > limit
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    return jax.lax.fori_loop(0, _HALVINGS, halve, (jnp.zeros_like(top), top))


def _l1_project(x: Array, epsilon: float, low: Array | float, high: Array | float) -> Array:
    # Soft-threshold at the level that leaves a sum of ε, and no pixel beyond its bound.
    magnitude, room = jnp.abs(x), jnp.where(x > 0, high, -low)
    shrink = lambda level: jnp.clip(magnitude - per_image(level, x), 0.0, room)
    amount = lambda level: _l1_size(shrink(level))
    _, level = _level(amount, epsilon, jnp.max(_flat(magnitude), axis=-1))
    return jnp.sign(x) * shrink(jnp.where(amount(jnp.zeros_like(level)) > epsilon, level, 0.0))


def _l1_step(gradient: Array, eta: Array | float, low: Array | float, high: Array | float) -> Array:
    # The pixels of largest gradient, each to its bound, until η is spent. Pixels of equal gradient share what
    # is left, so that the direction is as symmetric as the gradient.
    magnitude = jnp.abs(gradient)
    room = jnp.minimum(jnp.where(gradient > 0, high, -low), eta)
    room = jnp.where(magnitude > 0, room, 0.0)
    above = lambda level: jnp.where(magnitude > per_image(level, gradient), room, 0.0)
    amount = lambda level: jnp.sum(_flat(above(level)), axis=-1)
    least, level = _level(amount, jnp.ravel(eta), jnp.max(_flat(magnitude), axis=-1))
    whole = above(level)
    rest = above(least) - whole
    left = jnp.ravel(eta) - amount(level)
    share = left / jnp.maximum(jnp.sum(_flat(rest), axis=-1), _TINY)
    return jnp.sign(gradient) * (whole + per_image(jnp.clip(share, 0.0, 1.0), rest) * rest)


def _l1_random(keys: Keys, like: Array, epsilon: float) -> Array:
    draw = _draw(jax.random.laplace, stream(keys, "direction"), like)
    radius = _radius(keys, like, epsilon)
    return draw * per_image(radius / jnp.maximum(_l1_size(draw), _TINY), like)


linf = Norm(
    "linf",
    size=lambda x: jnp.max(jnp.abs(_flat(x)), axis=-1),
    project=lambda x, epsilon, low, high: jnp.clip(x, -epsilon, epsilon),
    step=lambda gradient, eta, low, high: eta * jnp.sign(gradient),
    random=_linf_random,
)
l2 = Norm("l2", _l2_size, _l2_project, _l2_step, _l2_random)
l1 = Norm("l1", _l1_size, _l1_project, _l1_step, _l1_random)
_BY_NAME = {norm.name: norm for norm in (linf, l2, l1)}


def get(norm: str | Norm) -> Norm:
    """A norm by name ("linf", "l2", "l1"), or a :class:`Norm` as it is.

    Raises InputError for another name.
    """
    if isinstance(norm, Norm):
        return norm
    check_choice("norm", norm, sorted(_BY_NAME))
    return _BY_NAME[norm]


def project_into(norm: Norm, images: Array, adversarial: Array, epsilon: float) -> Array:
    """The nearest image (in Euclid's sense) within ε of ``images``, then clipped to the bounds.

    Clipping moves every pixel towards the clean image, which lies inside the bounds, so the
    result is still inside the ball. For L1 it is the nearest image inside both.

    >>> clean, far = jnp.array([[0.5, 0.95]]), jnp.array([[0.2, 1.2]])
    >>> project_into(linf, clean, far, 0.1).tolist() == jnp.array([[0.4, 1.0]]).tolist()
    True
    """
    low, high = BOUNDS
    difference = norm.project(adversarial - images, epsilon, low - images, high - images)
    return jnp.clip(images + difference, low, high).astype(images.dtype)


def climb(norm: Norm, images: Array, gradient: Array, step_size: Array | float) -> Array:
    """``images``, moved by a step up the gradient, before any projection.

    step_size: ≥ 0 in units of the norm, a number or one per image, ``[batch, 1, ...]``.

    >>> dark, gradient = jnp.array([[0.0, 0.5, 0.5]]), jnp.array([[-3.0, 2.0, -1.0]])
    >>> climb(l1, dark, gradient, 0.75).tolist()  # the first pixel cannot get darker
    [[0.0, 1.0, 0.25]]
    """
    low, high = BOUNDS
    return images + norm.step(gradient, step_size, low - images, high - images)
