"""How well denoisers denoise: peak signal-to-noise ratios, beside what a blur does."""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from purify_jax.checks import check_at_least
from purify_jax.keys import image_keys, normal_like
from purify_jax.purifiers import gaussian_blur
from purify_jax.types import Array

#: (noisy images, σ) → denoised images.
DenoiseFn = Callable[[Array, Array], Array]

#: Widths in pixels of the Gaussian blurs, the best of which stands beside a denoiser.
BLURS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.25, 1.5, 1.75, 2.0)


def psnr(images: Array, reference: Array) -> Array:
    """−10 log₁₀ of the mean squared difference, in decibels, one per image ``[batch]``.

    Both ``[batch, h, w, c]``, in units of a pixel's range.
    """
    error = jnp.mean((images - reference).reshape(images.shape[0], -1) ** 2, axis=-1)
    return -10.0 * jnp.log10(error)


def noisy(key: Array, images: Array, sigma: float) -> Array:
    """Images plus Gaussian noise of the standard deviation ``sigma``, not clipped."""
    check_at_least("sigma", sigma, 0.0)
    keys = image_keys(key, jnp.arange(images.shape[0]))
    return images + sigma * normal_like(keys, images)


def blurred(key: Array, images: Array, width: float) -> Array:
    """Images of any values after a Gaussian filter of ``width`` pixels, clipped to [0, 1] then."""
    return _blur(width)(image_keys(key, jnp.arange(images.shape[0])), images)


@functools.cache
def _blur(width: float) -> Callable[[Array, Array], Array]:
    """Compiled once per width; traced, because a purifier called with values refuses those outside [0, 1]."""
    return jax.jit(lambda keys, images: gaussian_blur(width)(keys, images)[0][0])


def table(
    denoise: DenoiseFn,
    key: Array,
    images: np.ndarray,
    sigmas: Sequence[float],
    batch_size: int = 64,
) -> list[Mapping[str, float]]:
    """Mean PSNR at each σ of the noisy images, the best blur and the denoiser.

    The blur's width is the best of :data:`BLURS` for these very images, to its advantage. Outputs
    are clipped to [0, 1] before they are compared, all of them.

    Args:
      denoise: (noisy images, σ ``[batch]``) → denoised images.
      key: of the noise.
      images: ``[n, h, w, c]`` float32 in [0, 1].
      sigmas: noise levels in units of a pixel's range.
    """
    clip = lambda x: jnp.clip(x, 0.0, 1.0)
    run = jax.jit(denoise)
    rows: list[Mapping[str, float]] = []
    for index, sigma in enumerate(sigmas):
        seen = noisy(jax.random.fold_in(key, index), jnp.asarray(images), sigma)
        parts = [
            run(part, jnp.full(part.shape[:1], sigma, jnp.float32))
            for part in jnp.split(seen, list(range(batch_size, len(images), batch_size)))
        ]
        scored = lambda x: float(psnr(clip(x), jnp.asarray(images)).mean())
        blurs = {width: scored(blurred(key, seen, width)) for width in BLURS}
        best = max(blurs, key=blurs.__getitem__)
        rows.append(
            {
                "sigma": sigma,
                "noisy": scored(seen),
                "blur": blurs[best],
                "blur_width": best,
                "denoised": scored(jnp.concatenate(parts)),
            }
        )
    return rows
