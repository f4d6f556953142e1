"""Worst of M draws: unbiased, exact in closed forms, intervals that cover."""

import functools
import itertools
from math import comb

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import purify_jax as pj
from purify_jax.checks import InputError
from purify_jax.evaluation import paired_difference
from purify_jax.evaluation import worst_of as w


def test_survival_is_the_share_of_subsets_that_are_all_right():
    rng = np.random.default_rng(0)
    correct = rng.random((40, 7)) < rng.random((40, 1))
    for m in range(1, 8):
        subsets = list(itertools.combinations(range(7), m))
        counted = np.mean([correct[:, list(s)].all(axis=1) for s in subsets], axis=0)
        np.testing.assert_allclose(w.survival(correct, m), counted, atol=1e-12)
        right = correct.sum(1)
        closed = [comb(int(k), m) / comb(7, m) for k in right]
        np.testing.assert_allclose(w.survival(correct, m), closed, atol=1e-12)


@pytest.mark.parametrize("p", [0.5, 0.9, 0.99])
def test_survival_is_unbiased_and_the_plain_power_is_not(p):
    """All outcomes of N = 10 draws, weighted by the binomial distribution: p^M without error."""
    correct = np.tril(np.ones((11, 10), bool), -1)  # k = 0, …, 10 right draws
    weights = stats.binom.pmf(np.arange(11), 10, p)
    for m in (1, 2, 5, 10):
        assert weights @ w.survival(correct, m) == pytest.approx(p**m, rel=1e-9)
    assert weights @ (np.arange(11) / 10) ** 5 > p**5 + 0.005


def test_mean_over_simulated_images_is_unbiased():
    rng = np.random.default_rng(1)
    p = rng.beta(6, 1, 40_000)  # E[p^m] = 6/(6 + m)
    correct = rng.random((40_000, 8)) < p[:, None]
    for m in (1, 3, 8):
        each = w.survival(correct, m)
        error = each.std() / np.sqrt(len(each))
        assert abs(each.mean() - 6 / (6 + m)) < 4 * error
        assert w.worst_of(correct, m).value == pytest.approx(each.mean())


@pytest.mark.parametrize(
    ("draw", "moment"),
    [
        (lambda rng, n: rng.choice([0.35, 0.9], n), lambda m: (0.35**m + 0.9**m) / 2),
        (lambda rng, n: rng.beta(2, 1, n), lambda m: 2 / (2 + m)),
    ],
    ids=["two kinds of images", "Beta(2, 1)"],
)
@pytest.mark.parametrize("m", [1, 3, 8])
def test_intervals_cover_the_truth(draw, moment, m, monkeypatch):
    """95% of the intervals of 150 images × 8 draws hold E[p^M], over images and draws."""
    monkeypatch.setattr(w, "wilson", functools.cache(w.wilson))  # 1500 times, of 150 counts
    rng = np.random.default_rng(m)
    runs, covered = 1500, 0
    for _ in range(runs):
        correct = rng.random((150, 8)) < draw(rng, 150)[:, None]
        found = w.worst_of(correct, m)
        covered += found.low <= moment(m) <= found.high
    # 1500 intervals: two thirds of a percent is a standard error.
    assert 0.93 <= covered / runs <= 0.97


def test_draws_of_one_image_are_not_independent_trials():
    """Images that are always right or always wrong: 100 draws of each say what one draw says."""
    correct = np.repeat(np.arange(50) < 30, 100).reshape(50, 100)
    assert w.average(correct) == pj.evaluation.wilson(30, 50)
    assert w.worst_of(correct) == pj.evaluation.wilson(30, 50)
    # Were they counted as 5000 trials, the interval would be ten times too short.
    naive = pj.evaluation.wilson(3000, 5000)
    found = w.average(correct)
    assert found.high - found.low > 8 * (naive.high - naive.low)


