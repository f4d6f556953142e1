"""A residual multilayer perceptron on flattened images: the fastest network for tiny images."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from purify_jax.networks.precision import compute_dtype
from purify_jax.types import Array


class MLP(nn.Module):
    """Images → image-shaped output (``num_outputs=None``) or ``[batch, num_outputs]``.

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
