"""Augmentation: (keys, images) → images, by each image's own key."""

from typing import Any

import jax
import jax.numpy as jnp

from purify_jax.arrays import per_image
from purify_jax.checks import InputError, check_count, check_number
from purify_jax.keys import NOISE, SHARE, fold_keys, stream
from purify_jax.pytrees import pytree, static
from purify_jax.types import Array, Keys


def random_flip(keys: Keys, images: Array) -> Array:
    """Mirrors each image left to right with probability ½, by its own key."""
    flip = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)


def random_crop(keys: Keys, images: Array, padding: int) -> Array:
    """Shifts each image by up to ``padding`` pixels each way, filling with zeros (pad and crop)."""
    pad = ((padding, padding), (padding, padding), (0, 0))

    def one(key: Array, image: Array) -> Array:
        row, column = jax.random.randint(key, (2,), 0, 2 * padding + 1)
        return jax.lax.dynamic_slice(jnp.pad(image, pad), (row, column, 0), image.shape)

    return jax.vmap(one)(keys, images)


@pytree
class CropAndPurify:
    """See :func:`crop_and_purify`."""

    purifier: Any
    share: float
    crop_padding: int = static(default=0)

    def __call__(self, keys: Keys, images: Array) -> Array:
        if self.crop_padding:
            images = random_crop(stream(keys, "crop"), images, self.crop_padding)
        if self.purifier is None:
            return images
        purified = self.purifier(fold_keys(keys, NOISE), images)[0][0]
        draw = lambda key: jax.random.bernoulli(key, self.share)
        chosen = jax.vmap(draw)(fold_keys(keys, SHARE))
        return jnp.where(per_image(chosen, images), purified, images)


def crop_and_purify(
    crop_padding: int = 0, purifier: Any = None, share: float = 0.0
) -> CropAndPurify | None:
    """Random crops of ``crop_padding`` pixels, then a share of the images through the purifier.

    Only the first restart of the purifier is used. Its parameters are leaves: the compiled training
    step takes them as arguments. None if there is nothing to do.

    Raises InputError for a share outside [0, 1], or above 0 without a purifier.
    """
    check_count("crop_padding", crop_padding, 0)
    check_number("purified", share, 0.0, 1.0)
    if share and purifier is None:
        raise InputError("ebm: not given, expected one, because a share is to be purified")
    if not crop_padding and not share:
        return None
    return CropAndPurify(
        purifier=purifier if share else None, share=share, crop_padding=crop_padding
    )
