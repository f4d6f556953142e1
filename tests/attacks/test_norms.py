"""Norm balls: closed forms, and attack outputs in thousands of random cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from conftest import keys_for
from hypothesis import given, settings
from hypothesis import strategies as st

from purify_jax import attacks, losses
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
    x, size = _random(seed, scale), jax.jit(ball.size)
    projected = np.asarray(jax.jit(ball.project)(x, epsilon, -jnp.inf, jnp.inf))
    assert (size(projected) <= epsilon * (1 + 1e-5) + 1e-6).all()
    inside = np.asarray(size(x) <= epsilon * (1 - 1e-5))
    np.testing.assert_allclose(projected[inside], x[inside], rtol=1e-5, atol=1e-6)
    others = np.asarray(jax.jit(ball.random)(keys_for(32, seed), x, epsilon))
    assert (size(others) <= epsilon * (1 + 1e-5) + 1e-6).all()
    distance = jax.jit(norms.l2.size)
    assert (distance(x - projected) <= distance(x - others) * (1 + 1e-4) + 1e-4).all()


@pytest.mark.parametrize("ball", BALLS, ids=lambda b: b.name)
def test_steepest_direction_attains_the_dual_norm(ball):
    g = jnp.asarray(_random(3))
    direction = ball.steepest(g)
    np.testing.assert_allclose(ball.size(direction), 1, rtol=1e-5)
    dual = {"linf": norms.l1, "l2": norms.l2, "l1": norms.linf}[ball.name]
    slope = jnp.sum((g * direction).reshape(32, -1), axis=1)
    np.testing.assert_allclose(slope, dual.size(g), rtol=1e-5)


def _knapsack(values, room, budget):
    """max Σ|vᵢ|·aᵢ over 0 ≤ aᵢ ≤ roomᵢ, Σaᵢ ≤ budget, in float64: the largest |vᵢ| first."""
    order = np.argsort(-np.abs(values))
    spent = np.minimum(np.cumsum(np.float64(room)[order]), budget)
    return float(np.sum(np.diff(spent, prepend=0.0) * np.abs(np.float64(values))[order]))


def _room(direction, images):
    """How far each pixel can move along a direction's sign."""
    return np.where(direction > 0, 1 - np.float64(images), np.float64(images))


LEVELS = st.sampled_from([0.0, 0.0, 0.1, 0.25, 0.5, 1.0, 1.0])  # ties and saturated pixels
PIXELS = st.lists(st.one_of(LEVELS, st.floats(0, 1, width=32)), min_size=6, max_size=6)
VALUES = st.lists(
    st.one_of(LEVELS, st.floats(-3, 3, width=32, allow_subnormal=False)), min_size=6, max_size=6
)


@settings(max_examples=60, deadline=None)
@given(pixels=PIXELS, moved=VALUES, epsilon=st.floats(0, 6))
def test_l1_projects_onto_ball_and_bounds_as_one_set(pixels, moved, epsilon):
    """z is the nearest point to y exactly if no point w of the set has ⟨y − z, w⟩ > ⟨y − z, z⟩.

    Over w the maximum is a fractional knapsack.
    """
    image, y = np.float32(pixels), np.float32(moved)
    z = _into(image[None], (image + y)[None], epsilon)[0] - image
    assert np.abs(z).sum() <= epsilon * (1 + 1e-6) + 1e-6
    assert (image + z).min() >= 0
    assert (image + z).max() <= 1
    across = (image + y) - image - z
    attained = float(np.sum(np.float64(across) * z))
    assert attained >= _knapsack(across, _room(across, image), epsilon) - 1e-4


_into = jax.jit(lambda x, y, epsilon: norms.project_into(norms.l1, x, y, epsilon))


