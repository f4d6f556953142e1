"""Scores of energies in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purify_jax import energy, networks
from purify_jax.checks import InputError


def test_score_of_a_gaussian_energy_is_minus_precision_times_distance():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(12, 12))
    precision = jnp.asarray(root @ root.T, jnp.float32)
    mean = jnp.asarray(rng.uniform(size=(2, 2, 3)), jnp.float32)
    images = jnp.asarray(rng.uniform(size=(5, 2, 2, 3)), jnp.float32)
    score = energy.score_from_energy(energy.gaussian_energy(mean, precision))(images)
    expected = -(np.asarray(images - mean).reshape(5, 12) @ np.asarray(precision))
    np.testing.assert_allclose(score.reshape(5, 12), expected, rtol=2e-5, atol=2e-5)


def test_denoiser_energy_is_half_the_squared_distance():
    network = networks.MLP(features=(8,))
    images = jnp.linspace(0, 1, 32).reshape(2, 4, 4, 1)
    params = network.init(jax.random.key(0), images)["params"]
    output = network.apply({"params": params}, images)
    found = energy.NetworkEnergy(network, params)(images)
    np.testing.assert_allclose(found, 0.5 * np.sum((images - output) ** 2, (1, 2, 3)), rtol=1e-6)


def test_a_scalar_network_is_the_energy_itself():
    network = networks.MLP(features=(8,), num_outputs=1)
    images = jnp.linspace(0, 1, 32).reshape(2, 4, 4, 1)
    params = network.init(jax.random.key(0), images)["params"]
    found = energy.NetworkEnergy(network, params)(images)
    np.testing.assert_array_equal(found, network.apply({"params": params}, images)[:, 0])


def test_wrong_output_shapes_are_named():
    network = networks.MLP(features=(8,), num_outputs=10)
    images = jnp.zeros((2, 4, 4, 1))
    params = network.init(jax.random.key(0), images)["params"]
    with pytest.raises(InputError, match=r"network: output shape \(2, 10\)"):
        energy.NetworkEnergy(network, params)(images)
    with pytest.raises(InputError, match="expected the images'"):
        energy.NetworkScore(network, params)(images)
