"""Training of noise-conditional denoisers, weighted as by Karras et al. 2022 (EDM, arXiv 2206.00364)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from purify_jax.arrays import per_image
from purify_jax.keys import LEVEL, NOISE, fold_keys, normal_like
from purify_jax.pytrees import Partial, pytree, static
from purify_jax.types import Array, Keys

#: (noisy images, σ ``[batch]``) → what denoising adds to them, D(x; σ) − x.
DisplacementFn = Callable[[Array, Array], Array]


def log_normal(mean: float, std: float) -> Callable[[Keys], Array]:
    """keys ``[batch]`` → σ ``[batch]`` with ln σ ~ N(mean, std²).

    The published mean of −1.2 is for images in [−1, 1]; in [0, 1] the same levels have −1.2 − ln 2.
    """
    return Partial(_log_normal, mean, std)


def _log_normal(mean: float, std: float, keys: Keys) -> Array:
    return jnp.exp(mean + std * jax.vmap(jax.random.normal)(keys))


def denoising_loss(
    displacement_fn: DisplacementFn,
    keys: Keys,
    images: Array,
    draw_sigmas: Callable[[Keys], Array],
    data_std: float = 0.25,
) -> Array:
    """(σ² + d²)/(σ d)² · mean over pixels of (D(y + σε; σ) − y)², one per image ``[batch]``.

    The weight is one over the error that the best denoiser of Gaussian data of the standard
    deviation d leaves, so that such data have the loss 1 at every σ, and photographs less.

    Args:
      displacement_fn: (x, σ) → D(x; σ) − x.
      keys: ``[batch]``; image i's level and noise depend on key i alone.
      images: ``[batch, h, w, c]`` in [0, 1], the y above.
      draw_sigmas: keys → positive σ ``[batch]``, :func:`log_normal` for one.
      data_std: d, of the data around ½.
    """
    sigmas = draw_sigmas(fold_keys(keys, LEVEL))
    step = per_image(sigmas, images) * normal_like(fold_keys(keys, NOISE), images)
    # D(x) − y = (D(x) − x) + (x − y).
    error = displacement_fn(images + step, sigmas) + step
    weight = (sigmas**2 + data_std**2) / (sigmas * data_std) ** 2
    return weight * jnp.mean(error.reshape(images.shape[0], -1) ** 2, axis=-1)


@pytree
class EDMLoss:
    """See :func:`edm_loss`."""

    draw_sigmas: Any
    network: nn.Module = static()

    def __call__(self, params, batch_stats, keys, images, labels):
        variables = {"params": params}
        displacement_fn: Any = lambda x, sigmas: self.network.apply(variables, x, sigmas)
        data_std = self.network.data_std  # type: ignore[attr-defined]
        loss = denoising_loss(displacement_fn, keys, images, self.draw_sigmas, data_std).mean()
        return loss, ({"loss": loss}, batch_stats)


def edm_loss(network: nn.Module, draw_sigmas: Callable[[Keys], Array]) -> EDMLoss:
    """:func:`denoising_loss` of a network (images, σ) → displacement, for ``training.scan_steps``."""
    return EDMLoss(network=network, draw_sigmas=draw_sigmas)
