"""A small convolutional classifier: a few seconds of training on a CPU."""

from collections.abc import Sequence

import flax.linen as nn

from purify_jax.networks.convolution import Conv
from purify_jax.networks.precision import compute_dtype
from purify_jax.types import Array


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
