"""Noise levels in closed form."""

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import keys_for

from purify_jax import noise
from purify_jax.checks import InputError


def test_levels_of_ncsnv2():
    """The published checkpoint of the golden data: 232 levels, geometric."""
    sigmas = np.asarray(noise.geometric(50.0, 0.01, 232))
    np.testing.assert_allclose(sigmas[[0, -1]], [50, 0.01], rtol=1e-6)
    np.testing.assert_allclose(sigmas[1:] / sigmas[:-1], (0.01 / 50) ** (1 / 231), rtol=1e-4)


def test_published_sigmas(golden):
    stored = golden("ncsnv2_ngf8_32x32x3")["state_dict/sigmas"]
    found = noise.geometric(float(stored[0]), float(stored[-1]), len(stored))
    np.testing.assert_allclose(found, stored, rtol=1e-4)


def test_linear_levels():
    np.testing.assert_allclose(noise.linear(1.0, 0.2, 5), [1, 0.8, 0.6, 0.4, 0.2], rtol=1e-6)


def test_scales():
    sigmas = jnp.array([0.5, 2.0])
    np.testing.assert_array_equal(noise.per_sigma(sigmas), [2, 0.5])
    np.testing.assert_array_equal(noise.per_variance(sigmas), [4, 0.25])
    np.testing.assert_array_equal(noise.unscaled(sigmas), [1, 1])


@pytest.mark.parametrize("arguments", [(0.1, 0.2, 3), (1.0, 0.0, 3), (1.0, 0.1, 0)])
def test_bad_levels_are_named(arguments):
    with pytest.raises(InputError, match="expected"):
        noise.geometric(*arguments)


@pytest.mark.ci
def test_patterns_are_plus_or_minus_one_size_per_image():
    images = jnp.zeros((400, 12, 12, 1))
    found = np.asarray(noise.patterns(0.4)(keys_for(400), images))
    sizes = np.abs(found).reshape(400, -1)
    np.testing.assert_allclose(sizes.min(1), sizes.max(1))
    assert sizes.max() <= 0.4
    assert sizes.mean() == pytest.approx(0.2, abs=0.02)
    # Grains of 1, 2 and 4 pixels: neighbours agree by chance or much more often.
    agree = (found[:, :, 1:] == found[:, :, :-1]).mean((1, 2, 3))
    assert 0.25 < (agree < 0.6).mean() < 0.42
    assert agree.max() > 0.75


def test_patterns_are_no_larger_than_a_pixel_is_wide():
    with pytest.raises(
        InputError, match=r"amplitude: got 1.5, expected a finite number >= 0 and <= 1"
    ):
        noise.patterns(1.5)
