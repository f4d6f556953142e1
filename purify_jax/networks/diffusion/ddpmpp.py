"""DDPM++ as in score_sde, DiffPure's network on CIFAR-10 (Song et al. 2021, arXiv 2011.13456).

Raw output: the predicted noise ε. Layers are numbered as in the published ``all_modules`` list.
"""

from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from purify_jax.networks.diffusion.blocks import (
    Attention,
    GroupNorm,
    Resampling,
    ResidualBlock,
    conv,
    dense,
    positional_frequencies,
    sinusoids,
)
from purify_jax.networks.diffusion.resampling import double, halve
from purify_jax.networks.precision import compute_dtype
from purify_jax.types import Array

_HALF = 0.5**0.5


class DDPMpp(nn.Module):
    """(images, condition) → ε of the images' shape, by the continuous VP networks of score_sde.

    Called with images ``[b, h, w, c]`` in the diffusion's own units (signed, unit variance at t = 1)
    and condition ``[b]`` = 999 t.

    features: base width; ``multipliers`` of it per resolution, finest first.
    num_blocks: residual blocks per resolution: 4 as published, 8 in the deep form (DiffPure's).
    attention_resolutions: sides in pixels at which blocks attend.
    """

    features: int = 128
    multipliers: Sequence[int] = (1, 2, 2, 2)
    num_blocks: int = 4
    attention_resolutions: Sequence[int] = (16,)
    dtype: str = "float32"

    #: Called with (images, condition): see ``networks.example_inputs``.
    takes_condition: ClassVar[bool] = True

    @nn.compact
    def __call__(self, images: Array, condition: Array) -> Array:
        dtype = compute_dtype(self.dtype, images)
        names = iter(range(1_000_000))
        following = lambda: f"all_modules_{next(names)}"

        def block(x: Array, width: int, resample: Resampling | None = None) -> Array:
            made = ResidualBlock(width, dtype, resample, gain=_HALF, name=following())
            return made(x, embedding)

        def attend(x: Array) -> Array:
            return Attention(1, dtype, gain=_HALF, name=following())(x)

        frequencies = positional_frequencies(self.features // 2, endpoint=True)
        embedding = jnp.concatenate(sinusoids(condition, frequencies), axis=-1).astype(dtype)
        for _ in range(2):
            embedding = nn.silu(dense(4 * self.features, dtype, following())(embedding))
        x = conv(self.features, dtype, following())(images.astype(dtype))
        skips = [x]
        widths = [self.features * m for m in self.multipliers]
        for level, width in enumerate(widths):
            for _ in range(self.num_blocks):
                x = block(x, width)
                if x.shape[1] in self.attention_resolutions:
                    x = attend(x)
                skips.append(x)
            if level < len(widths) - 1:
                x = block(x, width, halve)
                skips.append(x)
        x = block(attend(block(x, widths[-1])), widths[-1])
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(self.num_blocks + 1):
                x = block(jnp.concatenate([x, skips.pop()], axis=-1), width)
            if x.shape[1] in self.attention_resolutions:
                x = attend(x)
            if level > 0:
                x = block(x, width, double)
        x = nn.silu(GroupNorm(dtype, name=following())(x))
        return conv(images.shape[-1], dtype, following(), small=True)(x).astype(images.dtype)
