"""The common corruptions of CIFAR-10-C at severities 1 to 5, for images of any size ≥ 8.

Hendrycks & Dietterich 2019, arXiv 1903.12261, with the parameters published for 32×32 images:
lengths in pixels are taken as they are at every size, so that small images suffer more. Frost and
spatter are drawn, not pasted from photographs; see ``purify_jax.corruptions.weather``.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from purify_jax.checks import InputError, check_choice, check_count, check_images, check_seed
from purify_jax.corruptions import blurs, digital, noises, weather

#: name → (function of one image, parameters of severities 1 to 5: those of CIFAR-10-C).
_CORRUPTIONS: Mapping[str, tuple[Callable[..., np.ndarray], tuple]] = MappingProxyType(
    {
        "gaussian_noise": (noises.gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
        "shot_noise": (noises.shot_noise, (500, 250, 100, 75, 50)),
        "impulse_noise": (noises.impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
        "defocus_blur": (
            blurs.defocus_blur,
            ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)),
        ),
        "glass_blur": (
            blurs.glass_blur,
            ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        ),
        "motion_blur": (blurs.motion_blur, ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))),
        "zoom_blur": (blurs.zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),
        "snow": (
            weather.snow,
            (
                (0.1, 0.2, 1.0, 0.6, 8, 3, 0.95),
                (0.1, 0.2, 1.0, 0.5, 10, 4, 0.9),
                (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
                (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
                (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
            ),
        ),
        "frost": (weather.frost, ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
        "fog": (weather.fog, ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))),
        "brightness": (digital.brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
        "contrast": (digital.contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
        "elastic_transform": (
            digital.elastic_transform,
            (
                (0.0, 0.0, 0.08),
                (0.05, 0.2, 0.07),
                (0.08, 0.06, 0.06),
                (0.1, 0.04, 0.05),
                (0.1, 0.03, 0.03),
            ),
        ),
        "pixelate": (digital.pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
        "jpeg_compression": (digital.jpeg_compression, (80, 65, 58, 50, 40)),
        "speckle_noise": (noises.speckle_noise, (0.06, 0.10, 0.12, 0.16, 0.20)),
        "gaussian_blur": (blurs.gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
        "spatter": (
            weather.spatter,
            (
                (0.62, 0.1, 0.7, 0.7, 0.5, False),
                (0.65, 0.1, 0.8, 0.7, 0.5, False),
                (0.65, 0.3, 1.0, 0.69, 0.5, False),
                (0.65, 0.1, 0.7, 0.69, 0.6, True),
                (0.65, 0.1, 0.5, 0.68, 0.6, True),
            ),
        ),
        "saturate": (
            digital.saturate,
            ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2)),
        ),
    }
)

#: All 19 names; the first 15 are the benchmark, of which mCE is the mean.
NAMES = tuple(_CORRUPTIONS)
BENCHMARK = NAMES[:15]
EXTRA = NAMES[15:]
SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 8


def corrupt(
    images: np.ndarray,
    name: str,
    severity: int,
    *,
    seed: int = 0,
    indices: np.ndarray | None = None,
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
    check_choice("corruption", name, NAMES)
