"""A sheet of images that a network denoises while it is trained."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purify_jax.data import Batches, Dataset
from purify_jax.keys import image_keys, normal_like
from purify_jax.types import Array, Params

#: (parameters, noisy images, σ ``[batch]``) → what denoising adds to them.
Displacement = Callable[[Params, Array, Array], Array]


class DenoisedSheet:
    """state → eight training images in three rows: as they are, with noise σ, and denoised in one step.

    By the averaged parameters, clipped to [0, 1]; small images are enlarged to 32 pixels a side at least.
    """

    name = "clean_noisy_denoised"

    def __init__(
        self, data: Dataset | Batches, displacement: Displacement, sigma: float, count: int = 8
    ):
        size = data.batch_size if isinstance(data, Batches) else len(data)
        images, _ = data.batch(np.arange(min(count, size)))
        keys = image_keys(jax.random.key(0), np.arange(len(images)))
        noisy = jnp.asarray(images) + sigma * normal_like(keys, jnp.asarray(images))
        levels = jnp.full(len(images), sigma, jnp.float32)
        self._shown = np.asarray(images), np.asarray(noisy)
        self._denoise = jax.jit(lambda params: noisy + displacement(params, noisy, levels))

    def __call__(self, state: Any) -> np.ndarray | None:
        """The sheet ``[h, w, 1 or 3]`` in [0, 1]; None where this process does not have all parameters."""
        has = lambda x: getattr(x, "is_fully_addressable", True) or x.is_fully_replicated
        if not all(map(has, jax.tree.leaves(state.ema_params))):
            return None
        # As this process's own arrays: of several processes one draws, and none waits for the others.
        params = jax.tree.map(np.asarray, state.ema_params)
        rows = [*self._shown, np.asarray(self._denoise(params))]
        sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
        channels = sheet.shape[-1]
        sheet = sheet if channels in (1, 3) else sheet.mean(axis=-1, keepdims=True)
        factor = -(-32 // self._shown[0].shape[1])
        return np.clip(sheet.repeat(factor, axis=0).repeat(factor, axis=1), 0, 1)
