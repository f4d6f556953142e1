"""JPEG in JAX, as a purifier: the standard's transform and quantisation, without the coding.

Dziugaite et al. 2016 (arXiv 1608.00853) tried it as a defense. It is a control: it shows how far a
fixed filter gets.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from purify_jax.checks import InputError, check_count
from purify_jax.purifiers.loop import Filter
from purify_jax.pytrees import Partial
from purify_jax.types import Array

#: Quantisation tables of ITU-T T.81, annex K.1: luminance, chrominance.
_LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
_CHROMINANCE = np.full((8, 8), 99)
_CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
_TO_YCBCR = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
)
_TO_RGB = np.linalg.inv(_TO_YCBCR)
# The orthonormal DCT-II of 8 points.
_DCT = np.array(
    [
        [math.sqrt((1 if k == 0 else 2) / 8) * math.cos(math.pi * k * (2 * n + 1) / 16) for n in range(8)]
        for k in range(8)
    ]
)  # fmt: skip


def quantisation_table(table: np.ndarray, quality: int) -> np.ndarray:
    """The table at a quality of 1 to 100, as the Independent JPEG Group scales it."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip((table * scale + 50) // 100, 1, 255)


def _round_through(x: Array) -> Array:
    # Rounding has derivative 0 almost everywhere, which would stop a gradient attack at a fixed filter.
    return x + jax.lax.stop_gradient(jnp.round(x) - x)


def jpeg(quality: int) -> Filter:
    """JPEG at a quality of 1 to 100, colour without subsampling; rounding differentiates as 1.

    Equals Pillow's within two grey levels of 255, but for a few blocks where Pillow's integer
    transform rounds a coefficient the other way (tested). Images whose sides are not
    multiples of 8 are padded with their edges. Raises InputError for another quality or number of channels.
    """
    check_count("quality", quality, 1, 100)
    tables = tuple(
        jnp.asarray(quantisation_table(t, quality), jnp.float32) for t in (_LUMINANCE, _CHROMINANCE)
    )
    return Filter(Partial(_compress, tables))


def _compress(tables: tuple[Array, Array], images: Array) -> Array:
    batch, height, width, channels = images.shape
    if channels not in (1, 3):
        raise InputError(f"images: got {channels} channels, expected 1 (grey) or 3 (RGB)")
    planes = _round_through(images * 255)
    if channels == 3:
        planes = _round_through(planes @ jnp.asarray(_TO_YCBCR.T, images.dtype))
        planes = planes - _shift(images)
    else:
        planes = planes - 128
    bottom, right = -height % 8, -width % 8
    padded = jnp.pad(planes, ((0, 0), (0, bottom), (0, right), (0, 0)), mode="edge")
    rows, columns = (height + bottom) // 8, (width + right) // 8
    blocks = padded.reshape(batch, rows, 8, columns, 8, channels)
    steps = jnp.stack([tables[min(c, 1)] for c in range(channels)], -1)
    # u, v: frequencies of rows and columns.
    transform = jnp.asarray(_DCT, images.dtype)
    spectrum = jnp.einsum("ui,bricjk,vj->brucvk", transform, blocks, transform)
    steps = steps[None, None, :, None, :, :]
    kept = _round_through(spectrum / steps) * steps
    planes = jnp.einsum("ui,brucvk,vj->bricjk", transform, kept, transform)
    planes = planes.reshape(padded.shape)[:, :height, :width]
    planes = planes + (_shift(images) if channels == 3 else 128.0)
    planes = planes @ jnp.asarray(_TO_RGB.T, images.dtype) if channels == 3 else planes
    return (_round_through(jnp.clip(planes, 0, 255)) / 255).astype(images.dtype)


def _shift(images: Array) -> Array:
    """128 for the luminance, 0 for the other two planes."""
    return jnp.array([128.0, 0.0, 0.0], images.dtype).reshape(1, 1, 1, 3)
