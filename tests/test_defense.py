"""The defense: how restarts combine, and its exact gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import keys_for

import purify_jax as pj
from purify_jax import attacks, defense, losses, purifiers
from purify_jax.checks import InputError


def test_combinations_against_numpy():
    logits = np.random.default_rng(0).normal(size=(7, 5, 4)).astype(np.float32) * 2
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    close = lambda a, b: np.testing.assert_allclose(np.exp(a), b, rtol=1e-5)
    close(defense.mean_probabilities(jnp.asarray(logits)), softmax.mean(0))
    mean = np.exp(logits.mean(0))
    close(defense.mean_logits(jnp.asarray(logits)), mean / mean.sum(-1, keepdims=True))
    votes = np.stack([(logits.argmax(-1) == c).sum(0) for c in range(4)], -1)
    close(defense.vote(jnp.asarray(logits)), (votes + 0.25) / 8)


def test_one_restart_is_the_first_of_more(models, digits_test):
    images, _ = digits_test.batch(np.arange(5))
    purifier = pj.models.adp_purifier(models[0], num_steps=2, num_restarts=3)
    logits_fn = pj.models.logits_fn(models[1])
    whole = defense.Defense(purifier, logits_fn)
    purified, _ = jax.jit(purifier)(keys_for(5), images)
    expected = jax.nn.log_softmax(jax.jit(logits_fn)(purified[0]))
    found = jax.jit(whole.with_restarts(1))(keys_for(5), images)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    bare = defense.undefended(logits_fn)
    assert bare.with_restarts(1) is bare
    with pytest.raises(InputError, match="num_restarts: got 0, expected a whole number >= 1"):
        whole.with_restarts(0)
    plain = defense.Defense(lambda keys, images: (images[None], None), logits_fn)
    with pytest.raises(InputError, match="expected a purifier that has a number of restarts"):
        plain.with_restarts(2)
    plain.purifier.num_restarts = 3  # an attribute that cannot be changed
    with pytest.raises(InputError, match="expected a purifier that has a number of restarts"):
        plain.with_restarts(2)


def test_a_purifier_without_a_restart_axis_is_named():
    images = jnp.zeros((5, 2, 2, 1))
    bare = defense.Defense(lambda keys, images: (images, None), lambda x: x.reshape(len(x), -1))
    with pytest.raises(InputError, match=r"purifier: output shape \(5, 2, 2, 1\) for images"):
        bare(keys_for(5), images)


def test_undefended_is_the_classifier_itself(models, digits_test):
    logits_fn = pj.models.logits_fn(models[1])
    images, _ = digits_test.batch(np.arange(9))
    found = jax.jit(defense.undefended(logits_fn))(keys_for(9), images)
    expected = jax.nn.log_softmax(jax.jit(logits_fn)(images))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_exact_gradient_against_central_differences_in_float64(models, digits_test):
    """Through noise, five steps with secant, finite-difference and exact curvature, and classifier."""
    with jax.enable_x64():
        wide = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), tree)
        score_model, classifier = models
        score_fn = pj.energy.score_from_energy_network(
            score_model.network, wide(score_model.params)
        )
        logits_fn = lambda x: classifier.network.apply({"params": wide(classifier.params)}, x)
        images, labels = digits_test.batch(np.arange(3))
        # Away from the bounds, so that no clip has its kink within the difference's reach.
        images = jnp.asarray(0.25 + 0.5 * images, jnp.float64)
        rng = np.random.default_rng(0)
        directions = jnp.asarray(rng.normal(size=(4, *images.shape)))
        for curvature in (
            purifiers.Secant(),
            purifiers.FiniteDifference(),
            purifiers.JacobianVectorProduct(),
        ):
            rule = purifiers.Adaptive(0.3, curvature, max_step=0.9)
            purifier = purifiers.ADP(score_fn, rule, num_steps=5, noise_scale=0.05, num_restarts=2)
            model = defense.Defense(purifier, logits_fn)
            gradient = jax.jit(attacks.ExactGradient(model, losses.cross_entropy))
            loss = jax.jit(lambda x, m=model: losses.cross_entropy(m(keys_for(3), x), labels))
            exact, _ = gradient(keys_for(3), images, labels)
            for direction in directions:
                h = 1e-6
                numeric = (loss(images + h * direction) - loss(images - h * direction)) / (2 * h)
                analytic = jnp.sum(exact * direction, axis=(1, 2, 3))
                np.testing.assert_allclose(analytic, numeric, rtol=1e-4, atol=1e-8)
