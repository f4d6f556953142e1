"""Accuracy over attack steps × EOT samples, where it is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purify_jax as pj
from purify_jax.attacks.suites import Options
from purify_jax.checks import InputError
from purify_jax.evaluation import red_flags, sweeps
from purify_jax.evaluation.suite_runs import SuiteResult
from purify_jax.reporting import robustness

EPSILON = 0.1


def _brighter_than_half(images):
    """Class 1 for a mean above 0.5, else class 0."""
    mean = images.mean((1, 2, 3)) - 0.5
    return 10 * jnp.stack([-mean, mean], 1)


def _hidden(share):
    """A purifier that changes nothing, and lets a random share of the pixels have a gradient."""

    def purifier(keys, images):
        one = lambda key: jax.random.bernoulli(key, share, images.shape[1:])
        seen = jax.vmap(one)(keys)
        shown = jnp.where(seen, images, jax.lax.stop_gradient(images))
        return shown[None], ()

    return purifier


@pytest.fixture
def brighter():
    """Sixteen images of class 1: 0.03 above the threshold, so that ε = 0.1 turns each."""
    return pj.data.Dataset(
        "grey", "test", np.full((16, 16, 16, 1), 0.53, np.float32), np.ones(16, np.int32), 2
    )


def _grid(defense, dataset, steps, samples):
    options = Options(epsilon=EPSILON)
    return sweeps.grid(jax.random.key(0), defense, dataset, options, steps, samples)


@pytest.mark.ci
def test_steps_and_samples_both_find_the_gradient(brighter):
    """A tenth of the pixels moves in one step of one sample, to -ε: a mean of 0.03 - 0.01 stays above.
    All of them move where 64 samples are averaged, or in 200 steps: 0.03 - 0.1 is below."""
    defense = pj.Defense(_hidden(0.1), _brighter_than_half)
    found = _grid(defense, brighter, (1, 200), (1, 64))
    values = [[accuracy.value for accuracy in row] for row in found.accuracies]
    assert values == [[1.0, 0.0], [0.0, 0.0]]
    assert {name: change.value for name, change in found.changes.items()} == {
        "steps": 0.0,
        "eot": 0.0,
    }
    assert red_flags.red_flags(curve=found) == []
    # Ended too early it says so.
    early = _grid(defense, brighter, (1,), (1, 64))
    assert {name: change.value for name, change in early.changes.items()} == {"eot": -1.0}
    (flag,) = red_flags.red_flags(curve=early)
    assert flag.cause == "more eot still lower the accuracy much"


def test_a_defense_that_draws_nothing_has_one_sample(brighter):
    found = _grid(pj.undefended(_brighter_than_half), brighter, (1, 2), (1, 4))
    assert found.samples == [1]
    assert [[accuracy.value for accuracy in row] for row in found.accuracies] == [[0.0], [0.0]]
    assert list(found.changes) == ["steps"]


@pytest.mark.parametrize(("steps", "samples"), [((), (1,)), ((4, 2), (1,)), ((1,), (0, 4))])
def test_numbers_that_do_not_increase_are_refused(brighter, steps, samples):
    defense = pj.Defense(_hidden(0.1), _brighter_than_half)
    with pytest.raises(InputError, match="expected increasing numbers from 1"):
        _grid(defense, brighter, steps, samples)


def test_the_page_has_every_number_and_the_last_changes(brighter, tmp_path):
    share = pj.evaluation.wilson
    rows = [[share(9, 10), share(7, 10)], [share(6, 10), share(5, 10)]]
    changes = {"eot": pj.evaluation.Difference(-0.1, -0.3, 0.1, 10)}
    grid = sweeps.Grid([10, 40], [1, 4], rows, changes)
    records = pj.evaluate(jax.random.key(0), pj.undefended(_brighter_than_half), {}, brighter)
    result = SuiteResult("defended", None, {"defended": records}, None, {}, [], grid)
    page = robustness.write_robustness(tmp_path, result, "A summary.", {"suite": "clean"}, 0)
    text = page.read_text()
    for cell in (str(interval) for row in rows for interval in row):
        assert cell in text
    assert "that of eot by -0.100 [-0.300, +0.100]" in text
    assert "EOT 4" in text
