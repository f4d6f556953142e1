"""The purifier against the published code, closed forms and itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import keys_for

import purify_jax as pj
from purify_jax import energy
from purify_jax import purifiers as pur
from purify_jax.checks import InputError
from purify_jax.keys import image_keys
from purify_jax.purifiers import adp


@pytest.mark.parametrize(("name", "threshold"), [("nostop", 0.0), ("stop", 0.01)])
def test_the_published_update_rule(golden, name, threshold, monkeypatch):
    """Ten steps of the published code, with its pixel quirk: images and step sizes within 1e-4."""
    data = golden("adp_trajectory")
    to_last = lambda a: jnp.asarray(np.moveaxis(a, -3, -1))
    mu, a, gain, x, noise = (to_last(data[k]) for k in ("mu", "a", "gain", "x", "noise"))
    monkeypatch.setattr(adp, "normal_like", lambda keys, images: noise)
    purifier = pur.ADP(
        lambda v: gain * jnp.tanh(a * (mu - v)),
        pur.Adaptive(rate=0.05),
        num_steps=10,
        noise_scale=0.25,
        num_restarts=1,
        stop_threshold=threshold,
        pixel_scaling=pur.PublishedPixelScaling(),
    )
    keys = keys_for(len(x))
    purified, info = purifier(keys, x)
    images = purifier.trajectory(keys, x)
    np.testing.assert_allclose(images, to_last(data[f"{name}/images"]), atol=1e-4)
    np.testing.assert_allclose(purified[0], images[-1], atol=1e-6)
    np.testing.assert_allclose(info.step_sizes[:, 0], data[f"{name}/step_sizes"], atol=1e-4)
    active = (data[f"{name}/step_sizes"] > 0).sum(0)
    np.testing.assert_array_equal(info.active_steps[0], active)


def _quadratic(scales):
    mean = jnp.full((2, 2, 1), 0.5)
    return energy.score_from_energy(energy.gaussian_energy(mean, jnp.diag(jnp.asarray(scales))))


def _curvatures(estimator, score_fn, images):
    state = estimator.init(images)
    return estimator.estimate(score_fn, state, images, score_fn(images))


def test_curvature_estimates_agree_on_a_quadratic():
    """κ = sᵀPs/sᵀs for the score −P(x − μ), by all three estimates."""
    scales = np.array([0.5, 1.0, 2.0, 4.0])
    score_fn = _quadratic(scales)
    images = jax.random.uniform(jax.random.key(0), (6, 2, 2, 1))
    score = np.asarray(score_fn(images)).reshape(6, 4)
    expected = (score**2 * scales).sum(1) / (score**2).sum(1)
    for estimator, tolerance in (
        (pur.FiniteDifference(), 2e-3),
        (pur.JacobianVectorProduct(), 1e-5),
    ):
        kappa, _ = _curvatures(estimator, score_fn, images)
        np.testing.assert_allclose(kappa, expected, rtol=tolerance)
    # The secant between x and x + αs sees the curvature along s at x, exactly.
    secant = pur.Secant()
    first, state = _curvatures(secant, score_fn, images)
    np.testing.assert_array_equal(first, np.ones(6))
    moved = images + 0.1 * score_fn(images)
    kappa, _ = secant.estimate(score_fn, state, moved, score_fn(moved))
    np.testing.assert_allclose(kappa, expected, rtol=1e-4)
    # Without movement the last known curvature stays.
    again, _ = secant.estimate(score_fn, (moved, score_fn(moved), kappa), moved, score_fn(moved))
    np.testing.assert_array_equal(again, kappa)


def test_rate_over_curvature_walks_a_quadratic_in_closed_form():
    """On ½c‖x − μ‖² the step is λ/c, so each step leaves 1 − λ of the distance."""
    score_fn = _quadratic([3.0] * 4)
    rule = pur.Adaptive(rate=0.25, curvature=pur.JacobianVectorProduct(), max_step=1.0)
    purifier = pur.ADP(score_fn, rule, num_steps=4, noise_scale=0.0, num_restarts=1)
    images = jax.random.uniform(jax.random.key(1), (5, 2, 2, 1))
    purified, info = purifier(keys_for(5), images)
    np.testing.assert_allclose(purified[0] - 0.5, (images - 0.5) * 0.75**4, atol=1e-6)
    np.testing.assert_allclose(info.step_sizes, 0.25 / 3, rtol=1e-5)
    norms = np.linalg.norm(3 * (np.asarray(images).reshape(5, 4) - 0.5), axis=1)
    np.testing.assert_allclose(
        info.score_norms[:, 0], norms * 0.75 ** np.arange(4)[:, None], rtol=1e-5
    )


def test_negative_and_zero_curvature_follow_the_published_clamp():
    images = jax.random.uniform(jax.random.key(1), (3, 2, 2, 1))
    for score_fn, expected in (
        (lambda x: x - 0.5, 1e-5),
        (lambda x: jnp.ones_like(x), 0.1),
        (jnp.zeros_like, 0.1),
    ):
        rule = pur.Adaptive()
        alpha, _ = rule.step_size(score_fn, rule.init(images), images, score_fn(images))
        np.testing.assert_allclose(alpha, expected, rtol=1e-6)


@pytest.mark.ci
def test_results_do_not_depend_on_batch_size_or_padding(models, digits_test):
    purifier = jax.jit(pj.models.adp_purifier(models[0], num_restarts=3))
    images, _ = digits_test.batch(np.arange(20))
    whole, info = purifier(image_keys(jax.random.key(3), np.arange(20)), images)
    for part in (np.arange(7), np.arange(5, 20), np.array([19, 3, 3, 3])):
        keys = image_keys(jax.random.key(3), part)
        purified, part_info = purifier(keys, images[part])
        np.testing.assert_allclose(purified, whole[:, part], atol=2e-5)
        np.testing.assert_allclose(part_info.step_sizes, info.step_sizes[:, :, part], rtol=1e-3)


def test_restarts_in_chunks_are_the_same_restarts(models, digits_test):
    images, _ = digits_test.batch(np.arange(6))
    purifier = pj.models.adp_purifier(models[0], num_restarts=6)
    whole, info = purifier(keys_for(6), images)
    chunked, chunk_info = purifier.replace(restarts_at_once=2)(keys_for(6), images)
    np.testing.assert_allclose(whole, chunked, atol=2e-5)
    assert info.step_sizes.shape == chunk_info.step_sizes.shape == (5, 6, 6)
    np.testing.assert_allclose(info.step_sizes, chunk_info.step_sizes, rtol=1e-3)


def test_one_compilation_per_shape(models, digits_test):
    calls = []
    score_fn = pj.models.score_fn(models[0])

    def counted(x):
        calls.append(x.shape)
        return score_fn(x)

    purifier = jax.jit(pur.ADP(counted, num_steps=10, num_restarts=2))
    images, _ = digits_test.batch(np.arange(8))
    purifier(keys_for(8), images)
    traced = len(calls)
    for seed in range(5):
        purifier(keys_for(8, seed), images)
    assert len(calls) == traced
    assert purifier._cache_size() == 1
    purifier(keys_for(4), images[:4])
    assert purifier._cache_size() == 2


@pytest.mark.ci
def test_memory_of_the_exact_gradient_is_flat_in_the_number_of_steps(models, digits_test):
    """Compiled temporary memory: 100 steps ≤ 1.5 × 10 steps + the images of 100 steps."""
    images, labels = digits_test.batch(np.arange(32))
    logits_fn = pj.models.logits_fn(models[1])

    def memory(steps):
        purifier = pj.models.adp_purifier(models[0], num_steps=steps, num_restarts=4)
        gradient = pj.attacks.ExactGradient(pj.Defense(purifier, logits_fn))
        compiled = jax.jit(gradient).lower(keys_for(32), images, labels).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = memory(10), memory(100)
    # The secant carries three images a step: the iterate, the last one and its score.
    stored = 3 * 100 * 4 * images.nbytes
    assert many <= 1.5 * few + stored, (few, many, stored)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "num_steps: got 0"),
        ({"num_restarts": 0}, "num_restarts: got 0"),
        ({"noise_scale": -0.1}, "noise_scale: got -0.1"),
        ({"stop_threshold": float("nan")}, "stop_threshold: got nan"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        pur.ADP(lambda x: x, **arguments)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.full((1, 4, 4, 1), 255.0, np.float32), "divide them by 255"),
        (np.full((1, 4, 4, 1), np.nan, np.float32), "16 pixels are NaN"),
        (np.full((1, 4, 4, 1), -0.1, np.float32), r"\[-0.1, -0.1\], expected \[0, 1\]"),
        (np.zeros((4, 4, 1), np.float32), "got rank 3"),
        (np.zeros((1, 4, 4, 1), np.uint8), "got dtype uint8"),
    ],
)
def test_bad_images_are_named(images, message):
    with pytest.raises(InputError, match=message):
        pur.ADP(lambda x: x)(keys_for(1), images)


@pytest.mark.parametrize(
    ("score_fn", "keys", "message"),
    [
        (lambda x: x[..., :1], keys_for(1), "equal_shape"),
        (lambda x: x, keys_for(2), "unexpected shape|shape"),
        (lambda x: x, jax.random.key(0), "unexpected shape|shape"),
    ],
)
def test_what_would_broadcast_is_refused(score_fn, keys, message):
    images = jnp.full((1, 4, 4, 3), 0.5)
    with pytest.raises(AssertionError, match=message):
        pur.ADP(score_fn, num_steps=1, num_restarts=1)(keys, images)
