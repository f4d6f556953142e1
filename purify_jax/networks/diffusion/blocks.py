"""Blocks that the diffusion networks share: group norm, residual block, attention, embeddings.

DDPM++, NCSN++ and ADM are made of the same two blocks with a handful of choices (Karras et al.
2022, arXiv 2206.00364, table 1): how the time embedding enters, whether the skip path of a
resampling block is projected, the residual's gain, and the size of a normalisation group.
"""

from collections.abc import Callable
from typing import TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from purify_jax.networks.convolution import Conv
from purify_jax.types import Array

#: Halves or doubles the resolution.
Resampling: TypeAlias = Callable[[Array], Array]

#: Glorot's uniform law, and the same with 1e-5 of its width for layers that end a residual.
_INIT = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
_SMALL = nn.initializers.variance_scaling(1e-10, "fan_avg", "uniform")


def dense(
    features: int, dtype: DTypeLike, name: str, small: bool = False, bias: bool = True
) -> nn.Dense:
    """A linear layer over channels; over images it is a 1×1 convolution."""
    init = _SMALL if small else _INIT
    return nn.Dense(features, use_bias=bias, dtype=dtype, kernel_init=init, name=name)


def conv(
    features: int, dtype: DTypeLike, name: str, small: bool = False, border: int = 1
) -> nn.Conv:
    """A 3×3 convolution; ``border`` zeros are padded on each side."""
    init, pad = (_SMALL if small else _INIT), ((border, border), (border, border))
    return Conv(features, (3, 3), padding=pad, dtype=dtype, kernel_init=init, name=name)


class GroupNorm(nn.Module):
    """Group normalisation in 32 groups, fewer where a group had under ``smallest`` channels.

    Statistics are float32. Half the operations of linen's, which counts where a network has a
    hundred of them: they are most of what XLA compiles.
    """

    dtype: DTypeLike
    smallest: int = 4
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        groups = min(32, channels // self.smallest)
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        y = wide.reshape(x.shape[0], -1, groups, channels // groups)
        y = y - jnp.mean(y, axis=(1, 3), keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=(1, 3), keepdims=True) + self.epsilon)
        last = (1,) * (x.ndim - 1) + (channels,)
        y = y.reshape(x.shape) * scale.reshape(last) + bias.reshape(last)
        return y.astype(self.dtype)


def sinusoids(values: Array, frequencies: Array) -> tuple[Array, Array]:
    """(sin, cos) of values ``[batch]`` × frequencies ``[n]``, each ``[batch, n]``."""
    angles = values[:, None] * frequencies[None, :]
    return jnp.sin(angles), jnp.cos(angles)


def positional_frequencies(count: int, endpoint: bool) -> Array:
    """``count`` frequencies in geometric progression from 1 to 1/10000, reached if ``endpoint``."""
    exponent = np.arange(count) / (count - 1 if endpoint else count)
    return jnp.asarray(10_000.0**-exponent, jnp.float32)


class ResidualBlock(nn.Module):
    """(``[b, h, w, c]``, activated embedding ``[b, e]``) → ``[b, h', w', features]``.

    norm, SiLU, (resample), 3×3 convolution; the embedding added, or as scale and shift of the
    second norm; SiLU, 3×3 convolution; plus the (resampled, projected) input; times ``gain``.

    resample: of both paths, e.g. halving; None keeps the resolution.
    scale_shift: the embedding gives a scale and a shift after the second norm (ADM's adaptive group
      norm); otherwise it is added before it.
    project_resampled: a 1×1 convolution on the skip path of a resampling block even where the
      channels stay the same. Where they change there always is one.
    group_norm: (dtype, name) → a :class:`GroupNorm`.
    """

    features: int
    dtype: DTypeLike
    resample: Resampling | None = None
    scale_shift: bool = False
    project_resampled: bool = True
    gain: float = 1.0
    group_norm: Callable[..., GroupNorm] = GroupNorm

    @nn.compact
    def __call__(self, x: Array, embedding: Array) -> Array:
        norm = lambda y, name: self.group_norm(self.dtype, name=name)(y)
        y = nn.silu(norm(x, "norm0"))
        project = x.shape[-1] != self.features
        if self.resample is not None:
            x, y = self.resample(x), self.resample(y)
            project = project or self.project_resampled
        y = conv(self.features, self.dtype, "conv0")(y)
        width = self.features * (2 if self.scale_shift else 1)
        shift = dense(width, self.dtype, "affine")(embedding)[:, None, None, :]
        if self.scale_shift:
            scale, shift = jnp.split(shift, 2, axis=-1)
            y = norm(y, "norm1") * (1 + scale) + shift
        else:
            y = norm(y + shift, "norm1")
        y = conv(self.features, self.dtype, "conv1", small=True)(nn.silu(y))
        if project:
            x = dense(self.features, self.dtype, "skip")(x)
        return (x + y) * self.gain


class Attention(nn.Module):
    """Self-attention over the pixels, with a residual: ``[b, h, w, c]`` → the same shape.

    heads: the channels are divided among them; logits are q·k/√(channels a head), in float32.
    kinds_axis: where the axis (query, key, value) lies among (heads, channels a head) in the
      output of one joint projection: 0, 1 or 2, as published networks differ in it. None: three
      separate projections.
    """

    heads: int
    dtype: DTypeLike
    kinds_axis: int | None = None
    gain: float = 1.0
    group_norm: Callable[..., GroupNorm] = GroupNorm

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        y = self.group_norm(self.dtype, name="norm")(x)
        y = y.reshape(batch, height * width, channels)
        axes = [self.heads, channels // self.heads]
        if self.kinds_axis is None:
            kinds = [dense(channels, self.dtype, name)(y) for name in "qkv"]
            q, k, v = (kind.reshape(*y.shape[:2], *axes) for kind in kinds)
        else:
            axes.insert(self.kinds_axis, 3)
            joint = dense(3 * channels, self.dtype, "qkv")(y).reshape(*y.shape[:2], *axes)
            q, k, v = jnp.moveaxis(joint, 2 + self.kinds_axis, 0)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        logits = jnp.einsum("bqhc,bkhc->bhqk", q, k * (channels // self.heads) ** -0.5)
        weights = jax.nn.softmax(logits.astype(wide), axis=-1).astype(v.dtype)
        y = jnp.einsum("bhqk,bkhc->bqhc", weights, v).reshape(x.shape)
        return (x + dense(channels, self.dtype, "proj", small=True)(y)) * self.gain
