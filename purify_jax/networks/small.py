"""Small networks, which train in seconds on a CPU: a perceptron, a classifier and a U-Net."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from purify_jax.networks.convolution import Conv
from purify_jax.networks.precision import compute_dtype
from purify_jax.types import Array


class MLP(nn.Module):
    """Flattened images → image-shaped output (``num_outputs=None``) or ``[batch, num_outputs]``.

    The first layer widens to ``features[0]``; later layers of equal width are residual. The
    activation is smooth (SiLU), because an energy's score differentiates the network once and
    an exact attack twice.
    """

    features: Sequence[int] = (256, 256)
    num_outputs: int | None = None
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Array) -> Array:
        dtype = compute_dtype(self.dtype, images)
        x = (2.0 * images.reshape(images.shape[0], -1) - 1.0).astype(dtype)
        for width in self.features:
            y = nn.silu(nn.Dense(width, dtype=dtype)(x))
            x = x + y if x.shape[-1] == width else y
        size = images[0].size if self.num_outputs is None else self.num_outputs
        x = nn.Dense(size, dtype=dtype)(x).astype(images.dtype)
        return x.reshape(images.shape) if self.num_outputs is None else jnp.asarray(x)


class ConvNet(nn.Module):
    """Images ``[batch, h, w, c]`` → logits ``[batch, num_outputs]``.

    One 3×3 convolution per entry of ``features``; every one after the first halves the
    resolution. Then a hidden dense layer.
    """

    features: Sequence[int] = (16, 32)
    hidden: int = 64
    num_outputs: int = 10
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Array) -> Array:
        dtype = compute_dtype(self.dtype, images)
        x = (2.0 * images - 1.0).astype(dtype)
        for index, width in enumerate(self.features):
            stride = 1 if index == 0 else 2
            x = nn.relu(Conv(width, (3, 3), strides=(stride, stride), dtype=dtype)(x))
        x = nn.relu(nn.Dense(self.hidden, dtype=dtype)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_outputs, dtype=dtype)(x).astype(images.dtype)


class UNet(nn.Module):
    """Images ``[batch, h, w, c]`` → the same shape, any h and w ≥ 2^(levels − 1).

    A score network, or the g of an energy ½‖x − g(x)‖².

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
