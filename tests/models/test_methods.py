"""Purifiers by name: every setting of every method changes its purifier, or is refused in one line."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purify_jax import models, networks, purifiers
from purify_jax.checks import InputError

NETWORK = networks.MLP(features=(4,))
VARIABLES = NETWORK.init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
TRAINING = {"scale": "per_variance", "sigma_min": 0.05}
#: Every setting, with a value that is no default.
OTHER = {
    "curvature": "secant",
    "rate": 0.2,
    "max_step": 0.5,
    "num_steps": 3,
    "noise_scale": 0.4,
    "num_restarts": 2,
    "stop_threshold": 0.5,
}


def model(**purification):
    metadata = {"training": TRAINING, "purification": purification}
    return models.Model("score", NETWORK, VARIABLES, (2, 2, 1), metadata)


def same(one, other):
    """Whether two purifiers have the same structure and the same numbers."""
    leaves, others = jax.tree.leaves(one), jax.tree.leaves(other)
    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    return all(np.array_equal(a, b) for a, b in zip(leaves, others, strict=True))


def test_the_table_has_every_setting():
    assert {"method", *OTHER} == set(models.PUBLISHED)
    assert len(models.METHODS) == 14


@pytest.mark.parametrize("method", models.METHODS)
@pytest.mark.parametrize("name", OTHER)
def test_a_setting_changes_the_purifier_or_is_refused(method, name):
    plain = models.model_purifier(model(), method=method)
    assert same(plain, models.model_purifier(model(method=method)))
    given = {"method": method, name: OTHER[name]}
    if name in models.METHODS[method].settings:
        changed = models.model_purifier(model(), **given)
        assert not same(plain, changed)
        assert same(changed, models.model_purifier(model(**given)))
        return
    refused = rf"{name}: got {re.escape(repr(OTHER[name]))}, but the method '{method}' does not use"
    for call in (
        lambda: models.model_purifier(model(), **given),
        lambda: models.model_purifier(model(method=method), **{name: OTHER[name]}),
        lambda: models.model_purifier(model(**given)),
        lambda: models.check_settings(given),
    ):
        with pytest.raises(InputError, match=refused) as error:
            call()
        assert "\n" not in str(error.value)


def test_constant_steps_have_no_largest_step():
    constant = models.adp_purifier(model(max_step=0.5), curvature="constant", rate=0.2)
    assert same(constant.step_rule, purifiers.Constant(0.2))
    with pytest.raises(InputError, match=r"max_step: got 0.5, .* 'adp' with constant steps"):
        models.adp_purifier(model(), curvature="constant", max_step=0.5)


def test_another_method_than_the_files_keeps_what_it_uses():
    stored = model(curvature="secant", rate=0.2, num_steps=7, noise_scale=0.4, num_restarts=3)
    settings = models.chosen_settings(stored, method="tweedie", num_restarts=None)
    assert settings == {"method": "tweedie", "noise_scale": 0.4, "num_restarts": 3}
    made = models.model_purifier(stored, method="ddim", num_steps=2)
    assert (made.num_steps, made.num_restarts) == (2, 3)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"method": "denoise"}, {"method": "denoise"}),
        ({"num_restarts": 4}, {"num_restarts": 1}),
        ({}, {"num_restarts": 1}),
    ],
)
def test_one_restart_where_there_are_restarts(given, expected):
    assert models.with_one_restart(given) == expected
