"""PSNR and its baselines on images whose figures are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purify_jax.training import denoising


def test_psnr_of_a_known_difference():
    images = jnp.full((2, 4, 4, 3), 0.5)
    np.testing.assert_allclose(denoising.psnr(images + 0.1, images), 20.0, rtol=1e-5)


def test_values_outside_the_range_are_blurred_before_anything_is_clipped():
    stripes = jnp.zeros((1, 24, 24, 1)).at[:, :, ::2].set(1.4)
    smooth = denoising.blurred(jax.random.key(0), stripes, 1.5)
    np.testing.assert_allclose(smooth[:, :, 8:16], 0.7, atol=1e-3)


@pytest.mark.ci
def test_the_table_states_noise_blur_and_denoiser():
    images = np.full((40, 16, 16, 3), 0.5, np.float32)
    towards_grey = lambda x, sigmas: x + 0.9 * (0.5 - x)
    rows = denoising.table(towards_grey, jax.random.key(0), images, [0.1, 0.05], batch_size=16)
    # Noise of σ: −20 log₁₀ σ; a tenth of it is 20 dB better; a flat image is blurred best widest.
    np.testing.assert_allclose([row["noisy"] for row in rows], [20.0, 26.02], atol=0.1)
    np.testing.assert_allclose([row["denoised"] for row in rows], [40.0, 46.02], atol=0.1)
    assert all(row["blur_width"] == max(denoising.BLURS) for row in rows)
    assert all(row["noisy"] + 6 < row["blur"] < row["denoised"] for row in rows)
