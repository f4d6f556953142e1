"""Residual classifiers in their published forms: wide, pre-activation, and bottlenecks for large images.

Batch statistics are linen ``batch_stats``: updated with ``train=True``, frozen otherwise, as in a
defense. Layer names follow the published ``state_dict``.
"""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from purify_jax.networks.convolution import Conv
from purify_jax.networks.precision import compute_dtype
from purify_jax.types import Array

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _norm(train: bool, dtype: DTypeLike, name: str) -> nn.BatchNorm:
    return nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype, name=name
    )


def _conv(
    features: int, size: int, stride: int, dtype: DTypeLike, name: str, bias: bool = False
) -> nn.Conv:
    return Conv(
        features,
        (size, size),
        strides=(stride, stride),
        padding=((size // 2, size // 2),) * 2,
        use_bias=bias,
        dtype=dtype,
        name=name,
    )


def _normalised(images: Array, mean: Sequence[float] | None, std: Sequence[float] | None) -> Array:
    if mean is None or std is None:
        return images
    each = lambda values: jnp.asarray(values, images.dtype).reshape(1, 1, 1, -1)
    return (images - each(mean)) / each(std)


def _logits(x: Array, outputs: int, dtype: DTypeLike, name: str, images: Array) -> Array:
    wide = jnp.promote_types(images.dtype, jnp.float32)
    return nn.Dense(outputs, dtype=dtype, name=name)(jnp.mean(x, axis=(1, 2))).astype(wide)


class _PreActivationBlock(nn.Module):
    features: int
    stride: int
    dtype: DTypeLike
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        norm = partial(_norm, train, self.dtype)
        conv = partial(_conv, self.features, dtype=self.dtype, bias=self.use_bias)
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
        x = _conv(16, 3, 1, dtype, "conv1", self.use_bias)(x)
        for layer in range(3):
            features = 16 * self.width * 2**layer
            for block in range((self.depth - 4) // 6):
                stride = 2 if layer > 0 and block == 0 else 1
                name = f"layer{layer + 1}_{block}"
                x = _PreActivationBlock(features, stride, dtype, self.use_bias, name=name)(x, train)
        x = nn.relu(_norm(train, dtype, "bn1")(x))
        return _logits(x, self.num_outputs, dtype, "linear", images)


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
        x = _conv(self.features, 3, 1, dtype, "conv1")(x)
        for layer in range(4):
            for block in range(2):
                stride = 2 if layer > 0 and block == 0 else 1
                made = _PreActivationBlock(
                    self.features * 2**layer, stride, dtype, name=f"layer{layer + 1}_{block}"
                )
                x = made(x, train)
        if self.final_norm:
            x = nn.relu(_norm(train, dtype, "bn")(x))
        return _logits(x, self.num_outputs, dtype, "linear", images)


class _Bottleneck(nn.Module):
    """1×1, 3×3 (which strides), 1×1 to four times ``features``; ``inner`` channels between."""

    features: int
    inner: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        norm = partial(_norm, train, self.dtype)
        conv = partial(_conv, dtype=self.dtype)
        y = nn.relu(norm("bn1")(conv(self.inner, 1, 1, name="conv1")(x)))
        y = nn.relu(norm("bn2")(conv(self.inner, 3, self.stride, name="conv2")(y)))
        y = norm("bn3")(conv(4 * self.features, 1, 1, name="conv3")(y))
        if self.stride != 1 or x.shape[-1] != y.shape[-1]:
            x = conv(y.shape[-1], 1, self.stride, name="downsample_conv")(x)
            x = norm("downsample_norm")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Images ``[batch, h, w, c]`` in [0, 1] → logits ``[batch, num_outputs]``.

    He et al. 2016 (arXiv 1512.03385), the stride in the 3×3 convolution as in torchvision.
    The defaults are ResNet-50; ``width`` = 2 is WideResNet-50-2, whose 3×3 convolutions are twice as
    wide (Zagoruyko & Komodakis 2016).

    features: channels of the stem, and of the first group's 3×3 convolutions at width 1.
    blocks: of each group; the first of a group, but for the first group, strides by 2.
    mean, std: of the data, per channel: ImageNet's.
    """

    num_outputs: int = 1000
    blocks: Sequence[int] = (3, 4, 6, 3)
    features: int = 64
    width: int = 1
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        dtype = compute_dtype(self.dtype, images)
        x = _normalised(images, self.mean, self.std).astype(dtype)
        x = nn.relu(_norm(train, dtype, "bn1")(_conv(self.features, 7, 2, dtype, "conv1")(x)))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for group, count in enumerate(self.blocks):
            features = self.features * 2**group
            for block in range(count):
                stride = 2 if group > 0 and block == 0 else 1
                name = f"layer{group + 1}_{block}"
                made = _Bottleneck(features, features * self.width, stride, dtype, name=name)
                x = made(x, train)
        return _logits(x, self.num_outputs, dtype, "fc", images)
