"""Corruptions by blur, by scipy.ndimage; lengths are in pixels, as published for 32×32."""

import math

import numpy as np
import scipy

from purify_jax.corruptions.noises import Generator, Image


def gaussian_blur(image: Image, rng: Generator, sigma: float) -> Image:
    """Convolution with a Gaussian of standard deviation ``sigma`` pixels."""
    del rng
    return scipy.ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest")


def defocus_blur(image: Image, rng: Generator, radius: float, alias_blur: float) -> Image:
    """Convolution with a disk of ``radius`` pixels, its edge softened by a 3×3 Gaussian."""
    del rng
    reach = math.ceil(radius)
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (rows**2 + columns**2 <= radius**2).astype(float)
    profile = np.exp(-(np.arange(-1, 2) ** 2) / (2 * alias_blur**2))
    kernel = scipy.ndimage.convolve(np.pad(disk, 1), np.outer(profile, profile), mode="constant")
    return scipy.ndimage.convolve(image, (kernel / kernel.sum())[..., None], mode="mirror")


def glass_blur(image: Image, rng: Generator, sigma: float, reach: int, iterations: int) -> Image:
    """Blur, swap pixels with neighbours up to ``reach`` away, blur again."""
    shuffled = gaussian_blur(image, rng, sigma)
    height, width = image.shape[:2]
    for _ in range(iterations):
        for row in range(height - reach - 1, reach - 1, -1):
            for column in range(width - reach - 1, reach - 1, -1):
                down, right = rng.integers(-reach, reach + 1, 2)
                other = row + down, column + right
                here = shuffled[row, column].copy()
                shuffled[row, column] = shuffled[other]
                shuffled[other] = here
    return gaussian_blur(shuffled, rng, sigma)


def motion_kernel(radius: float, sigma: float, angle: float) -> np.ndarray:
    """A one-sided Gaussian trail ``[2r + 1, 2r + 1]`` along ``angle`` (radians), sum 1."""
    length = int(2 * radius + 1)
    weights = np.exp(-(np.arange(length) ** 2) / (2 * sigma**2))
    rows, columns = (np.arange(length) * f(angle) for f in (math.sin, math.cos))
    kernel = np.zeros((2 * length + 1, 2 * length + 1))
    # Bilinear: a point between pixels is shared among its four neighbours.
    low_row, low_column = np.floor(rows), np.floor(columns)
    for step_row in (0, 1):
        for step_column in (0, 1):
            share = np.abs(1 - step_row - (rows - low_row)) * np.abs(
                1 - step_column - (columns - low_column)
            )
            place = (
                (low_row + step_row + length).astype(int),
                (low_column + step_column + length).astype(int),
            )
            np.add.at(kernel, place, weights * share)
    return kernel / kernel.sum()


def motion_blur(image: Image, rng: Generator, radius: float, sigma: float) -> Image:
    """A trail of random direction within 45° of the horizontal."""
    kernel = motion_kernel(radius, sigma, math.radians(rng.uniform(-45, 45)))
    return scipy.ndimage.convolve(image, kernel[..., None], mode="nearest")


def clipped_zoom(image: Image, factor: float) -> Image:
    """The centre of the image, enlarged ``factor`` ≥ 1 times to the same size (bilinear)."""
    centre = (np.array(image.shape[:2]) - 1) / 2
    matrix = np.diag([1 / factor, 1 / factor, 1])
    offset = np.append(centre * (1 - 1 / factor), 0)
    return scipy.ndimage.affine_transform(image, matrix, offset, order=1, mode="nearest")


def zoom_blur(image: Image, rng: Generator, largest: float) -> Image:
    """The mean of the image and its enlargements by 1, 1.01, ... below ``largest``."""
    del rng
    factors = np.arange(1, largest, 0.01)
    total = image + sum(clipped_zoom(image, factor) for factor in factors)
    return total / (len(factors) + 1)
