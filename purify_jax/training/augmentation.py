"""Augmentation: (keys, images) → images, by each image's own key."""

from dataclasses import KW_ONLY

import jax
import jax.numpy as jnp

from purify_jax.arrays import per_image
from purify_jax.checks import InputError, check_count, check_number
from purify_jax.keys import NOISE, SHARE, draw_each, fold_keys, image_keys, is_chosen, stream
from purify_jax.purifiers import Purifier
from purify_jax.pytrees import Pytree, static
from purify_jax.types import Array, Keys


def random_flip(keys: Keys, images: Array) -> Array:
    """Mirrors each image left to right with probability ½, by its own key."""
    return _mirrored(draw_each(is_chosen, keys), images)


def alternating_flip(key: Array, images: Array, indices: Array, epochs: Array) -> Array:
    """Mirrors image i at random in epoch 0 and the other way round from one epoch to the next.

    Two epochs in a row always show an image both ways, which chance does half of the time.

    Args:
      key: of the run; whether an image starts mirrored depends on it and on its index alone.
      images: ``[batch, h, w, c]``.
      indices: ``[batch]``, of the images in their data set.
      epochs: ``[batch]``, counted from 0.
    """
    starts_mirrored = draw_each(is_chosen, image_keys(key, indices))
    return _mirrored(starts_mirrored ^ (epochs % 2 == 1), images)


def _mirrored(chosen: Array, images: Array) -> Array:
    return jnp.where(per_image(chosen, images), images[:, :, ::-1], images)


def random_crop(keys: Keys, images: Array, padding: int, mode: str = "constant") -> Array:
    """Shifts each image by up to ``padding`` pixels each way.

    ``mode`` as in ``jnp.pad``: "constant" fills with zeros, "reflect" with the image's reflection.
    """
    pad = ((padding, padding), (padding, padding), (0, 0))

    def one(key: Array, image: Array) -> Array:
        row, column = jax.random.randint(key, (2,), 0, 2 * padding + 1, jnp.int32)
        return jax.lax.dynamic_slice(
            jnp.pad(image, pad, mode=mode), (row, column, jnp.int32(0)), image.shape
        )

    return draw_each(one, keys, images)


class CropAndPurify(Pytree):
    """Random crops, then a share of the images through a purifier.

    purifier: only its first restart is used. Its parameters are leaves: a compiled training step takes
      them as arguments.
    share: of the images that are purified, in [0, 1].
    crop_padding: largest shift of a crop in pixels; 0 for no crops.

    Raises InputError for a value outside its range, or a share without a purifier.
    """

    purifier: Purifier | None = None
    _: KW_ONLY
    share: float = 0.0
    crop_padding: int = static(default=0)

    def __post_init__(self) -> None:
        check_count("crop_padding", self.crop_padding, 0)
        check_number("purified", self.share, 0.0, 1.0)
        if self.share and self.purifier is None:
            raise InputError(
                "score_model: not given, expected one, because a share is to be purified"
            )
        if not self.share:
            self.fill(purifier=None)

    def __call__(self, keys: Keys, images: Array) -> Array:
        if self.crop_padding:
            images = random_crop(stream(keys, "crop"), images, self.crop_padding)
        if self.purifier is None:
            return images
        purified = self.purifier(fold_keys(keys, NOISE), images)[0][0]
        chosen = draw_each(lambda key: is_chosen(key, self.share), fold_keys(keys, SHARE))
        return jnp.where(per_image(chosen, images), purified, images)
