"""Norm balls: closed forms, and attack outputs in thousands of random cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import keys_for
from hypothesis import given, settings
from hypothesis import strategies as st

from purify_jax import attacks
from purify_jax.attacks import norms
from purify_jax.checks import InputError

BALLS = [norms.linf, norms.l2, norms.l1]
ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}


def _random(seed, scale=1.0):
    return scale * np.random.default_rng(seed).normal(size=(32, 3, 3, 2)).astype(np.float32)


@pytest.mark.parametrize("ball", BALLS, ids=lambda b: b.name)
def test_sizes_against_numpy(ball):
    x = _random(0)
    expected = np.linalg.norm(x.reshape(32, -1), ord=ORDERS[ball.name], axis=1)
    np.testing.assert_allclose(ball.size(jnp.asarray(x)), expected, rtol=1e-5)


@pytest.mark.parametrize("ball", BALLS, ids=lambda b: b.name)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), epsilon=st.floats(0, 20), scale=st.floats(1e-3, 10))
def test_projection(ball, seed, epsilon, scale):
    """Inside the ball; unchanged if inside already; no point of the ball is nearer (Euclidean)."""
    x = jnp.asarray(_random(seed, scale))
    projected = ball.project(x, epsilon)
    assert (ball.size(projected) <= epsilon * (1 + 1e-5) + 1e-6).all()
    inside = ball.size(x) <= epsilon * (1 - 1e-5)
    np.testing.assert_allclose(projected[inside], x[inside], rtol=1e-5, atol=1e-6)
    distance = norms.l2.size(x - projected)
    others = ball.random(keys_for(32, seed), x, epsilon)
    assert (ball.size(others) <= epsilon * (1 + 1e-5) + 1e-6).all()
    assert (distance <= norms.l2.size(x - others) * (1 + 1e-4) + 1e-4).all()


@pytest.mark.parametrize("ball", BALLS, ids=lambda b: b.name)
def test_steepest_direction_attains_the_dual_norm(ball):
    g = jnp.asarray(_random(3))
    direction = ball.steepest(g)
    np.testing.assert_allclose(ball.size(direction), 1, rtol=1e-5)
    dual = {"linf": norms.l1, "l2": norms.l2, "l1": norms.linf}[ball.name]
    slope = jnp.sum((g * direction).reshape(32, -1), axis=1)
    np.testing.assert_allclose(slope, dual.size(g), rtol=1e-5)


def test_random_points_of_the_l2_ball_have_the_right_radius():
    """Uniform in a d-ball: E r = ε d/(d + 1)."""
    like = jnp.zeros((4000, 2, 2, 1))
    radius = norms.l2.size(norms.l2.random(keys_for(4000), like, 2.0))
    np.testing.assert_allclose(radius.mean(), 2 * 4 / 5, rtol=0.02)


@pytest.fixture(scope="module")
def attack_table():
    """Every attack on a small linear classifier: name → (norm, ε → attack)."""
    weights = jax.random.normal(jax.random.key(0), (18, 4))
    logits_fn = lambda x: 5 * (x.reshape(x.shape[0], -1) - 0.5) @ weights
    from purify_jax.defense import undefended

    model = undefended(logits_fn)
    gradient = attacks.ExactGradient(model)
    table = {}
    for ball in BALLS:
        make = lambda e, b=ball: attacks.PGD(
            gradient, norm=b, epsilon=e, step_size=0.4 * e, num_steps=5
        )
        table[f"pgd {ball.name}"] = (ball, make)
    for ball in BALLS[:2]:
        table[f"apgd {ball.name}"] = (
            ball,
            lambda e, b=ball: attacks.APGD(gradient, norm=b, epsilon=e, num_steps=5, predict=model),
        )
        table[f"apgd-t {ball.name}"] = (
            ball,
            lambda e, b=ball: attacks.TargetedAPGD(model, norm=b, epsilon=e, num_steps=4),
        )
        table[f"square {ball.name}"] = (
            ball,
            lambda e, b=ball: attacks.Square(model, norm=b, epsilon=e, num_queries=10),
        )
    # ε as an argument of the compiled attack: thousands of cases, one compilation each.
    return {
        name: (ball, jax.jit(lambda e, k, x, y, make=make: make(e)(k, x, y)))
        for name, (ball, make) in table.items()
    }


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), epsilon=st.floats(0, 3), saturated=st.booleans())
def test_attacks_stay_inside_ball_and_bounds(attack_table, seed, epsilon, saturated):
    """32 images × 30 examples × 9 attacks: 8640 adversarial images."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(size=(32, 3, 3, 2)).astype(np.float32)
    images = np.round(images) if saturated else images
    labels = rng.integers(0, 4, 32).astype(np.int32)
    for name, (ball, attack) in attack_table.items():
        adversarial = np.asarray(attack(epsilon, keys_for(32, seed), images, labels))
        assert np.isfinite(adversarial).all(), name
        assert adversarial.min() >= 0, name
        assert adversarial.max() <= 1, name
        size = np.asarray(ball.size(jnp.asarray(adversarial - images)))
        assert size.max() <= epsilon * (1 + 1e-5) + 1e-5, (name, size.max(), epsilon)


def test_bad_arguments_are_named():
    gradient = attacks.ExactGradient(lambda keys, x: x.reshape(x.shape[0], -1))
    for arguments, message in (
        ({"epsilon": -0.1}, "epsilon: got -0.1, expected a finite number >= 0"),
        ({"epsilon": float("nan")}, "epsilon: got nan"),
        ({"num_steps": 0}, "num_steps: got 0, expected a whole number >= 1"),
        ({"norm": "l7"}, "norm: got 'l7'"),
    ):
        given = {"epsilon": 0.1, "step_size": 0.1, "num_steps": 3, **arguments}
        with pytest.raises(InputError, match=message):
            attacks.PGD(gradient, **given)
