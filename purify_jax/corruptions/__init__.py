"""The common corruptions of CIFAR-10-C at severities 1 to 5, for images of any size ≥ 8.

Hendrycks & Dietterich 2019, arXiv 1903.12261, with the parameters published for 32×32 images:
lengths in pixels are taken as they are at every size, so that small images suffer more. Frost and
spatter are drawn, not pasted from photographs; see ``purify_jax.corruptions.weather``.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from purify_jax.checks import InputError, check_count, check_images, check_seed
from purify_jax.corruptions import blurs, digital, noises, weather

#: name → (function of one image, parameters of severities 1 to 5).
_CORRUPTIONS: Mapping[str, tuple[Callable[..., np.ndarray], tuple]] = MappingProxyType(
    {
        "gaussian_noise": (noises.gaussian_noise, noises.GAUSSIAN_NOISE),
        "shot_noise": (noises.shot_noise, noises.SHOT_NOISE),
        "impulse_noise": (noises.impulse_noise, noises.IMPULSE_NOISE),
        "defocus_blur": (blurs.defocus_blur, blurs.DEFOCUS_BLUR),
        "glass_blur": (blurs.glass_blur, blurs.GLASS_BLUR),
        "motion_blur": (blurs.motion_blur, blurs.MOTION_BLUR),
        "zoom_blur": (blurs.zoom_blur, blurs.ZOOM_BLUR),
        "snow": (weather.snow, weather.SNOW),
        "frost": (weather.frost, weather.FROST),
        "fog": (weather.fog, weather.FOG),
        "brightness": (digital.brightness, digital.BRIGHTNESS),
        "contrast": (digital.contrast, digital.CONTRAST),
        "elastic_transform": (digital.elastic_transform, digital.ELASTIC_TRANSFORM),
        "pixelate": (digital.pixelate, digital.PIXELATE),
        "jpeg_compression": (digital.jpeg_compression, digital.JPEG_COMPRESSION),
        "speckle_noise": (noises.speckle_noise, noises.SPECKLE_NOISE),
        "gaussian_blur": (blurs.gaussian_blur, blurs.GAUSSIAN_BLUR),
        "spatter": (weather.spatter, weather.SPATTER),
        "saturate": (digital.saturate, digital.SATURATE),
    }
)

#: All 19 names; the first 15 are the benchmark, of which mCE is the mean.
NAMES = tuple(_CORRUPTIONS)
BENCHMARK = NAMES[:15]
EXTRA = NAMES[15:]
SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 8


def corrupt(
    images: Any, name: str, severity: int, *, seed: int = 0, indices: Any = None
) -> np.ndarray:
    """Corrupted copies of images.

    Args:
      images: ``[batch, h, w, c]`` floats in [0, 1], h and w ≥ 8, c = 1 or 3.
      name: one of :data:`NAMES`.
      severity: 0 (the images as they are) to 5.
      seed: with the name, the severity and an image's index, all of its randomness.
      indices: ``[batch]`` global indices of the images; 0, 1, ... by default.

    Returns float32 images in [0, 1]. Raises InputError for an unknown name or severity, or
    images of wrong values, size or channels.
    """
    check_name(name)
    check_count("severity", severity, 0, 5)
    check_seed(seed)
    images = np.asarray(images)
    check_images(images)
    height, width, channels = images.shape[1:]
    if min(height, width) < SMALLEST:
        raise InputError(
            f"images: got {height}×{width} pixels, expected at least {SMALLEST}×{SMALLEST} "
            f"for {name}"
        )
    if channels not in (1, 3):
        raise InputError(f"images: got {channels} channels, expected 1 (grey) or 3 (RGB)")
    if severity == 0:
        return images.astype(np.float32)
    indices = np.arange(len(images)) if indices is None else np.asarray(indices)
    if len(indices) != len(images):
        raise InputError(
            f"indices: got {len(indices)}, expected one for each of {len(images)} images"
        )
    function, parameters = _CORRUPTIONS[name]
    chosen = parameters[severity - 1]
    chosen = chosen if isinstance(chosen, tuple) else (chosen,)
    stream = NAMES.index(name) * len(SEVERITIES) + severity
    corrupted = np.empty(images.shape, np.float32)
    for row, (image, index) in enumerate(zip(images, indices, strict=True)):
        rng = np.random.default_rng([seed, stream, int(index)])
        corrupted[row] = np.clip(function(image.astype(np.float64), rng, *chosen), 0, 1)
    return corrupted


def check_name(name: str) -> None:
    """Raises InputError unless ``name`` is one of :data:`NAMES`."""
    if name not in NAMES:
        raise InputError(f"corruption: got {name!r}, expected one of {list(NAMES)}")
