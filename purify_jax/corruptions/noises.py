"""Corruptions by noise: one image ``[h, w, c]`` in [0, 1] at a time, float64."""

import numpy as np

Image = np.ndarray
Generator = np.random.Generator


def gaussian_noise(image: Image, rng: Generator, scale: float) -> Image:
    """x + scale·n, n ~ N(0, 1)."""
    return image + scale * rng.standard_normal(image.shape)


def shot_noise(image: Image, rng: Generator, photons: float) -> Image:
    """Poisson(x·photons)/photons: mean x, variance x/photons."""
    return rng.poisson(np.clip(image, 0, 1) * photons) / photons


def impulse_noise(image: Image, rng: Generator, amount: float) -> Image:
    """Each value becomes 0 or 1, equally often, with probability ``amount``."""
    hit = rng.random(image.shape) < amount
    return np.where(hit, rng.random(image.shape) < 0.5, image)


def speckle_noise(image: Image, rng: Generator, scale: float) -> Image:
    """x + scale·x·n, n ~ N(0, 1)."""
    return image + scale * image * rng.standard_normal(image.shape)
