"""The EDM loss and its network against closed forms of Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import apply, init

from purify_jax import energy, networks, noise, training
from purify_jax.data import load_split
from purify_jax.keys import image_keys
from purify_jax.models import noise_score
from purify_jax.networks import shuffled_unet
from purify_jax.training import EDMLoss, LogNormal, score_model

SMALL = networks.NoiseConditionalUNet(features=(8, 12), blocks=1)


def _gaussian(count, std, seed=0):
    return 0.5 + std * jax.random.normal(jax.random.key(seed), (count, 8, 8, 3))


def test_folding_moves_each_block_of_pixels_into_channels():
    x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    folded = shuffled_unet.fold(x)
    assert folded.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(folded[1, 1, 2], x[1, 2:4, 4:6].reshape(-1))
    np.testing.assert_array_equal(shuffled_unet.unfold(folded), x)


@pytest.mark.parametrize("sigma", [0.02, 0.25, 1.0])
def test_the_best_denoiser_of_gaussian_data_has_loss_one(sigma):
    """x | y is Gaussian with mean ½ + d²/(σ² + d²)·(y − ½) and variance σ²d²/(σ² + d²)."""
    best = lambda x, s: (s**2 / (s**2 + 0.25**2)).reshape(-1, 1, 1, 1) * (0.5 - x)
    keys = image_keys(jax.random.key(1), jnp.arange(512))
    at = lambda keys: jnp.full(keys.shape, sigma)
    losses = score_model.denoising_loss(best, keys, _gaussian(512, 0.25), at, data_std=0.25)
    # 512 · 192 squares of standard normals: a relative error of √2/√98304 = 0.0045.
    np.testing.assert_allclose(losses.mean(), 1.0, atol=0.02)


def test_doing_nothing_costs_the_variance_of_the_noise():
    nothing = lambda x, s: jnp.zeros_like(x)
    keys = image_keys(jax.random.key(1), jnp.arange(512))
    losses = score_model.denoising_loss(
        nothing, keys, _gaussian(512, 0.1), lambda keys: jnp.full(keys.shape, 0.5), data_std=0.25
    )
    np.testing.assert_allclose(losses.mean(), (0.5**2 + 0.25**2) / 0.25**2, rtol=0.02)


@pytest.mark.ci
def test_a_new_network_is_the_best_denoiser_of_gaussian_data():
    images = jax.random.uniform(jax.random.key(0), (3, 16, 16, 3))
    variables = init(SMALL, jax.random.key(1), images)
    sigmas = jnp.asarray([0.05, 0.25, 0.7])
    expected = (sigmas**2 / (sigmas**2 + 0.25**2)).reshape(-1, 1, 1, 1) * (0.5 - images)
    np.testing.assert_allclose(apply(SMALL, variables, images, sigmas), expected, atol=1e-6)


def test_preconditioning_keeps_the_variances_at_one():
    """c_in (y + σε) has variance 1, and so has the target (y − c_skip x)/c_out."""
    sigmas, d = jnp.asarray([0.01, 0.25, 2.0]), 0.25
    c_skip, c_out, c_in, c_noise = shuffled_unet.preconditioning(sigmas, d)
    np.testing.assert_allclose(c_in**2 * (d**2 + sigmas**2), 1.0, rtol=1e-5)
    target = ((1 - c_skip) ** 2 * d**2 + c_skip**2 * sigmas**2) / c_out**2
    np.testing.assert_allclose(target, 1.0, rtol=1e-4)
    np.testing.assert_allclose(c_noise, np.log(sigmas) / 4, rtol=1e-6)


def test_levels_are_log_normal():
    keys = image_keys(jax.random.key(0), jnp.arange(4000))
    logs = np.log(LogNormal(-1.9, 1.2)(keys))
    assert abs(logs.mean() + 1.9) < 0.08
    assert abs(logs.std() - 1.2) < 0.06


def test_without_a_level_the_network_is_a_score_network_at_its_reference():
    images = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3))
    params = init(SMALL, jax.random.key(1), images)["params"]
    scale = noise.per_variance(jnp.asarray(0.25))
    score = jax.jit(energy.NetworkScore(SMALL, params))(images) * scale
    # Of data N(½, 0.25²) with noise of 0.25: −(x − ½)/(2 · 0.25²).
    np.testing.assert_allclose(score, (0.5 - images) / (2 * 0.25**2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", [SMALL, networks.ShuffledUNet(features=(8, 12), blocks=1)])
def test_a_description_builds_the_same_network(network):
    assert networks.build(networks.describe(network)) == network
    images = jnp.zeros((1, 16, 16, 3))
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    assert jax.eval_shape(network.apply, shapes, images).shape == images.shape


@pytest.mark.ci
def test_a_step_of_training_moves_the_network():
    images = jax.random.uniform(jax.random.key(0), (4, 16, 16, 3))
    state = training.init_state(SMALL, optax.adam(1e-3), jax.random.key(0), (16, 16, 3))
    run = training.scan_steps(
        EDMLoss(LogNormal(-1.9, 1.2), network=SMALL), optax.adam(1e-3), jax.random.key(1)
    )
    end, metrics = run(state, images, jnp.zeros(4, jnp.int32), jnp.arange(4)[None].repeat(3, 0))
    assert int(end.step) == 3
    assert np.isfinite(float(metrics["loss"]))
    assert float(metrics["gradient_norm"]) > 0


def test_a_network_that_is_not_told_the_noise_trains_on_the_same_loss():
    """On one level of Gaussian data the best displacement is linear, d²/(σ² + d²) − 1 times the distance."""

    class Linear(networks.nn.Module):
        @networks.nn.compact
        def __call__(self, images):
            slope = self.param("slope", networks.nn.initializers.zeros, ())
            return slope * (images - 0.5)

    network, sigma = Linear(), 0.25
    loss = EDMLoss(LogNormal(np.log(sigma), 0.0), network=network)
    keys, images = image_keys(jax.random.key(1), jnp.arange(256)), _gaussian(256, 0.25)
    value = jax.jit(lambda slope: loss({"slope": slope}, {}, keys, images, None)[0])
    slopes = jnp.linspace(-0.8, -0.2, 13)  # the best one is −σ²/(σ² + d²) = −½
    values = jnp.array([value(slope) for slope in slopes])
    assert float(slopes[jnp.argmin(values)]) == pytest.approx(-0.5, abs=1e-6)
    np.testing.assert_allclose(values.min(), 1.0, atol=0.02)
    dataset = load_split("digits", "train")
    settings = training.DenoiserSettings(num_steps=2, batch_size=8, steps_per_dispatch=1)
    model, finished = training.train_score_model(networks.MLP(features=(8,)), dataset, settings)
    assert finished
    assert np.isfinite(noise_score(model)(jnp.full((1, 8, 8, 1), 0.5), 0.2)).all()
