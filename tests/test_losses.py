"""Losses against closed forms and numpy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from conftest import keys_for

from purify_jax import losses, noise


def test_dsm_on_gaussian_data_recovers_the_smoothed_score():
    """For x ~ N(μ, Σ) the score of the σ-smoothed data is −(Σ + σ²I)⁻¹(x̃ − μ)."""
    rng = np.random.default_rng(0)
    size, sigma = 4, 0.5
    root = rng.normal(size=(size, size)) * 0.5
    covariance, mean = root @ root.T + 0.1 * np.eye(size), rng.uniform(size=size)
    model = nn.Dense(size)
    params = model.init(jax.random.key(0), jnp.zeros((1, size)))["params"]
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-2, 3000))

    def loss_fn(params, key):
        data_key, noise_key = jax.random.split(key)
        x = jax.random.multivariate_normal(data_key, mean, covariance, (512,))
        score = lambda v: model.apply({"params": params}, v.reshape(-1, size)).reshape(v.shape)
        keys = jax.random.split(noise_key, 512)
        images = x.reshape(-1, 2, 2, 1).astype(jnp.float32)
        return losses.denoising_score_matching(
            score, keys, images, jnp.array([sigma]), noise.unscaled
        ).mean()

    def step(carry, key):
        params, state = carry
        grads = jax.grad(loss_fn)(params, key)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), None

    carry = (params, optimizer.init(params))
    (params, _), _ = jax.jit(lambda c, k: jax.lax.scan(step, c, k))(
        carry, jax.random.split(jax.random.key(1), 3000)
    )
    expected = -np.linalg.inv(covariance + sigma**2 * np.eye(size))
    error = np.abs(params["kernel"] - expected).max() / np.abs(expected).max()
    assert error < 0.02, error
    offset = np.abs(params["bias"] + expected @ mean).max() / np.abs(expected @ mean).max()
    assert offset < 0.04, offset


def test_the_three_scales_agree_when_the_network_is_rescaled_to_match():
    """f = s, f = σs and f = σ²s are the same score: the same loss."""
    sigma = jnp.array([0.3])
    images = jax.random.uniform(jax.random.key(0), (16, 4, 4, 1))
    score = lambda x: -2.0 * x
    found = [
        losses.denoising_score_matching(
            lambda x, p=power: score(x) * 0.3**p, keys_for(16), images, sigma, scale
        )
        for power, scale in enumerate((noise.unscaled, noise.per_sigma, noise.per_variance))
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    np.testing.assert_allclose(found[0], found[2], rtol=1e-5)


def test_the_loss_of_the_true_conditional_score_is_zero():
    """With one data point, −(x̃ − x)/σ² is the exact score of the perturbed data."""
    point = jnp.full((8, 3, 3, 1), 0.4)
    loss = losses.denoising_score_matching(
        lambda x: 0.4 - x, keys_for(8), point, noise.geometric(1.0, 0.01, 10), noise.per_variance
    )
    # float32: (x̃ − x)/σ loses digits where σ is a hundredth of a pixel's range.
    np.testing.assert_allclose(loss, 0, atol=1e-7)


def test_classification_losses_against_numpy():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(50, 10)).astype(np.float32) * 3
    labels = rng.integers(0, 10, 50)
    targets = (labels + 3) % 10
    log_probs = jax.nn.log_softmax(logits)
    of = lambda y: logits[np.arange(50), y]
    others = np.where(np.eye(10, dtype=bool)[labels], -np.inf, logits).max(-1)
    ordered = np.sort(logits, -1)
    log_sum = np.log(np.exp(logits).sum(-1))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)
    close(losses.cross_entropy(log_probs, labels), log_sum - of(labels))
    close(losses.margin(log_probs, labels), others - of(labels))
    close(losses.dlr(log_probs, labels), (others - of(labels)) / (ordered[:, -1] - ordered[:, -3]))
    scale = ordered[:, -1] - 0.5 * (ordered[:, -3] + ordered[:, -4])
    close(losses.targeted_dlr(labels)(log_probs, targets), (of(targets) - of(labels)) / scale)
    close(losses.targeted(losses.margin)(log_probs, targets), -losses.margin(log_probs, targets))


def test_a_further_perturbation_is_part_of_what_is_undone():
    images = jnp.asarray(np.random.default_rng(0).random((6, 5, 5, 1)), jnp.float32)
    perturb = noise.patterns(0.4)
    args = keys_for(6), images, jnp.array([0.1, 0.3]), noise.per_variance
    undo = lambda noisy: images - noisy
    exact = losses.denoising_score_matching(undo, *args, perturb)
    np.testing.assert_allclose(exact, 0, atol=1e-6)
    # A model that undoes the Gaussian part only is wrong by the pattern, in units of σ.
    plain = losses.denoising_score_matching(lambda noisy: 0 * noisy, *args, perturb)
    assert (np.asarray(plain) > 1).all()
