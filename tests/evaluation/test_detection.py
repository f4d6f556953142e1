"""Curves against scikit-learn, intervals by simulation, the rule and the evasion by closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import keys_for
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

import purify_jax as pj
from purify_jax import arrays
from purify_jax.checks import InputError
from purify_jax.evaluation import detection

RNG = np.random.default_rng(0)


def test_auroc_is_the_mann_whitney_statistic():
    clean, attacked = RNG.normal(size=40).round(1), RNG.normal(0.8, 1, 30).round(1)
    found = detection.auroc(clean, attacked)
    u = stats.mannwhitneyu(attacked, clean).statistic
    assert found.value == pytest.approx(u / (40 * 30))
    assert found.low < found.value < found.high
    assert found.images == 70
    false_positive, true_positive = detection.roc(clean, attacked)
    assert metrics.auc(false_positive, true_positive) == pytest.approx(found.value)


def test_auroc_interval_covers_the_truth():
    # X ~ N(0, 1), Y ~ N(1.5, 1): P(Y > X) = Φ(1.5/√2).
    truth = stats.norm.cdf(1.5 / np.sqrt(2))
    hits = [
        (i := detection.auroc(RNG.normal(size=60), RNG.normal(1.5, 1, 60))).low <= truth <= i.high
        for _ in range(400)
    ]
    assert 0.92 <= np.mean(hits) <= 0.985


def test_auroc_of_separated_sets_is_one_with_an_open_interval():
    found = detection.auroc(np.arange(10.0), np.arange(10.0) + 100)
    assert found.value == 1.0
    assert found.low < 0.8
    assert found.high == 1.0


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=60),
    st.floats(0.01, 0.99),
)
def test_threshold_keeps_its_promise_on_the_calibration_set(values, rate):
    threshold = detection.fit_threshold(values, rate)
    above = np.mean(np.array(values) > threshold)
    assert above <= rate + 1e-9
    lower = [v for v in values if v < threshold]
    if lower:  # the next smaller threshold would break it, or flags the same images
        assert np.mean(np.array(values) > max(lower)) > rate - 1e-9


def test_score_norm_and_energy_drop_on_a_gaussian():
    mean, precision = jnp.full((2, 2, 1), 0.5), 3.0 * jnp.eye(4)
    energy_fn = pj.energy.gaussian_energy(mean, precision)
    score_fn = pj.energy.score_from_energy(energy_fn)
    images = jnp.asarray(RNG.random((5, 2, 2, 1)), jnp.float32)
    norms = jax.jit(detection.score_norm(score_fn))(keys_for(5), images)
    np.testing.assert_allclose(norms, 3 * arrays.l2_norm(images - mean), rtol=1e-5)
    halved = pj.purifiers.Filter(lambda x: mean + 0.5 * (x - mean))
    for energy_or_none in (energy_fn, None):  # the trapezoid rule is exact for a quadratic
        drop = jax.jit(detection.EnergyDrop(score_fn, halved, energy_or_none))(keys_for(5), images)
        np.testing.assert_allclose(drop, 0.75 * energy_fn(images), rtol=1e-4)


@pytest.mark.ci
def test_the_rule_gives_each_image_its_noise(defense):
    images = jnp.asarray(RNG.random((6, 8, 8, 1)), jnp.float32)
    norm = detection.score_norm(defense.purifier.score_fn)
    values = np.asarray(jax.jit(norm)(keys_for(6), images))
    threshold = float(np.median(values))
    purifier = defense.purifier.replace(noise_scale=0.2)
    rule = detection.deciding_purifier(purifier, norm, threshold, 0.1)
    noised = np.asarray(jax.jit(rule.noised)(keys_for(6), images))
    for scale, chosen in ((0.2, values > threshold), (0.02, values <= threshold)):
        expected = jax.jit(purifier.replace(noise_scale=scale).noised)(keys_for(6), images)
        np.testing.assert_allclose(noised[chosen], np.asarray(expected)[chosen], atol=1e-6)
    gradient, _ = jax.jit(pj.attacks.ExactGradient(defense.replace(purifier=rule)))(
        keys_for(6), images, jnp.zeros(6, jnp.int32)
    )
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


def test_evading_goes_down_when_detected_and_sideways_when_not():
    score_fn = lambda x: x - 0.5  # its norm is the distance to the centre
    norm = detection.score_norm(score_fn)
    weights = jnp.asarray(RNG.normal(size=(4, 2)), jnp.float32)
    logits = lambda keys, x: jax.nn.log_softmax(x.reshape(-1, 4) @ weights)
    gradient = jax.jit(detection.Evading(logits, norm, threshold=0.3))
    far = jnp.full((1, 2, 2, 1), 0.9)
    near = jnp.asarray([0.6, 0.5, 0.45, 0.52]).reshape(1, 2, 2, 1)
    labels = jnp.zeros(1, jnp.int32)
    down, loss_far = gradient(keys_for(1), far, labels)
    np.testing.assert_allclose(down.ravel(), [-0.5] * 4, atol=1e-5)
    sideways, loss_near = gradient(keys_for(1), near, labels)
    radial = (near - 0.5).ravel()
    assert abs(float(sideways.ravel() @ radial)) < 1e-5
    assert float(sideways.ravel() @ (weights[:, 1] - weights[:, 0])) > 0
    assert loss_far[0] < loss_near[0]


def test_evasion_is_found_where_it_exists(models, digits_test):
    score_model, classifier = models
    bare = pj.undefended(pj.models.logits_fn(classifier))
    norm = detection.score_norm(pj.models.score_fn(score_model))
    images, labels = digits_test.batch(np.arange(40))
    clean = jax.jit(norm)(keys_for(40), images)
    threshold = detection.fit_threshold(clean, 0.05)
    judge = jax.jit(detection.Judge(bare, norm, threshold))
    evaded = {}
    for name, gradient in {
        "plain": pj.attacks.ExactGradient(bare),
        "evading": detection.Evading(bare, norm, threshold),
    }.items():
        attack = pj.attacks.PGD(gradient, epsilon=0.15, step_size=0.015, num_steps=25)
        found = judge(keys_for(40), jax.jit(attack)(keys_for(40), images, labels), labels)
        assert (found.evaded == (found.misclassified & ~found.detected)).all()
        evaded[name] = float(found.evaded.mean())
    assert evaded["evading"] > evaded["plain"] + 0.2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: detection.fit_threshold([], 0.05), "calibration set: got no images"),
        (lambda p: detection.fit_threshold([1.0, np.nan], 0.05), "1 of 2 statistics"),
        (lambda p: detection.fit_threshold([1.0], 0.0), "false_positive_rate: got 0.0"),
        (lambda p: detection.auroc([], [1.0]), "clean statistics: got no images"),
        (lambda p: detection.deciding_purifier(p, None, 1.0, 1.5), "fraction: got 1.5"),
        (lambda p: detection.Evading(None, None, 0.0), "threshold: got 0.0"),
    ],
)
def test_bad_input_gets_one_line(call, message, defense):
    with pytest.raises(InputError, match="^[^\n]*$") as error:
        call(defense.purifier)
    assert message in str(error.value)
