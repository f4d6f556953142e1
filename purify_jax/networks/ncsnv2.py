"""NCSNv2, the published purifier's score network (Song & Ermon 2020, arXiv 2006.09011, appendix A).

A RefineNet with InstanceNorm++ and ELU: residual blocks downwards, dilated instead of strided at
the low resolutions, and a decoder of residual convolution units (RCU), multi-resolution fusion
(MSF) and chained residual pooling (CRP). The output is the raw f(x); division by σ is outside.
Module names follow the published ``state_dict``, so that weights map one to one.
"""

from functools import partial, reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from purify_jax.networks.convolution import conv_general_dilated
from purify_jax.networks.precision import compute_dtype
from purify_jax.types import Array


def _conv(
    features: int, size: int, dtype: DTypeLike, *, dilation: int = 1, bias: bool = True, name: str
) -> nn.Conv:
    padding = dilation * (size // 2)
    return nn.Conv(
        features,
        (size, size),
        padding=((padding, padding), (padding, padding)),
        kernel_dilation=dilation,
        use_bias=bias,
        dtype=dtype,
        conv_general_dilated=conv_general_dilated,
        name=name,
    )


@jax.custom_jvp
def elu(x: Array) -> Array:
    """x where positive, exp(x) − 1 elsewhere; its derivative reuses the exponential.

    Against ``jax.nn.elu``, an exact gradient takes 7% less time and a quarter less memory
    (docs/performance_notes.md); near 0 the value is within a rounding error of 1, not of x.
    """
    return jnp.maximum(x, 0) + (jnp.exp(jnp.minimum(x, 0)) - 1)


@elu.defjvp
def _elu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    slope = jnp.exp(jnp.minimum(x, 0))
    return jnp.maximum(x, 0) + (slope - 1), tangent * slope


class InstanceNormPlus(nn.Module):
    """InstanceNorm++: instance normalisation, plus the standardised channel means scaled by α.

    γ·(IN(x) + α·(μ_c − m)/√(v + 1e-5)) + β, where m and v are mean and (unbiased) variance of the
    channel means μ_c over channels (Song & Ermon 2020, appendix A). Statistics in float32.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        alpha = self.param(
            "alpha", lambda key: 1 + 0.02 * jax.random.normal(key, (channels,), jnp.float32)
        )
        gamma = self.param(
            "gamma", lambda key: 1 + 0.02 * jax.random.normal(key, (channels,), jnp.float32)
        )
        beta = self.param("beta", nn.initializers.zeros, (channels,), jnp.float32)
        alpha, gamma, beta = (p.reshape(1, channels) for p in (alpha, gamma, beta))
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        means = jnp.mean(wide, axis=(1, 2))
        centred = wide - means[:, None, None]
        variance = jnp.mean(centred**2, axis=(1, 2))
        spread = means - jnp.mean(means, axis=-1, keepdims=True)
        # The published code takes torch.var, which divides by channels − 1.
        over_channels = jnp.sum(spread**2, axis=-1, keepdims=True) / (channels - 1)
        scale = gamma / jnp.sqrt(variance + 1e-5)
        shift = gamma * alpha * spread / jnp.sqrt(over_channels + 1e-5) + beta
        return (centred * scale[:, None, None] + shift[:, None, None]).astype(x.dtype)


def _mean_pool(x: Array) -> Array:
    """The mean of the four pixels of each 2×2 square (an odd last row or column is dropped)."""
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    x = x[:, :height, :width]
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


class _MeanPooledConv(nn.Module):
    """Convolution, then mean pooling."""

    features: int
    size: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return _mean_pool(_conv(self.features, self.size, self.dtype, name="conv")(x))


class ResidualBlock(nn.Module):
    """norm, ELU, conv, norm, ELU, conv, plus shortcut; ``down`` halves (or, dilated, does not)."""

    features: int
    down: bool = False
    dilation: int | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dilation = self.dilation or 1
        pooled = self.down and self.dilation is None
        inner = x.shape[-1] if self.down else self.features
        y = elu(InstanceNormPlus(name="normalize1")(x))
        y = _conv(inner, 3, self.dtype, dilation=dilation, name="conv1")(y)
        y = elu(InstanceNormPlus(name="normalize2")(y))
        if pooled:
            pool = lambda size, name: _MeanPooledConv(self.features, size, self.dtype, name=name)
            return pool(1, "shortcut")(x) + pool(3, "conv2")(y)
        y = _conv(self.features, 3, self.dtype, dilation=dilation, name="conv2")(y)
        if x.shape[-1] == self.features and not self.down:
            return x + y
        size = 1 if self.dilation is None else 3
        return _conv(self.features, size, self.dtype, dilation=dilation, name="shortcut")(x) + y


class _RCU(nn.Module):
    """Residual convolution units: ``blocks`` × (x + ``stages`` × (ELU, conv))."""

    blocks: int
    stages: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for block in range(1, self.blocks + 1):
            residual = x
            for stage in range(1, self.stages + 1):
                name = f"{block}_{stage}_conv"
                x = _conv(x.shape[-1], 3, self.dtype, bias=False, name=name)(elu(x))
            x = x + residual
        return x


class _MSF(nn.Module):
    """Multi-resolution fusion: conv each input, resize bilinearly (corners aligned), add."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, inputs: list[Array], shape: tuple[int, int]) -> Array:
        convs = [
            _conv(self.features, 3, self.dtype, name=f"convs_{i}")(x) for i, x in enumerate(inputs)
        ]
        return reduce(jnp.add, [resize_aligned(x, shape) for x in convs])


class _CRP(nn.Module):
    """Chained residual pooling: x = ELU(x); path = conv(maxpool₅(path)); x += path, twice."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = path = elu(x)
        for i in range(2):
            path = max_pool_5(path)
            path = _conv(self.features, 3, self.dtype, bias=False, name=f"convs_{i}")(path)
            x = path + x
        return x


class _Refine(nn.Module):
    features: int
    last: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, inputs: list[Array], shape: tuple[int, int]) -> Array:
        adapted = [_RCU(2, 2, self.dtype, name=f"adapt_convs_{i}")(x) for i, x in enumerate(inputs)]
        x = adapted[0]
        if len(inputs) > 1:
            x = _MSF(self.features, self.dtype, name="msf")(adapted, shape)
        x = _CRP(self.features, self.dtype, name="crp")(x)
        return _RCU(3 if self.last else 1, 2, self.dtype, name="output_convs")(x)


def resize_aligned(x: Array, shape: tuple[int, int]) -> Array:
    """Bilinear resizing with aligned corners, as two small matrix products."""
    for axis, size in ((1, shape[0]), (2, shape[1])):
        if x.shape[axis] != size:
            matrix = jnp.asarray(_interpolation(x.shape[axis], size), x.dtype)
            x = jnp.moveaxis(jnp.tensordot(matrix, x, axes=((1,), (axis,))), 0, axis)
    return x


def _interpolation(old: int, new: int) -> np.ndarray:
    position = np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0.0)
    low = np.minimum(position.astype(int), max(old - 2, 0))
    matrix = np.zeros((new, old))
    matrix[np.arange(new), low] += 1 - (position - low)
    matrix[np.arange(new), np.minimum(low + 1, old - 1)] += position - low
    return matrix


def max_pool_5(x: Array) -> Array:
    """5×5 max-pooling, stride 1, as a 5-wide maximum along each axis of shifted copies.

    XLA's own window maximum has a slow derivative on a CPU (a select-and-scatter); this one is
    made of pairwise selections, four along each axis in three operations.
    """
    larger = lambda a, b: jnp.where(a > b, a, b)
    for axis in (1, 2):
        size, pads = x.shape[axis], [(0, 0)] * 4
        pads[axis] = (2, 2)
        padded = jnp.pad(x, pads, constant_values=jnp.finfo(x.dtype).min)
        cut = partial(jax.lax.slice_in_dim, axis=axis)
        two = larger(cut(padded, 0, size + 3), cut(padded, 1, size + 4))
        four = larger(cut(two, 0, size + 1), cut(two, 2, size + 3))
        x = larger(cut(four, 0, size), cut(padded, 4, size + 4))
    return x


class NCSNv2(nn.Module):
    """Images ``[b, h, w, c]`` → raw score output f(x) of the same shape.

    features: channels of the finest level (128 as published for CIFAR-10: 29,694,083 parameters
      on 32×32×3).
    deeper: the published variant for 64 pixels and up, with one more level.

    The published variant for 28×28 pads the pooling of its last level; that level is dilated, so
    nothing is pooled there and the padding has no effect: the same network serves both sizes.
    """

    features: int = 128
    deeper: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Array) -> Array:
        dtype, n = compute_dtype(self.dtype, images), self.features
        x = _conv(n, 3, dtype, name="begin_conv")((2.0 * images - 1.0).astype(dtype))
        # (features, down, dilation) of each level's first block.
        levels: list[tuple[int, bool, int | None]]
        if self.deeper:
            levels = [(n, False, None), (2 * n, True, None), (2 * n, True, None)]
            levels += [(4 * n, True, 2), (4 * n, True, 4)]
        else:
            levels = [(n, False, None), (2 * n, True, None), (2 * n, True, 2), (2 * n, True, 4)]
        outputs = []
        for index, (width, down, dilation) in enumerate(levels, start=1):
            for block, halve in enumerate((down, False)):
                x = ResidualBlock(
                    width,
                    down=halve,
                    dilation=dilation,
                    dtype=dtype,
                    name=f"res{index}_{block}",
                )(x)
            outputs.append(x)
        widths = [width for width, _, _ in levels][::-1]
        # Each fusion hands on the width of the next finer level; the last one, n.
        fused = [*widths[1:], n]
        y: Array | None = None
        for index, (out, level) in enumerate(zip(fused, outputs[::-1], strict=True), start=1):
            inputs = [level] if y is None else [level, y]
            refine = _Refine(out, index == len(levels), dtype, name=f"refine{index}")
            y = refine(inputs, (level.shape[1], level.shape[2]))
        assert y is not None
        y = elu(InstanceNormPlus(name="normalizer")(y))
        return _conv(images.shape[-1], 3, dtype, name="end_conv")(y).astype(images.dtype)
