"""Certificates against the closed form of a linear model, the interval by simulation, resuming."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import keys_for
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import purify_jax as pj
from purify_jax.checks import InputError
from purify_jax.evaluation import certification

WEIGHTS = jnp.asarray(np.random.default_rng(0).normal(size=16), jnp.float32)


def linear(keys, images):
    """Two classes, divided by the hyperplane w·(x − ½) = 0."""
    value = (images.reshape(images.shape[0], -1) - 0.5) @ WEIGHTS
    return jax.nn.log_softmax(jnp.stack([value, -value], -1) * 100)


def dataset(count):
    rng = np.random.default_rng(1)
    images = rng.uniform(0.4, 0.6, (count, 4, 4, 1)).astype(np.float32)
    labels = (((images.reshape(count, -1) - 0.5) @ np.asarray(WEIGHTS)) < 0).astype(np.int32)
    return pj.data.Dataset("linear", "test", images, labels, 2)


def test_linear_radius_is_the_distance_to_the_plane(tmp_path):
    data, sigma, n = dataset(30), 0.05, 20_000
    found = certification.certify(
        jax.random.key(0), linear, data, sigma=sigma, n0=100, n=n, alpha=0.001,
        samples_at_once=2000, execution=pj.Execution(workdir=tmp_path),
    )  # fmt: skip
    distance = np.abs((data.images.reshape(30, -1) - 0.5) @ np.asarray(WEIGHTS))
    distance = distance / np.linalg.norm(WEIGHTS)
    largest = sigma * stats.norm.ppf(0.001 ** (1 / n))  # all n samples agree
    certified = [r for r in found if r["prediction"] != certification.ABSTAIN]
    assert len(certified) >= 25
    for record in certified:
        true = distance[record["index"]]
        assert record["prediction"] == data.labels[record["index"]]
        assert record["radius"] <= true + 1e-6  # 30 certificates, each wrong with p ≤ 0.001
        # The bound loses about 3 standard deviations of p_A, as a radius at most:
        p = stats.norm.cdf(true / sigma)
        slack = 4 * np.sqrt(p * (1 - p) / n) / stats.norm.pdf(true / sigma) * sigma
        assert record["radius"] >= min(true - slack, largest) - 2e-3
    for record in found:
        if record["prediction"] == certification.ABSTAIN:
            # 100 selecting samples seldom err beyond a third of σ, where p_A is 0.63.
            assert distance[record["index"]] < 0.35 * sigma


@pytest.mark.ci
def test_counts_add_up_and_do_not_depend_on_chunks():
    images = jnp.asarray(dataset(3).images)
    count = lambda at_once, total: np.asarray(
        jax.jit(certification.ClassCounts(linear, 0.3, num_samples=total, samples_at_once=at_once))(
            keys_for(3), images, jnp.zeros(3, jnp.int32)
        )
    )
    whole = count(50, 50)
    assert (whole.sum(-1) == 50).all()
    for at_once in (7, 16, 1000):
        np.testing.assert_array_equal(count(at_once, 50), whole)
    # Samples 0-49 and 50-99 together are samples 0-99.
    second = jax.jit(certification.ClassCounts(linear, 0.3, num_samples=50, samples_at_once=50))(
        keys_for(3), images, jnp.full(3, 50)
    )
    np.testing.assert_array_equal(count(100, 100), whole + np.asarray(second))


def test_share_of_votes_is_the_gaussian_tail():
    images = jnp.full((1, 4, 4, 1), 0.5) + 0.1 * WEIGHTS.reshape(1, 4, 4, 1)
    sigma = 0.3
    counts = certification.ClassCounts(
        linear, sigma, num_samples=20_000, samples_at_once=2000, bounds=None
    )(keys_for(1), images, jnp.zeros(1, jnp.int32))
    expected = stats.norm.cdf(0.1 * float(jnp.linalg.norm(WEIGHTS)) / sigma)
    assert counts[0, 0] / 20_000 == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("share", [0.6, 0.9, 0.99])
def test_lower_bound_covers(share):
    draws = np.random.default_rng(2).binomial(200, share, 2000)
    bounds = {k: certification.lower_bound(k, 200, 0.05) for k in np.unique(draws)}
    covered = np.mean([bounds[k] <= share for k in draws])
    assert covered >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / 2000)


@given(st.integers(1, 200), st.integers(0, 200), st.floats(0.001, 0.5))
def test_lower_bound_is_the_beta_quantile(total, successes, alpha):
    successes = min(successes, total)
    expected = stats.beta.ppf(alpha, successes, total - successes + 1) if successes else 0.0
    assert certification.lower_bound(successes, total, alpha) == pytest.approx(expected, abs=1e-9)


def test_certificate_abstains_at_one_half():
    one = certification.certificate(np.array([60, 40]), np.array([500, 500]), 1.0, 0.001)
    assert one == (certification.ABSTAIN, 0.0)
    sure = certification.certificate(np.array([100, 0]), np.array([1000, 0]), 0.5, 0.001)
    assert sure.prediction == 0
    assert sure.radius == pytest.approx(0.5 * stats.norm.ppf(0.001 ** (1 / 1000)))


@pytest.mark.ci
def test_curve_never_rises_and_a_torn_file_is_continued(defense, digits_test, tmp_path):
    path = tmp_path / "records.jsonl"
    run = lambda: certification.certify(
        jax.random.key(0), defense, digits_test.take(6), sigma=0.2, n0=10, n=60,
        samples_at_once=20, execution=pj.Execution(batch_size=4, workdir=tmp_path),
    )  # fmt: skip
    found = run()
    curve = [i.value for i in certification.certified_accuracy(found, np.linspace(0, 1, 30))]
    assert all(a >= b for a, b in itertools.pairwise(curve))
    assert curve[0] > 0.5
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 70])
    assert run() == found
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 0.0}, "alpha: got 0.0, expected a number between 0 and 1"),
        ({"alpha": 1.0}, "alpha: got 1.0"),
        ({"n0": 101, "n": 100}, "n0: got 101 samples"),
        ({"n0": 0}, "n0: got 0"),
        ({"sigma": 0.0}, "sigma: got 0.0"),
    ],
)
def test_bad_input_gets_one_line(change, message):
    settings = {"sigma": 0.25, "n0": 10, "n": 100, "alpha": 0.01, **change}
    with pytest.raises(InputError, match="^[^\n]*$") as error:
        certification.certify(jax.random.key(0), linear, dataset(2), **settings)
    assert message in str(error.value)
