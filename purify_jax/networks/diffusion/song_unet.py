"""DDPM++ and NCSN++ as in EDM (Karras et al. 2022, arXiv 2206.00364; Song et al. 2021, 2011.13456).

The raw network F(c_in·x; c_noise): preconditioning is in :mod:`purify_jax.diffusions`. Names of
layers follow the published ``state_dict``, ``enc.32x32_block0.conv0`` as ``enc_32x32_block0/conv0``.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

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
from purify_jax.networks.diffusion.resampling import BINOMIAL, BOX, double, halve
from purify_jax.networks.precision import compute_dtype
from purify_jax.types import Array

_HALF = 0.5**0.5


class SongUNet(nn.Module):
    """(images, condition, labels, augmentation) → raw output of the images' shape.

    Called with images ``[b, h, w, c]`` scaled by the preconditioning (about unit variance, signed),
    condition ``[b]`` (c_noise: ln(σ)/4 for EDM), labels int ``[b]`` or None (no class, also for
    negative ones), and augmentation labels ``[b, augment_dim]`` or None (zeros, as for sampling).

    features: base width; ``multipliers`` of it per resolution, finest first.
    attention_resolutions: sides in pixels at which blocks attend.
    num_classes, augment_dim: sizes of these embeddings, 0 for none.
    fourier: random Fourier features of the condition (NCSN++), kept as variables of the collection
      "constants"; otherwise sinusoids (DDPM++).
    residual_input: a pyramid of the input joins every resolution of the encoder (NCSN++).
    resample_filter: taps of the resampling filter, (1, 1) for DDPM++ and (1, 3, 3, 1) for NCSN++.

    The defaults are EDM's CIFAR-10 DDPM++ without classes; ``edm_ncsnpp`` gives its NCSN++.
    Dropout, which the published training used, is left out: these networks evaluate.
    """

    features: int = 128
    multipliers: Sequence[int] = (2, 2, 2)
    num_blocks: int = 4
    attention_resolutions: Sequence[int] = (16,)
    num_classes: int = 0
    augment_dim: int = 9
    fourier: bool = False
    residual_input: bool = False
    resample_filter: Sequence[int] = BOX
    dtype: str = "float32"

    #: Called with (images, condition): see ``networks.example_inputs``.
    takes_condition: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self,
        images: Array,
        condition: Array,
        labels: Array | None = None,
        augmentation: Array | None = None,
    ) -> Array:
        dtype, side = compute_dtype(self.dtype, images), images.shape[1]
        embedding = self._embedding(images, condition, labels, augmentation, dtype)
        down = partial(halve, taps=self.resample_filter)
        up = partial(double, taps=self.resample_filter)

        def block(name: str, x: Array, width: int, resample: Resampling | None = None) -> Array:
            made = ResidualBlock(width, dtype, resample, gain=_HALF, name=name)
            return made(x, embedding)

        def attend(name: str, x: Array) -> Array:
            return Attention(1, dtype, kinds_axis=2, gain=_HALF, name=f"{name}_attention")(x)

        widths = [self.features * m for m in self.multipliers]
        x = pyramid = images.astype(dtype)
        skips = []
        for level, width in enumerate(widths):
            now = side >> level
            at = f"enc_{now}x{now}"
            if level == 0:
                x = conv(self.features, dtype, f"{at}_conv")(x)
            else:
                x = block(f"{at}_down", x, x.shape[-1], down)
                if self.residual_input:
                    # Convolution and filter share one border, so the filter pads nothing itself.
                    border = len(self.resample_filter) // 2
                    y = conv(x.shape[-1], dtype, f"{at}_aux_residual", border=border)(pyramid)
                    x = pyramid = (x + halve(y, self.resample_filter, pad=False)) * _HALF
            skips.append(x)
            for index in range(self.num_blocks):
                x = block(f"{at}_block{index}", x, width)
                if now in self.attention_resolutions:
                    x = attend(f"{at}_block{index}", x)
                skips.append(x)
        for level, width in reversed(list(enumerate(widths))):
            now = side >> level
            at = f"dec_{now}x{now}"
            if level == len(widths) - 1:
                x = attend(f"{at}_in0", block(f"{at}_in0", x, x.shape[-1]))
                x = block(f"{at}_in1", x, x.shape[-1])
            else:
                x = block(f"{at}_up", x, x.shape[-1], up)
            for index in range(self.num_blocks + 1):
                x = block(f"{at}_block{index}", jnp.concatenate([x, skips.pop()], -1), width)
                if index == self.num_blocks and now in self.attention_resolutions:
                    x = attend(f"{at}_block{index}", x)
        x = nn.silu(GroupNorm(dtype, name=f"dec_{side}x{side}_aux_norm")(x))
        x = conv(images.shape[-1], dtype, f"dec_{side}x{side}_aux_conv", small=True)(x)
        return x.astype(images.dtype)

    def _embedding(
        self,
        images: Array,
        condition: Array,
        labels: Array | None,
        augmentation: Array | None,
        dtype: DTypeLike,
    ) -> Array:
        """The activated embedding ``[b, 4·features]`` of noise level, class and augmentation."""
        width = self.features * (2 if self.fourier else 1)
        if self.fourier:
            draw = lambda: (
                16 * jax.random.normal(self.make_rng("params"), (width // 2,), jnp.float32)
            )
            frequencies = 2 * np.pi * self.variable("constants", "map_noise_freqs", draw).value
        else:
            frequencies = positional_frequencies(width // 2, endpoint=True)
        x = jnp.concatenate(sinusoids(condition, frequencies), axis=-1).astype(dtype)
        if self.num_classes:
            none = jnp.full(images.shape[0], -1, jnp.int32) if labels is None else labels
            one_hot = jax.nn.one_hot(none, self.num_classes, dtype=dtype)
            x = x + dense(width, dtype, "map_label")(one_hot * self.num_classes**0.5)
        if self.augment_dim:
            shape = (images.shape[0], self.augment_dim)
            given = jnp.zeros(shape, dtype) if augmentation is None else augmentation
            x = x + dense(width, dtype, "map_augment", bias=False)(given.astype(dtype))
        for name in ("map_layer0", "map_layer1"):
            x = nn.silu(dense(4 * self.features, dtype, name)(x))
        return x


def edm_ncsnpp(**fields: Any) -> SongUNet:
    """:class:`SongUNet` in its NCSN++ form: Fourier features, residual input, (1, 3, 3, 1) filter."""
    form = {"fourier": True, "residual_input": True, "resample_filter": BINOMIAL}
    return SongUNet(**{**form, **fields})
