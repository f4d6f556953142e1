"""A small, fast classifier behind a frozen whitening of its patches (Jordan 2024, arXiv 2404.00498)."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from purify_jax.networks.convolution import Conv, convolve
from purify_jax.networks.precision import compute_dtype
from purify_jax.types import Array

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class WhitenedConvNet(nn.Module):
    """Images ``[batch, h, w, c]`` in [0, 1], h and w at least 27 → logits ``[batch, num_outputs]``.

    The network that reaches 94% on CIFAR-10 for 0.3 PFLOP with test-time augmentation: filters of
    2×2 pixels that whiten the training images' patches, and their negatives; three groups of two
    3×3 convolutions with a max-pool between them; the largest value per channel; a linear layer.

    The whitening filters are not trained and so no parameters: they are
    ``batch_stats/whitening``, random orthogonal ones until ``airbench.with_whitening`` sets them.

    features: channels of the three groups.
    mean, std: of the data, per channel.
    """

    num_outputs: int = 10
    features: Sequence[int] = (64, 256, 256)
    mean: Sequence[float] = CIFAR10_MEAN
    std: Sequence[float] = CIFAR10_STD
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        dtype = compute_dtype(self.dtype, images)
        each = lambda values: jnp.asarray(values, images.dtype).reshape(1, 1, 1, -1)
        x = ((images - each(self.mean)) / each(self.std)).astype(dtype)
        channels = images.shape[-1]
        whitening = self.variable(
            "batch_stats", "whitening", lambda: _orthogonal_filters(self.make_rng, channels)
        )
        x = convolve(x, whitening.value.astype(dtype), padding="VALID")
        bias = self.param("whitening_bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        x = nn.gelu(x + bias.astype(dtype).reshape(1, 1, 1, -1))
        for group, width in enumerate(self.features):
            x = _conv(width, dtype, f"group{group}_conv0")(x)
            x = nn.gelu(_norm(train, dtype, f"group{group}_norm0")(_max_pool(x, 2)))
            x = _conv(width, dtype, f"group{group}_conv1")(x)
            x = nn.gelu(_norm(train, dtype, f"group{group}_norm1")(x))
        x = jnp.max(x, axis=(1, 2))
        head = nn.Dense(
            self.num_outputs,
            use_bias=False,
            dtype=dtype,
            kernel_init=nn.initializers.normal(1.0),
            name="head",
        )
        return (head(x) / x.shape[-1]).astype(images.dtype)


def _orthogonal_filters(make_rng: Callable[[str], Array], channels: int) -> Array:
    """``[2, 2, channels, 8 · channels]``: an orthogonal basis of the patches and its negative."""
    basis = nn.initializers.orthogonal()(
        make_rng("params"), (4 * channels, 4 * channels), jnp.float32
    )
    return jnp.concatenate([basis, -basis], axis=-1).reshape(2, 2, channels, -1)


def _partly_identity(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Uniform in ±1/√fan-in, but the first filters hand their input channel through unchanged."""
    height, width, inputs, outputs = shape
    bound = (height * width * inputs) ** -0.5
    kernel = jax.random.uniform(key, shape, dtype, -bound, bound)
    count = min(inputs, outputs)
    passing = jnp.zeros((height, width, inputs, count), dtype)
    passing = passing.at[height // 2, width // 2].set(jnp.eye(inputs, count, dtype=dtype))
    return kernel.at[..., :count].set(passing)


def _conv(features: int, dtype: DTypeLike, name: str) -> nn.Conv:
    return Conv(
        features, (3, 3), use_bias=False, dtype=dtype, kernel_init=_partly_identity, name=name
    )


def _norm(train: bool, dtype: DTypeLike, name: str) -> nn.BatchNorm:
    # The running statistics move by 0.4 a batch: batches are large and the training is short.
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.6,
        epsilon=1e-12,
        use_scale=False,
        dtype=dtype,
        name=name,
    )


def _max_pool(x: Array, size: int) -> Array:
    """Maxima of size × size windows; what is left over at the edges is dropped.

    As maxima of slices: the derivative of XLA's own pooling is slow on a CPU.
    """
    height, width = (n // size * size for n in x.shape[1:3])
    slices = [x[:, i:height:size, j:width:size] for i in range(size) for j in range(size)]
    pooled = slices[0]
    for other in slices[1:]:
        pooled = jnp.maximum(pooled, other)
    return pooled
