"""Digital corruptions: brightness, contrast, saturation, elastic warps, pixels, JPEG."""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import scipy

from purify_jax.corruptions.noises import Generator, Image
from purify_jax.corruptions.weather import grey

if TYPE_CHECKING:
    import PIL.Image


def _in_hsv(image: Image, change: Callable[[Image], Image]) -> Image:
    """``change`` works on ``[h, w, 3]`` hue, saturation, value; grey images go there and back."""
    from matplotlib.colors import hsv_to_rgb, rgb_to_hsv  # half a second to import

    rgb = np.broadcast_to(np.clip(image, 0, 1), (*image.shape[:2], 3))
    hsv = np.array(rgb_to_hsv(rgb))
    changed = hsv_to_rgb(np.clip(change(hsv), 0, 1))
    return changed if image.shape[-1] == 3 else grey(changed)


def brightness(image: Image, rng: Generator, amount: float) -> Image:
    """Adds ``amount`` to the value of HSV."""
    del rng
    return _in_hsv(image, lambda hsv: hsv + np.array([0, 0, amount]))


def saturate(image: Image, rng: Generator, factor: float, amount: float) -> Image:
    """factor·s + amount for the saturation of HSV."""
    del rng
    return _in_hsv(image, lambda hsv: hsv * np.array([1, factor, 1]) + np.array([0, amount, 0]))


def contrast(image: Image, rng: Generator, factor: float) -> Image:
    """(x − mean)·factor + mean, per channel."""
    del rng
    mean = image.mean((0, 1), keepdims=True)
    return (image - mean) * factor + mean


def elastic_transform(
    image: Image, rng: Generator, alpha: float, sigma: float, affine: float
) -> Image:
    """A random affine map, then a smooth random displacement; all three in image sizes.

    Affine: three corners of the central square move by up to ``affine``. Displacement: uniform
    noise, blurred by ``sigma``, times ``alpha`` (Simard, Steinkraus & Platt 2003).
    """
    height, width = image.shape[:2]
    size = min(height, width)
    centre, third = np.array([height, width]) // 2, size // 3
    corners = centre + third * np.array([[1, 1], [-1, 1], [-1, -1]])
    moved = corners + rng.uniform(-affine * size, affine * size, corners.shape)
    # The map from output to input coordinates, which is what ndimage wants.
    homogeneous = np.column_stack([moved, np.ones(3)])
    solution = np.linalg.lstsq(homogeneous, corners, rcond=None)[0].T
    matrix = np.zeros((3, 3))
    matrix[:2, :2], matrix[2, 2] = solution[:, :2], 1
    offset = np.append(solution[:, 2], 0)
    warped = scipy.ndimage.affine_transform(image, matrix, offset, order=1, mode="mirror")
    draw = lambda: scipy.ndimage.gaussian_filter(
        rng.uniform(-1, 1, (height, width)), sigma * size, mode="reflect", truncate=3
    )
    rows, columns = np.mgrid[:height, :width] + alpha * size * np.stack([draw(), draw()])
    channels = [
        scipy.ndimage.map_coordinates(warped[..., c], [rows, columns], order=1, mode="reflect")
        for c in range(image.shape[-1])
    ]
    return np.stack(channels, -1)


def _pillow(image: Image) -> "PIL.Image.Image":
    import PIL.Image

    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return PIL.Image.fromarray(pixels if image.shape[-1] == 3 else pixels[..., 0])


def _from_pillow(picture: "PIL.Image.Image") -> Image:
    pixels = np.asarray(picture, float) / 255
    return pixels if pixels.ndim == 3 else pixels[..., None]


def pixelate(image: Image, rng: Generator, factor: float) -> Image:
    """Smaller by ``factor`` and back, by averaging boxes (8 bits, Pillow)."""
    import PIL.Image

    del rng
    picture = _pillow(image)
    small = picture.resize(
        (int(picture.width * factor), int(picture.height * factor)), PIL.Image.Resampling.BOX
    )
    return _from_pillow(small.resize(picture.size, PIL.Image.Resampling.BOX))


def jpeg_compression(image: Image, rng: Generator, quality: int) -> Image:
    """Through a JPEG file of ``quality`` (8 bits, Pillow)."""
    import PIL.Image

    del rng
    file = io.BytesIO()
    _pillow(image).save(file, "JPEG", quality=quality)
    with PIL.Image.open(file) as picture:
        return _from_pillow(picture)
