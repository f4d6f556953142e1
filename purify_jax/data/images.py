"""Images as arrays: read, made one size, as floats."""

import io
from pathlib import Path

import numpy as np

from purify_jax.checks import InputError


def to_float(images: np.ndarray) -> np.ndarray:
    """uint8 in 0-255 → float32 in [0, 1]; floats as they are."""
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    return images.astype(np.float32)


def image_files(folder: Path) -> list[Path]:
    """The PNG and JPEG files of a folder, sorted by name."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg"))


def read_image(path: Path, channels: int | None = None) -> np.ndarray:
    """An image file as uint8 ``[h, w, c]``; grey or RGB as the file is, or as ``channels`` says.

    Raises InputError if the file cannot be read as an image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode in ("I", "I;16") and channels != 3:
                # 16 bits; converting it would clip all above 255 to white.
                array = np.rint(np.asarray(image, np.float64) / 257).astype(np.uint8)
                return array[..., None]
            grey = image.mode in ("1", "L", "LA") if channels is None else channels == 1
            array = np.asarray(image.convert("L" if grey else "RGB"))
    except Exception as error:  # each format's reader has its own; also an image of absurd size
        raise InputError(f"image: {path} cannot be read: {' '.join(str(error).split())}") from error
    return array[..., None] if array.ndim == 2 else array


def png(pixels: np.ndarray) -> bytes:
    """An image uint8 ``[h, w, 1 or 3]`` as a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def central_square(image: np.ndarray, size: int | None) -> np.ndarray:
    """An image uint8 ``[h, w, c]`` as the central square of ``size`` pixels a side; None: as it is.

    Its shorter side becomes ``size`` by a bicubic filter that averages where it shrinks, then the longer
    one is cut equally at both ends (one pixel more at the bottom or the right where that is odd).
    """
    if size is None:
        return image
    from PIL import Image

    height, width, channels = image.shape
    if (height, width) == (size, size):
        return image
    scale = size / min(height, width)
    target = max(size, round(width * scale)), max(size, round(height * scale))
    pixels = image[..., 0] if channels == 1 else image
    resized = np.asarray(Image.fromarray(pixels).resize(target, Image.Resampling.BICUBIC))
    top, left = (target[1] - size) // 2, (target[0] - size) // 2
    return resized[top : top + size, left : left + size].reshape(size, size, channels)
