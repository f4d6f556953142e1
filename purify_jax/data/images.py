"""Images as arrays: read, made one size, as floats."""

import contextlib
import functools
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from purify_jax.checks import InputError

if TYPE_CHECKING:
    from PIL import Image


def to_float(images: np.ndarray) -> np.ndarray:
    """uint8 in 0-255 → float32 in [0, 1]; floats as they are."""
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    return images.astype(np.float32)


#: What Pillow registers readers for, but no image viewer opens.
_NO_IMAGE = {".bufr", ".grib", ".h5", ".hdf", ".mpeg", ".mpg"}
#: Images that Pillow cannot read by itself: named as skipped.
_UNREADABLE = {
    ".arw", ".cr2", ".cr3", ".dng", ".heic", ".heif", ".jxl", ".nef", ".orf", ".raw", ".rw2", ".svg", ".svgz",
}  # fmt: skip


@functools.lru_cache(maxsize=1)
def _suffixes() -> frozenset[str]:
    from PIL import Image

    readable = {s for s, form in Image.registered_extensions().items() if form in Image.OPEN}
    return frozenset(readable - _NO_IMAGE | _UNREADABLE)


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder, sorted by name: every format that Pillow reads, and those that it cannot.

    A file without a suffix is one if it begins as a PNG, JPEG, GIF, WebP, BMP or TIFF does. Hidden files are not.
    """
    files = (p for p in folder.iterdir() if not p.name.startswith(".") and p.is_file())
    known = _suffixes()
    return sorted(p for p in files if p.suffix.lower() in known or (not p.suffix and _is_image(p)))


def _is_image(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")):
            return True
    except Exception:  # each format's reader has its own; :func:`read_image` says them
        return False


def read_image(path: Path, channels: int | None = None) -> np.ndarray:
    """An image file as a viewer shows it, uint8 ``[h, w, c]``; grey or RGB as the file is, or as ``channels`` says.

    It is turned as its EXIF orientation says. Transparency is laid on white. 16 bits become 8, and floats in
    [0, 1] as well. Of an animation it is the first frame. Colour profiles are not applied.

    Raises InputError if the file cannot be read as an image.
    """
    try:
        return decoded(path, channels)
    except Exception as error:  # each format's reader has its own; also an image of absurd size
        reason = " ".join(str(error).split()) or type(error).__name__
        hint = ""
        if path.suffix.lower() in _UNREADABLE:
            hint = f" (Pillow reads no {path.suffix.lower()}: convert it to PNG)"
        raise InputError(f"image: {path} cannot be read: {reason}{hint}") from error


def decoded(file: Path | io.BytesIO, channels: int | None) -> np.ndarray:
    """What :func:`read_image` returns; raises whatever Pillow does."""
    from PIL import Image

    with Image.open(file) as image:
        image.load()
        array = _shown(image, channels)
    return array[..., None] if array.ndim == 2 else array


def _shown(image: "Image.Image", channels: int | None) -> np.ndarray:
    from PIL import Image, ImageOps

    grey = image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")
    if image.mode.startswith("I") or image.mode == "F":
        exif = image.getexif()
        image = Image.fromarray(to_bytes(np.asarray(image)))
        image.info["exif"] = exif.tobytes()
    with contextlib.suppress(Exception):  # a damaged tag turns nothing
        image = ImageOps.exif_transpose(image)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
    return np.asarray(image.convert("L" if channels == 1 or (grey and not channels) else "RGB"))


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    """Pixels of any type as uint8: 16 bits over 257, floats in [0, 1] times 255, all rounded.

    Raises InputError for numbers whose range is not clear.
    """
    if pixels.dtype == np.uint8:
        return pixels
    low, high = (float(f(pixels)) if pixels.size else 0.0 for f in (np.min, np.max))
    if pixels.dtype == bool or (pixels.dtype.kind == "f" and low >= 0 and high <= 1):
        return np.rint(pixels * 255.0).astype(np.uint8)
    if pixels.dtype.kind in "iu" and low >= 0 and high <= 65535:
        return np.rint(pixels / 257).astype(np.uint8)
    raise InputError(
        f"pixels: got {pixels.dtype} in [{low:g}, {high:g}], expected 8 or 16 bits, or floats in [0, 1]"
    )


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
