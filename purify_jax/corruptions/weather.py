"""Corruptions by weather, and by spatter on the lens."""

import math

import numpy as np
import scipy

from purify_jax.corruptions.blurs import clipped_zoom, motion_kernel
from purify_jax.corruptions.noises import Generator, Image

#: Weights of red, green and blue in a pixel's grey (ITU-R BT.601).
LUMA = np.array([0.299, 0.587, 0.114])


def grey(image: Image) -> Image:
    """``[h, w, 1]``, the luminance of a grey or RGB image."""
    return image if image.shape[-1] == 1 else image @ LUMA[:, None]


def coloured(colour: tuple[float, float, float], like: Image) -> np.ndarray:
    """A colour in the channels of an image: RGB, or its luminance."""
    return np.asarray(colour) if like.shape[-1] == 3 else np.array([np.dot(colour, LUMA)])


def plasma(size: int, rng: Generator, decay: float) -> np.ndarray:
    """A cloud ``[size, size]`` in [0, 1] by the diamond-square algorithm on a torus.

    Every halving of the grid divides the randomness by ``decay`` (Fournier, Fussell & Carpenter
    1982). ``size`` must be a power of two.
    """
    cloud = np.zeros((1, 1))
    amplitude = 1.0
    while len(cloud) < size:
        n = len(cloud)
        wobble = lambda amplitude=amplitude, n=n: amplitude * rng.uniform(-1, 1, (n, n))
        right, below = np.roll(cloud, -1, 1), np.roll(cloud, -1, 0)
        centres = (cloud + right + below + np.roll(right, -1, 0)) / 4 + wobble()
        tops = (cloud + right + centres + np.roll(centres, 1, 0)) / 4 + wobble()
        lefts = (cloud + below + centres + np.roll(centres, 1, 1)) / 4 + wobble()
        finer = np.empty((2 * n, 2 * n))
        finer[::2, ::2], finer[1::2, 1::2] = cloud, centres
        finer[::2, 1::2], finer[1::2, ::2] = tops, lefts
        cloud, amplitude = finer, amplitude / decay
    cloud = cloud - cloud.min()
    return cloud / cloud.max()


def _plasma_for(image: Image, rng: Generator, decay: float) -> np.ndarray:
    height, width = image.shape[:2]
    size = 2 ** math.ceil(math.log2(max(height, width)))
    return plasma(size, rng, decay)[:height, :width, None]


def fog(image: Image, rng: Generator, thickness: float, decay: float) -> Image:
    """(x + thickness·plasma)·m/(m + thickness) with m the image's largest value."""
    largest = image.max()
    return (image + thickness * _plasma_for(image, rng, decay)) * largest / (largest + thickness)


def frost(image: Image, rng: Generator, keep: float, amount: float) -> Image:
    """keep·x + amount·ice. The published version pastes photographs of ice, which cannot be had
    at every size; here the ice is ridged plasma in bluish white, about as bright."""
    ridges = 1 - np.abs(2 * _plasma_for(image, rng, 1.6) - 1)
    ice = (0.35 + 0.65 * ridges**2) * coloured((0.85, 0.95, 1.0), image)
    return keep * image + amount * ice


def snow(
    image: Image, rng: Generator, mean: float, spread: float, zoom: float, threshold: float,
    radius: float, sigma: float, keep: float,
) -> Image:  # fmt: skip
    """Flakes, enlarged, thresholded and blown, on a whitened image; and the same upside down."""
    flakes = rng.normal(mean, spread, (*image.shape[:2], 1))
    flakes = clipped_zoom(flakes, zoom)
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)
    kernel = motion_kernel(radius, sigma, math.radians(rng.uniform(-135, -45)))
    flakes = scipy.ndimage.convolve(flakes, kernel[..., None], mode="nearest")
    whitened = np.maximum(image, grey(image) * 1.5 + 0.5)
    return keep * image + (1 - keep) * whitened + flakes + flakes[::-1, ::-1]


def spatter(
    image: Image, rng: Generator, mean: float, spread: float, sigma: float, threshold: float,
    strength: float, is_mud: bool,
) -> Image:  # fmt: skip
    """Drops of water or mud: blurred noise above a threshold.

    Water is brighter inside a drop than at its rim, by the distance to the rim; the published
    version shades it by a chain of OpenCV filters that has the same effect.
    """
    layer = scipy.ndimage.gaussian_filter(rng.normal(mean, spread, image.shape[:2]), sigma)
    drops = layer > threshold
    if is_mud:
        cover = scipy.ndimage.gaussian_filter(drops.astype(float), strength)
        cover = np.where(cover < 0.8, 0, cover)[..., None]
        return image * (1 - cover) + cover * coloured((63 / 255, 42 / 255, 20 / 255), image)
    depth = scipy.ndimage.distance_transform_edt(drops) * drops
    shine = scipy.ndimage.uniform_filter(depth * np.where(drops, layer, 0), 3)
    shine = strength * shine / max(shine.max(), 1e-12)
    return image + shine[..., None] * coloured((175 / 255, 238 / 255, 238 / 255), image)