@pytest.mark.parametrize("seed", range(6))
def test_l1_projection_against_a_numerical_solver(seed):
    """Minimise ‖a − b − y‖² over a, b ≥ 0 with Σ(a + b) ≤ ε, in the bounds (SLSQP)."""
    rng = np.random.default_rng(seed)
    image, y, epsilon = rng.uniform(size=5), rng.normal(size=5), 0.3 * (seed + 1)
    solved = scipy.optimize.minimize(
        lambda ab: np.sum((ab[:5] - ab[5:] - y) ** 2),
        np.zeros(10),
        bounds=[(0, high) for high in (*(1 - image), *image)],
        constraints={"type": "ineq", "fun": lambda ab: epsilon - ab.sum()},
        options={"maxiter": 500, "ftol": 1e-12},
    )
    found = _into(np.float32(image)[None], np.float32(image + y)[None], epsilon)[0] - image
    np.testing.assert_allclose(found, solved.x[:5] - solved.x[5:], atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(pixels=PIXELS, gradient=VALUES, size=st.floats(0, 6))
def test_an_l1_step_is_the_steepest_that_the_bounds_allow(pixels, gradient, size):
    image, gradient = np.float32(pixels), np.float32(gradient)
    change = np.float64(_step(image[None], gradient[None], size)[0] - image)
    assert np.abs(change).sum() <= size * (1 + 1e-6) + 1e-6
    assert (image + change).min() >= -1e-6
    assert (image + change).max() <= 1 + 1e-6
    best = _knapsack(gradient, _room(gradient, image), size)
    np.testing.assert_allclose(change @ gradient, best, rtol=1e-5, atol=1e-5)


_step = jax.jit(lambda x, gradient, size: norms.climb(norms.l1, x, gradient, size))


@pytest.fixture(scope="module")
def linear():
    """A linear margin w·x on half-saturated images: (model, w, images, optimum per image at ε = 4)."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(8, 8, 1)).astype(np.float32)
    images = rng.uniform(size=(16, 8, 8, 1)).astype(np.float32)
    images[:8] = np.round(images[:8])
    model = lambda keys, x: jnp.stack([jnp.zeros(len(x)), jnp.sum(x * weights, (1, 2, 3))], -1)
    room = _room(weights, images).reshape(16, -1)
    best = [_knapsack(weights.ravel(), r, 4.0) for r in room]
    return model, weights, images, np.array(best)


@pytest.mark.parametrize(
    ("make", "share"),
    [(attacks.PGD, 0.97), (attacks.MomentumPGD, 0.995), (attacks.APGD, 0.99)],
    ids=["pgd", "momentum", "apgd"],
)
def test_l1_attacks_reach_the_optimum_of_a_linear_model(linear, make, share):
    """The largest weights first, each pixel to its bound, until ε is spent."""
    model, weights, images, best = linear
    gradient = attacks.ExactGradient(model, losses.margin)
    attack = make(gradient, norm="l1", epsilon=4.0, num_steps=100)
    moved = np.asarray(jax.jit(attack)(keys_for(16), images, np.zeros(16, np.int32))) - images
    gain = np.sum(np.float64(moved) * weights, axis=(1, 2, 3))
    assert (gain <= best * (1 + 1e-5)).all()
    assert (gain >= best * share).all(), gain / best


@pytest.mark.ci
def test_targeted_l1_leaves_what_no_attack_can_turn(digits_test):
    """Ten linear classes: an image withstands ε exactly if no other class wins after its best perturbation.

    For class j that perturbation is the fractional knapsack of w_j − w_y.
    """
    images, labels = digits_test.batch(np.arange(40))
    x, epsilon = np.float64(images).reshape(40, -1), 1.0
    known, of = digits_test.batch(np.arange(100, 360))
    means = np.stack([np.float64(known)[of == c].mean(0).ravel() for c in range(10)])
    weights, biases = means.T, -np.sum(means**2, axis=1) / 2  # the nearest mean
    model = lambda keys, z: z.reshape(len(z), -1) @ jnp.float32(weights) + jnp.float32(biases)

    def withstands(image, label):
        others = [c for c in range(10) if c != label]
        across = weights[:, others].T - weights[:, label]
        best = [_knapsack(v, _room(v, image), epsilon) for v in across]
        return np.all(across @ image + biases[others] - biases[label] + best < 0)

    expected = np.array([withstands(*pair) for pair in zip(x, labels, strict=True)])
    attack = attacks.TargetedAPGD(model, norm="l1", epsilon=epsilon, num_steps=40)
    adversarial = jax.jit(attack)(keys_for(40), images, labels)
    found = np.asarray(model(None, adversarial).argmax(-1) == labels)
    assert 0.2 < expected.mean() < 0.8
    assert found[expected].all()
    assert np.mean(found) <= np.mean(expected) + 1 / 40


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
    for ball in BALLS:
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
    """32 images × 30 examples × 12 attacks: 11,520 adversarial images."""
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
