"""ADM, the network of guided-diffusion (Dhariwal & Nichol 2021, arXiv 2105.05233).

Raw output: the predicted noise ε and, with ``learned_variance``, as many channels again for the
variance. Layers are numbered as in the published ``state_dict``.
"""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from purify_jax.checks import InputError
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


class ADM(nn.Module):
    """(images, condition, labels) → ``[b, h, w, c or 2c]``: ε first, then the learned variance.

    Called with images ``[b, h, w, c]`` in the diffusion's own units (signed, unit variance at the
    last step), condition ``[b]`` (the step, 0 to 999, integers in training) and, for a network with
    classes, labels int ``[b]``.

    features: base width; ``multipliers`` of it per resolution, finest first.
    attention_rates: down-sampling rates at which blocks attend (8, 16 and 32 are 32, 16 and 8 pixels
      of 256).
    head_channels: channels of an attention head; ``num_heads`` fixes their number instead.
    joint_heads: in the joint projection query, key and value come within each head (the "legacy"
      order of all published networks but the 64×64 one), otherwise heads within each of the three.

    The defaults are the published unconditional 256×256 network (552,814,086 parameters).
    """

    features: int = 256
    multipliers: Sequence[float] = (1, 1, 2, 2, 4, 4)
    num_blocks: int = 2
    attention_rates: Sequence[int] = (8, 16, 32)
    head_channels: int = 64
    num_heads: int | None = None
    joint_heads: bool = True
    num_classes: int = 0
    learned_variance: bool = True
    dtype: str = "float32"

    #: Called with (images, condition): see ``networks.example_inputs``.
    takes_condition: ClassVar[bool] = True

    @nn.compact
    def __call__(self, images: Array, condition: Array, labels: Array | None = None) -> Array:
        dtype = compute_dtype(self.dtype, images)
        norm = partial(GroupNorm, smallest=1, epsilon=1e-5)
        residual = partial(
            ResidualBlock, scale_shift=True, project_resampled=False, group_norm=norm
        )

        def block(name: str, x: Array, width: int, resample: Resampling | None = None) -> Array:
            return residual(width, dtype, resample, name=name)(x, embedding)

        def attend(name: str, x: Array) -> Array:
            if self.num_heads is None and x.shape[-1] % self.head_channels:
                raise InputError(
                    f"head_channels: got {self.head_channels}, expected a divisor of {x.shape[-1]}"
                )
            heads = self.num_heads or x.shape[-1] // self.head_channels
            axis = 1 if self.joint_heads else 0
            return Attention(heads, dtype, kinds_axis=axis, group_norm=norm, name=name)(x)

        embedding = self._embedding(condition, labels, dtype)
        widths = [int(self.features * m) for m in self.multipliers]
        x = conv(widths[0], dtype, "input_blocks_0_0")(images.astype(dtype))
        skips = [x]
        for level, width in enumerate(widths):
            for index in range(self.num_blocks + (level < len(widths) - 1)):
                at = f"input_blocks_{len(skips)}"
                if index == self.num_blocks:
                    x = block(f"{at}_0", x, width, halve)
                else:
                    x = block(f"{at}_0", x, width)
                    if 2**level in self.attention_rates:
                        x = attend(f"{at}_1", x)
                skips.append(x)
        x = attend("middle_block_1", block("middle_block_0", x, widths[-1]))
        x = block("middle_block_2", x, widths[-1])
        count = 0
        for level, width in reversed(list(enumerate(widths))):
            for index in range(self.num_blocks + 1):
                at, part = f"output_blocks_{count}", 1
                x = block(f"{at}_0", jnp.concatenate([x, skips.pop()], axis=-1), width)
                if 2**level in self.attention_rates:
                    x, part = attend(f"{at}_1", x), 2
                if level > 0 and index == self.num_blocks:
                    x = block(f"{at}_{part}", x, width, double)
                count += 1
        x = nn.silu(norm(dtype, name="out_0")(x))
        channels = images.shape[-1] * (2 if self.learned_variance else 1)
        return conv(channels, dtype, "out_2", small=True)(x).astype(images.dtype)

    def _embedding(self, condition: Array, labels: Array | None, dtype: DTypeLike) -> Array:
        """The activated embedding ``[b, 4·features]`` of the step and the class."""
        frequencies = positional_frequencies(self.features // 2, endpoint=False)
        wide = condition.astype(jnp.promote_types(condition.dtype, jnp.float32))
        sin, cos = sinusoids(wide, frequencies)
        x = jnp.concatenate([cos, sin], axis=-1).astype(dtype)
        x = nn.silu(dense(4 * self.features, dtype, "time_embed_0")(x))
        x = dense(4 * self.features, dtype, "time_embed_2")(x)
        if self.num_classes:
            given = jnp.zeros(condition.shape[0], jnp.int32) if labels is None else labels
            x = x + nn.Embed(self.num_classes, 4 * self.features, dtype=dtype, name="label_emb")(
                given
            )
        return nn.silu(x)
