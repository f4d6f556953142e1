"""Bottleneck residual classifiers for large images, in torchvision's form."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from purify_jax.networks.convolution import Conv
from purify_jax.networks.precision import compute_dtype
from purify_jax.types import Array

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _norm(train: bool, dtype: Any, name: str) -> nn.BatchNorm:
    return nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype, name=name
    )


def _conv(features: int, size: int, stride: int, dtype: Any, name: str) -> nn.Conv:
    return Conv(
        features,
        (size, size),
        strides=(stride, stride),
        padding=((size // 2, size // 2),) * 2,
        use_bias=False,
        dtype=dtype,
        name=name,
    )


class _Bottleneck(nn.Module):
    """1×1, 3×3 (which strides), 1×1 to four times ``features``; ``inner`` channels between."""

    features: int
    inner: int
    stride: int
    dtype: Any

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
    dtype: of the computation, e.g. "bfloat16"; parameters and output stay float32.
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
        x = (images - jnp.asarray(self.mean, images.dtype)) / jnp.asarray(self.std, images.dtype)
        x = _conv(self.features, 7, 2, dtype, "conv1")(x.astype(dtype))
        x = nn.relu(_norm(train, dtype, "bn1")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for group, count in enumerate(self.blocks):
            features = self.features * 2**group
            for block in range(count):
                stride = 2 if group > 0 and block == 0 else 1
                name = f"layer{group + 1}_{block}"
                made = _Bottleneck(features, features * self.width, stride, dtype, name=name)
                x = made(x, train)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_outputs, dtype=dtype, name="fc")(x).astype(
            jnp.promote_types(images.dtype, jnp.float32)
        )
