"""A small U-Net with image-shaped output: a score network, or the g of an energy ½‖x − g(x)‖²."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from purify_jax.networks.convolution import Conv
from purify_jax.networks.precision import compute_dtype
from purify_jax.types import Array


class UNet(nn.Module):
    """Images ``[batch, h, w, c]`` → the same shape, any h and w ≥ 2^(levels − 1).

    features: channels per resolution, finest first; each level halves the resolution.
    blocks: residual blocks per level and direction.
    """

    features: Sequence[int] = (32, 64)
    blocks: int = 1
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Array) -> Array:
        dtype = compute_dtype(self.dtype, images)
        x = Conv(self.features[0], (3, 3), dtype=dtype)((2.0 * images - 1.0).astype(dtype))
        skips = []
        for level, width in enumerate(self.features):
            if level > 0:
                x = Conv(width, (3, 3), strides=(2, 2), dtype=dtype)(x)
            for _ in range(self.blocks):
                x = _ResidualBlock(width, dtype)(x)
            skips.append(x)
        for width, skip in zip(self.features[-2::-1], skips[-2::-1], strict=True):
            x = jax.image.resize(x, skip.shape[:3] + x.shape[3:], "nearest")
            x = Conv(width, (3, 3), dtype=dtype)(jnp.concatenate([x, skip], axis=-1))
            for _ in range(self.blocks):
                x = _ResidualBlock(width, dtype)(x)
        x = nn.silu(group_norm(x, dtype)(x))
        return Conv(images.shape[-1], (3, 3), dtype=dtype)(x).astype(images.dtype)


def group_norm(x: Array, dtype: DTypeLike) -> nn.GroupNorm:
    """Normalisation of x in the most groups, up to 8, that its channels divide into."""
    groups = max(g for g in range(1, 9) if x.shape[-1] % g == 0)
    return nn.GroupNorm(groups, dtype=dtype)


class _ResidualBlock(nn.Module):
    width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dtype = self.dtype
        y = Conv(self.width, (3, 3), dtype=dtype)(nn.silu(group_norm(x, dtype)(x)))
        y = Conv(self.width, (3, 3), dtype=dtype)(nn.silu(group_norm(y, dtype)(y)))
        return x + y