def test_average_and_worst_in_closed_form():
    correct = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
    found = w.average(correct)
    each = np.array([1, 0.75, 0.5, 0])
    low, high = stats.t.interval(0.95, 3, each.mean(), stats.sem(each))
    assert found.value == each.mean()
    assert (found.low, found.high) == (pytest.approx(max(low, 0)), pytest.approx(min(high, 1)))
    curve = w.worst_of_curve(correct)
    assert [curve[m].value for m in (1, 2, 3, 4)] == pytest.approx(
        [2.25 / 4, (1 + 1 / 2 + 1 / 6) / 4, (1 + 1 / 4) / 4, 1 / 4]
    )
    assert curve[4] == pj.evaluation.wilson(1, 4)
    assert w.worst_of_curve(correct, [2]) == {2: curve[2]}
    one = w.average(correct[1:2])
    assert (one.value, one.low, one.high, one.images) == (0.75, 0.0, 1.0, 1)


def _coin(keys, images):
    """Right (class 0) with probability = the image's brightness."""
    right = jax.vmap(lambda k, x: jax.random.bernoulli(k, x.mean()))(keys, images)
    return jnp.log(jnp.where(right[:, None], jnp.array([0.8, 0.2]), jnp.array([0.3, 0.7])))


def test_paired_difference_is_scipys_and_named_where_it_cannot_be():
    rng = np.random.default_rng(0)
    first, second = rng.uniform(size=(2, 40))
    found = paired_difference(first, second, 0.9)
    peer = stats.ttest_rel(first, second).confidence_interval(0.9)
    np.testing.assert_allclose(found[1:3], peer, rtol=1e-10)
    assert found.value == pytest.approx((first - second).mean())
    assert paired_difference([1.0, 0.5], [0.5, 0.0])[:3] == (0.5, 0.5, 0.5)
    for bad in ([0.1], [[0.1, 0.2]], [0.1, 0.2, 0.3], [0.1, float("nan")]):
        with pytest.raises(InputError, match="second: got"):
            paired_difference([0.0, 0.1], bad)


def test_correct_draws_of_a_known_random_defense():
    brightness = np.repeat([0.0, 0.3, 0.8, 1.0], 60)
    images = np.ones((240, 2, 2, 1), np.float32) * brightness[:, None, None, None].astype("f")
    labels = np.zeros(240, int)
    key = jax.random.key(0)
    correct = w.correct_draws(key, _coin, images, labels, 20, pj.Execution(batch_size=100))
    assert correct.shape == (240, 20)
    np.testing.assert_allclose(correct.reshape(4, -1).mean(1), [0, 0.3, 0.8, 1], atol=0.05)
    np.testing.assert_array_equal(
        correct, w.correct_draws(key, _coin, images, labels, 20, pj.Execution(batch_size=7))
    )
    assert not w.correct_draws(key, _coin, images[180:], labels[180:] + 1, 3).any()
    # Beside evaluate's draws with the same key, these are new ones.
    data = pj.data.Dataset("coin", "test", images, labels.astype(np.int32), 2)
    recorded = pj.evaluate(key, _coin, {}, data, draws=20)
    middle = slice(60, 180)
    same = np.array([r["correct_draws"] for r in recorded])[middle] == correct.sum(1)[middle]
    assert same.mean() < 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: w.worst_of(np.ones((3, 4), bool), 5), "worst_of: got 5, expected at most the 4"),
        (lambda: w.worst_of(np.ones((3, 4), bool), 0), "worst_of: got 0, expected a whole number"),
        (
            lambda: w.average(np.ones(3, bool)),
            r"correct: got shape \(3,\), expected \[images, draws\]",
        ),
        (lambda: w.average(np.ones((0, 3), bool)), r"correct: got shape \(0, 3\)"),
        (lambda: w.average(np.ones((3, 3))), "correct: got dtype float64, expected bool"),
        (
            lambda: w.correct_draws(
                jax.random.key(0), _coin, np.ones((2, 2, 2, 1), "f"), np.array([0, 2]), 1
            ),
            r"labels: values lie in \[0, 2\], expected \[0, 1\]",
        ),
        (
            lambda: w.correct_draws(jax.random.key(0), _coin, np.ones((2, 2, 2, 1), "f"), [0], 1),
            "labels: got 1 for 2 images, expected one each",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
