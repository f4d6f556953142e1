"""Energies and scores: two ways to one ``ScoreFn``.

p(x) ∝ exp(−E(x)), and the score is s(x) = −∇E(x). Either a network gives the energy and
automatic differentiation gives the score, or a network gives the score at once.
"""

from collections.abc import Callable
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from purify_jax.arrays import dot
from purify_jax.checks import InputError
from purify_jax.pytrees import Partial, Pytree, as_pytree, static
from purify_jax.types import Array, EnergyFn, Params, ScoreFn


def _descend(energy_fn: EnergyFn, images: Array) -> Array:
    return -jax.grad(lambda x: jnp.sum(energy_fn(x)))(images)


def score_from_energy(energy_fn: EnergyFn) -> ScoreFn:
    """s(x) = −∇E(x), by automatic differentiation; images → the same shape."""
    return Partial(_descend, as_pytree(energy_fn))


class NetworkEnergy(Pytree):
    """The energy of a network and its parameters; images → ``[batch]``.

    A network with one output per image is the energy itself. A network with an image as output, g, gives
    E(x) = ½‖x − g(x)‖² (Salimans & Ho 2021, "Should EBMs model the energy or the score?", equation 8),
    which learns far better than a bare scalar.

    A call raises InputError for any other output shape.
    """

    network: nn.Module = static(kw_only=False)
    params: Params

    def __call__(self, images: Array) -> Array:
        output = cast(Array, self.network.apply({"params": self.params}, images))
        if output.shape == images.shape:
            return 0.5 * jnp.sum((images - output).reshape(images.shape[0], -1) ** 2, axis=-1)
        if output.shape in ((images.shape[0],), (images.shape[0], 1)):
            return output.reshape(images.shape[0])
        raise InputError(
            f"network: output shape {output.shape} for images {images.shape}, "
            "expected the images' shape or one number per image"
        )


class NetworkScore(Pytree):
    """The raw output f(x) of a score network, which purification uses as it is (σ := 1).

    A call raises InputError unless the network's output has the images' shape.
    """

    network: nn.Module = static(kw_only=False)
    params: Params

    def __call__(self, images: Array) -> Array:
        output = cast(Array, self.network.apply({"params": self.params}, images))
        if output.shape != images.shape:
            raise InputError(
                f"network: output shape {output.shape}, expected the images' {images.shape}"
            )
        return output


def score_from_energy_network(network: nn.Module, params: Params) -> ScoreFn:
    """``score_from_energy(NetworkEnergy(network, params))``."""
    return score_from_energy(NetworkEnergy(network, params))


def difference(
    score_fn: ScoreFn, start: Array, end: Array, scores: tuple[Array, Array] | None = None
) -> Array:
    """E(end) − E(start) per image, from the score alone: −½⟨s(start) + s(end), end − start⟩.

    The trapezoid rule for the line integral of −s; exact for quadratic energies. ``scores`` are
    the two scores, if they are known already.
    """
    first, last = (score_fn(start), score_fn(end)) if scores is None else scores
    return -0.5 * dot(first + last, end - start)


def _quadratic(mean: Array, precision: Array, images: Array) -> Array:
    centred = (images - jnp.asarray(mean)[None]).reshape(images.shape[0], -1)
    return 0.5 * jnp.einsum("bi,ij,bj->b", centred, precision, centred)


def gaussian_energy(mean: Array, precision: Array) -> EnergyFn:
    """E(x) = ½(x − μ)ᵀ P (x − μ) with mean ``[h, w, c]`` and precision ``[d, d]``, d = h·w·c.

    The closed form that samplers and purifiers are tested against; its score is −P(x − μ).
    """
    return Partial(_quadratic, mean, precision)


#: (network, params) → ScoreFn; the two choices of a training run and of a saved model.
ScoreFactory = Callable[[nn.Module, Params], ScoreFn]
