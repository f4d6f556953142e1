"""U-Nets that fold pixels into channels first: a quarter of the cost, and shapes that run fast.

Between levels too, pixels are folded and unfolded (pixel unshuffle and shuffle) around a matrix
product, so that every large operation is a 3×3 convolution or a matrix product.
"""

from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from purify_jax.arrays import per_image
from purify_jax.networks.convolution import Conv
from purify_jax.networks.precision import compute_dtype
from purify_jax.networks.small import group_norm
from purify_jax.types import Array

#: The frequencies at which a level's ln(σ)/4 is shown to the network.
_FREQUENCIES = tuple(2.0**k for k in range(-1, 7))


def fold(x: Array, size: int = 2) -> Array:
    """``[b, h, w, c]`` → ``[b, h/size, w/size, size²·c]``; h and w are multiples of ``size``."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // size, size, w // size, size, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // size, w // size, size * size * c)


def unfold(x: Array, size: int = 2) -> Array:
    """The inverse of :func:`fold`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, size, size, c // size**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h * size, w * size, c // size**2)


def preconditioning(sigmas: Array, data_std: float) -> tuple[Array, Array, Array, Array]:
    """(c_skip, c_out, c_in, c_noise) of Karras et al. 2022 (arXiv 2206.00364, table 1)."""
    total = sigmas**2 + data_std**2
    return data_std**2 / total, sigmas * data_std / total**0.5, total**-0.5, jnp.log(sigmas) / 4


class ShuffledUNet(nn.Module):
    """Images ``[batch, h, w, c]`` in [0, 1] → the same shape; a score network of any noise.

    h and w must be multiples of 2^(number of levels).

    features: channels per level, finest first; the finest has half the images' resolution.
    blocks: residual blocks per level and direction.
    """

    features: Sequence[int] = (64, 128, 128)
    blocks: int = 2
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Array) -> Array:
        dtype = compute_dtype(self.dtype, images)
        body = _Body(self.features, self.blocks, dtype, name="body")
        return body((2.0 * images - 1.0).astype(dtype), None).astype(images.dtype)


class NoiseConditionalUNet(nn.Module):
    """(noisy images, σ) → D(x; σ) − x, what denoising adds to them, preconditioned as in EDM.

    D(x; σ) = ½ + c_skip·(x − ½) + c_out·F(c_in·(x − ½), c_noise) by ``preconditioning``, with
    F a :class:`ShuffledUNet` that starts as zero: D is then the best denoiser of Gaussian data.
    The score at σ is the output over σ² (``noise.per_variance``). Without σ the network serves at
    ``reference_sigma``, as a noise-unconditional score network.

    Args of a call: images ``[batch, h, w, c]``, data in [0, 1] plus noise; sigmas ``[batch]`` or
    a scalar, positive.

    data_std: of the data, around ½.
    """

    features: Sequence[int] = (64, 128, 128)
    blocks: int = 2
    data_std: float = 0.25
    reference_sigma: float = 0.25
    dtype: str = "float32"

    #: Its score is asked for at every σ, see ``models.noise_score``.
    noise_conditional: ClassVar[bool] = True

    @nn.compact
    def __call__(self, images: Array, sigmas: Array | None = None) -> Array:
        dtype = compute_dtype(self.dtype, images)
        given = self.reference_sigma if sigmas is None else sigmas
        sigmas = jnp.broadcast_to(jnp.asarray(given, images.dtype), images.shape[:1])
        c_skip, c_out, c_in, c_noise = preconditioning(sigmas, self.data_std)
        angles = 2 * jnp.pi * c_noise[:, None] * jnp.asarray(_FREQUENCIES, images.dtype)[None, :]
        shown = jnp.concatenate([c_noise[:, None], jnp.sin(angles), jnp.cos(angles)], axis=-1)
        width = 2 * self.features[0]
        level = nn.silu(nn.Dense(width, dtype=dtype, name="level0")(shown.astype(dtype)))
        level = nn.silu(nn.Dense(width, dtype=dtype, name="level1")(level))
        centred = images - 0.5
        body = _Body(self.features, self.blocks, dtype, zero_output=True, name="body")
        raw = body((per_image(c_in, images) * centred).astype(dtype), level).astype(images.dtype)
        return per_image(c_skip - 1, images) * centred + per_image(c_out, images) * raw


class _Body(nn.Module):
    features: Sequence[int]
    blocks: int
    dtype: DTypeLike
    zero_output: bool = False

    @nn.compact
    def __call__(self, x: Array, level: Array | None) -> Array:
        dtype, channels = self.dtype, x.shape[-1]
        dense = lambda width: nn.Dense(width, dtype=dtype)
        x = Conv(self.features[0], (3, 3), dtype=dtype)(fold(x))
        skips = []
        for depth, width in enumerate(self.features):
            if depth > 0:
                x = dense(width)(fold(x))
            for _ in range(self.blocks):
                x = _Block(width, dtype)(x, level)
            skips.append(x)
        for width, skip in zip(self.features[-2::-1], skips[-2::-1], strict=True):
            x = unfold(dense(4 * width)(x))
            x = dense(width)(jnp.concatenate([x, skip], axis=-1))
            for _ in range(self.blocks):
                x = _Block(width, dtype)(x, level)
        x = nn.silu(group_norm(x, dtype)(x))
        start = nn.initializers.zeros if self.zero_output else nn.initializers.lecun_normal()
        return unfold(Conv(4 * channels, (3, 3), dtype=dtype, kernel_init=start)(x))


class _Block(nn.Module):
    width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, level: Array | None) -> Array:
        conv = lambda **how: Conv(self.width, (3, 3), dtype=self.dtype, **how)
        y = conv()(nn.silu(group_norm(x, self.dtype)(x)))
        y = group_norm(y, self.dtype)(y)
        if level is not None:
            by = nn.Dense(2 * self.width, dtype=self.dtype)(level)[:, None, None, :]
            scale, shift = jnp.split(by, 2, axis=-1)
            y = y * (1 + scale) + shift
        # The second convolution starts as zero, so that a block starts as the identity.
        return x + conv(kernel_init=nn.initializers.zeros)(nn.silu(y))
