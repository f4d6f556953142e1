"""Norm balls: size, projection, steepest ascent and random points. One table, three norms."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from purify_jax.arrays import per_image
from purify_jax.checks import check_at_least, check_choice
from purify_jax.keys import stream
from purify_jax.types import BOUNDS, Array, Keys

_TINY = 1e-12


class Norm(NamedTuple):
    """What an attack needs to know of a norm; all arrays are ``[batch, ...]``.

    size: difference → its norm ``[batch]``.
    project: (difference, ε) → the difference, no larger than ε.
    steepest: gradient → direction of unit norm that ascends it fastest.
    random: (keys ``[batch]``, like, ε) → a random difference inside the ball.
    """

    name: str
    size: Callable[[Array], Array]
    project: Callable[[Array, float], Array]
    steepest: Callable[[Array], Array]
    random: Callable[[Keys, Array, float], Array]


def _flat(x: Array) -> Array:
    return x.reshape(x.shape[0], -1)


def _draw(sampler: Callable, keys: Keys, like: Array) -> Array:
    return jax.vmap(lambda key: sampler(key, like.shape[1:], like.dtype))(keys)


def _l2_size(x: Array) -> Array:
    return jnp.sqrt(jnp.sum(_flat(x) ** 2, axis=-1))


def _l2_project(x: Array, epsilon: float) -> Array:
    scale = jnp.minimum(1.0, epsilon / jnp.maximum(_l2_size(x), _TINY))
    return x * per_image(scale, x)


def _l2_steepest(x: Array) -> Array:
    return x / per_image(jnp.maximum(_l2_size(x), _TINY), x)


def _l2_random(keys: Keys, like: Array, epsilon: float) -> Array:
    # Uniform in the ball: uniform direction, radius ε·u^(1/d).
    direction = _l2_steepest(_draw(jax.random.normal, stream(keys, "direction"), like))
    return direction * per_image(_radius(keys, like, epsilon), like)


def _radius(keys: Keys, like: Array, epsilon: float) -> Array:
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (), like.dtype))(stream(keys, "radius"))
    return epsilon * uniform ** (1 / _flat(like).shape[1])


def _linf_random(keys: Keys, like: Array, epsilon: float) -> Array:
    return epsilon * (2 * _draw(jax.random.uniform, keys, like) - 1)


def _l1_size(x: Array) -> Array:
    return jnp.sum(jnp.abs(_flat(x)), axis=-1)


def _l1_project(x: Array, epsilon: float) -> Array:
    # Duchi et al. 2008, figure 1: soft-threshold at the level that leaves a sum of ε.
    magnitude = jnp.sort(jnp.abs(_flat(x)), axis=-1)[:, ::-1]
    excess = jnp.cumsum(magnitude, axis=-1) - epsilon
    ranks = jnp.arange(1, magnitude.shape[1] + 1)
    last = jnp.sum(magnitude * ranks > excess, axis=-1, keepdims=True)
    level = jnp.take_along_axis(excess, jnp.maximum(last - 1, 0), axis=-1)[:, 0] / last[:, 0]
    level = jnp.where(_l1_size(x) > epsilon, jnp.maximum(level, 0.0), 0.0)
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - per_image(level, x), 0.0)


def _l1_steepest(x: Array) -> Array:
    # The exact direction changes a single pixel; spread over ties so that it stays symmetric.
    magnitude = jnp.abs(x)
    largest = per_image(jnp.max(_flat(magnitude), axis=-1), x)
    chosen = jnp.where(magnitude >= largest, jnp.sign(x), 0.0)
    return chosen / per_image(jnp.maximum(_l1_size(chosen), 1.0), x)


def _l1_random(keys: Keys, like: Array, epsilon: float) -> Array:
    draw = _draw(jax.random.laplace, stream(keys, "direction"), like)
    radius = _radius(keys, like, epsilon)
    return draw * per_image(radius / jnp.maximum(_l1_size(draw), _TINY), like)


linf = Norm(
    "linf",
    size=lambda x: jnp.max(jnp.abs(_flat(x)), axis=-1),
    project=lambda x, epsilon: jnp.clip(x, -epsilon, epsilon),
    steepest=jnp.sign,
    random=_linf_random,
)
l2 = Norm("l2", _l2_size, _l2_project, _l2_steepest, _l2_random)
l1 = Norm("l1", _l1_size, _l1_project, _l1_steepest, _l1_random)
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
    """The nearest image (in ``norm``'s sense) within ε of ``images``, then clipped to the bounds.

    Clipping moves every pixel towards the clean image, which lies inside the bounds, so the
    result is still inside the ball.

    >>> clean, far = jnp.array([[0.5, 0.95]]), jnp.array([[0.2, 1.2]])
    >>> project_into(linf, clean, far, 0.1).tolist() == jnp.array([[0.4, 1.0]]).tolist()
    True
    """
    return jnp.clip(images + norm.project(adversarial - images, epsilon), *BOUNDS)


def check_epsilon(epsilon: float) -> None:
    """Raises InputError unless ε is a finite number ≥ 0 (a traced ε, for sweeps, may be anything)."""
    check_at_least("epsilon", epsilon, 0)
