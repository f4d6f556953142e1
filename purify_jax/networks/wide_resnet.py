"""Wide and pre-activation residual classifiers in their published forms.

Batch statistics are linen ``batch_stats``: updated with ``train=True``, frozen otherwise, as in a
defense. Layer names follow the published ``state_dict``.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from purify_jax.networks.convolution import Conv
from purify_jax.networks.precision import compute_dtype
from purify_jax.types import Array

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def _norm(train: bool, name: str, dtype: Any) -> nn.BatchNorm:
    return nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype, name=name
    )


def _conv(features: int, size: int, stride: int, bias: bool, dtype: Any, name: str) -> nn.Conv:
    pad = size // 2
    return Conv(
        features,
        (size, size),
        strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        use_bias=bias,
        dtype=dtype,
        name=name,
    )


def _normalised(images: Array, mean: Sequence[float] | None, std: Sequence[float] | None) -> Array:
    if mean is None or std is None:
        return images
    return (images - jnp.asarray(mean, images.dtype)) / jnp.asarray(std, images.dtype)


class _WideBlock(nn.Module):
    features: int
    stride: int
    use_bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        norm = partial(_norm, train, dtype=self.dtype)
        conv = partial(_conv, self.features, bias=self.use_bias, dtype=self.dtype)
        same = x.shape[-1] == self.features and self.stride == 1
        activated = nn.relu(norm("bn1")(x))
        # With bias (the form of the purification papers): the second convolution strides and the
        # shortcut sees the raw input. Without (RobustBench, TRADES): the first strides, and the
        # shortcut sees the activated input.
        first, second = (1, self.stride) if self.use_bias else (self.stride, 1)
        y = conv(3, first, name="conv1")(activated)
        y = conv(3, second, name="conv2")(nn.relu(norm("bn2")(y)))
        if same:
            return x + y
        return conv(1, self.stride, name="shortcut")(x if self.use_bias else activated) + y


class WideResNet(nn.Module):
    """WideResNet-depth-width (Zagoruyko & Komodakis 2016, arXiv 1605.07146); depth = 6n + 4.

    use_bias: True is the form of the published purification code (convolutions with bias, its own
      normalisation by ``mean`` and ``std``); False that of RobustBench and TRADES, which
      has neither (pass ``mean=None, std=None``).
    dtype: of the computation, e.g. "bfloat16".
    """

    depth: int = 28
    width: int = 10
    num_outputs: int = 10
    use_bias: bool = True
    mean: Sequence[float] | None = CIFAR10_MEAN
    std: Sequence[float] | None = CIFAR10_STD
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        dtype = compute_dtype(self.dtype, images)
        x = _normalised(images, self.mean, self.std).astype(dtype)
        x = _conv(16, 3, 1, self.use_bias, dtype, "conv1")(x)
        for layer in range(3):
            features = 16 * self.width * 2**layer
            for block in range((self.depth - 4) // 6):
                stride = 2 if layer > 0 and block == 0 else 1
                name = f"layer{layer + 1}_{block}"
                x = _WideBlock(features, stride, self.use_bias, dtype, name=name)(x, train)
        x = nn.relu(_norm(train, "bn1", dtype)(x))
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_outputs, dtype=dtype, name="linear")(x).astype(
            jnp.promote_types(images.dtype, jnp.float32)
        )


class _PreActBlock(nn.Module):
    features: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        norm = partial(_norm, train, dtype=self.dtype)
        conv = partial(_conv, self.features, bias=False, dtype=self.dtype)
        activated = nn.relu(norm("bn1")(x))
        if self.stride != 1 or x.shape[-1] != self.features:
            x = conv(1, self.stride, name="shortcut")(activated)
        y = conv(3, self.stride, name="conv1")(activated)
        return x + conv(3, 1, name="conv2")(nn.relu(norm("bn2")(y)))


class PreActResNet18(nn.Module):
    """PreActResNet-18 for small images (He et al. 2016, arXiv 1603.05027), as published for CIFAR.

    final_norm: a batch normalisation and ReLU before the linear layer, as some of
      RobustBench's models have.
    """

    num_outputs: int = 10
    features: int = 64
    final_norm: bool = False
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        dtype = compute_dtype(self.dtype, images)
        x = _normalised(images, self.mean, self.std).astype(dtype)
        x = _conv(self.features, 3, 1, False, dtype, "conv1")(x)
        for layer in range(4):
            for block in range(2):
                stride = 2 if layer > 0 and block == 0 else 1
                name = f"layer{layer + 1}_{block}"
                x = _PreActBlock(self.features * 2**layer, stride, dtype, name=name)(x, train)
        if self.final_norm:
            x = nn.relu(_norm(train, "bn", dtype)(x))
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_outputs, dtype=dtype, name="linear")(x).astype(
            jnp.promote_types(images.dtype, jnp.float32)
        )
