"""A small, fast classifier for 32×32 colour images: whitening, then three groups of convolutions.

The network of Jordan 2024 (airbench94, arXiv 2404.00498, section 3): 94% on CIFAR-10 for
0.3 PFLOP of training; :mod:`purify_jax.training.airbench` is its recipe.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from purify_jax.networks.convolution import Conv, convolve
from purify_jax.networks.precision import compute_dtype
from purify_jax.types import Array

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def dirac_kernel(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Uniform in ±1/√fan_in, but the first input-many filters pass their input through unchanged."""
    height, width, inputs, outputs = shape
    bound = (height * width * inputs) ** -0.5
    kernel = jax.random.uniform(key, shape, dtype, -bound, bound)
    if outputs < inputs:
        return kernel
    return (
        kernel.at[..., :inputs]
        .set(0)
        .at[height // 2, width // 2, :, :inputs]
        .set(jnp.eye(inputs, dtype=dtype))
    )


def unit_deviation(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """A uniform draw scaled to standard deviation 1: the published start of the head."""
    kernel = jax.random.uniform(key, shape, dtype, -1.0, 1.0)
    return kernel / jnp.std(kernel)


def max_pool(images: Array, size: int) -> Array:
    """The largest of every ``size``×``size`` block; what does not fill a block is left out.

    By a reshape: XLA's CPU backend differentiates its own pooling by slow scattering.
    """
    batch, height, width, channels = images.shape
    rows, columns = height // size, width // size
    blocks = images[:, : rows * size, : columns * size]
    return blocks.reshape(batch, rows, size, columns, size, channels).max((2, 4))


class WhitenedConvNet(nn.Module):
    """Images ``[batch, h, w, c]``, 22×22 or larger → logits ``[batch, num_outputs]``.

    features: channels of the three groups; each halves the resolution once.
    whitened: filters of the first, 2×2 convolution (24 for 3 channels: each direction and its
      negative). Its kernel is a constant of the training, see ``airbench.whitening_kernel``.
    dtype: of the computation, e.g. "bfloat16"; parameters and output stay float32.
    """

    features: Sequence[int] = (64, 256, 256)
    whitened: int = 24
    num_outputs: int = 10
    mean: Sequence[float] = CIFAR10_MEAN
    std: Sequence[float] = CIFAR10_STD
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        dtype = compute_dtype(self.dtype, images)
        mean, std = (jnp.asarray(x, images.dtype) for x in (self.mean, self.std))
        x = ((images - mean) / std).astype(dtype)
        shape = (2, 2, images.shape[-1], self.whitened)
        kernel = self.param("whitening", nn.initializers.orthogonal(), shape)
        bias = self.param("whitening_bias", nn.initializers.zeros, (self.whitened,))
        kernel = jax.lax.stop_gradient(kernel).astype(dtype)
        x = nn.gelu(convolve(x, kernel, padding="VALID") + bias.astype(dtype), approximate=False)
        norm = partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.6, epsilon=1e-12,
            use_scale=False, dtype=dtype,
        )  # fmt: skip
        for width in self.features:
            conv = partial(
                Conv, width, (3, 3), use_bias=False, kernel_init=dirac_kernel, dtype=dtype
            )
            x = nn.gelu(norm()(max_pool(conv()(x), 2)), approximate=False)
            x = nn.gelu(norm()(conv()(x)), approximate=False)
        x = max_pool(x, min(x.shape[1:3])).reshape(x.shape[0], -1)
        head = nn.Dense(
            self.num_outputs, use_bias=False, kernel_init=unit_deviation, dtype=dtype, name="head"
        )
        return head(x).astype(images.dtype) / x.shape[-1]
