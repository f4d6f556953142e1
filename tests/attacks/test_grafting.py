"""Gradient grafting and its weights, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import keys_for

from purify_jax import attacks, costs, losses, purifiers
from purify_jax.attacks.grafting import vulnerability
from purify_jax.checks import InputError
from purify_jax.defense import Defense
from purify_jax.pytrees import jit

IMAGES = np.linspace(0.4, 0.6, 3 * 4).reshape(3, 2, 2, 1).astype(np.float32)
LABELS = np.zeros(3, np.int32)


def _noise_alone(restarts=1, sigma=0.02):
    """A purifier that only adds noise: its Jacobian is the identity."""
    return purifiers.ADP(
        lambda x: jnp.zeros_like(x), purifiers.Constant(0.1), num_steps=1,
        noise_scale=sigma, num_restarts=restarts,
    )  # fmt: skip


def _square_of_norm(images):
    """Logits of which the margin of label 0 is ½‖x‖²; its gradient is x."""
    other = 0.5 * jnp.sum(images**2, axis=(1, 2, 3))
    return jnp.stack([jnp.zeros_like(other), other], axis=-1)


def _curved(restarts=1):
    """A defense whose Jacobian depends on the noise: a pull towards 0.5 that grows with the distance."""
    purifier = purifiers.ADP(
        lambda x: 0.3 * (0.5 - x) + 4 * (0.5 - x) ** 3, purifiers.Constant(0.5), num_steps=2,
        noise_scale=0.05, num_restarts=restarts,
    )  # fmt: skip
    weights = jax.random.normal(jax.random.key(3), (4, 3))
    return Defense(purifier, lambda x: jnp.sin(3 * x.reshape(len(x), -1)) @ weights)


def _fold(keys, index):
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, index)


@pytest.mark.ci
def test_grafting_is_exact_where_the_jacobian_does_not_depend_on_the_draw():
    defense = Defense(_noise_alone(restarts=3), _square_of_norm)
    found, loss = jit(attacks.Grafted(defense, num_samples=5))(keys_for(3), IMAGES, LABELS)
    mean = attacks.EOT(attacks.ExactGradient(defense, losses.margin), num_samples=5)
    expected, expected_loss = jit(mean)(keys_for(3), IMAGES, LABELS)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(loss, expected_loss, atol=1e-6)


@pytest.mark.ci
def test_grafting_pulls_back_through_one_draw():
    """With one draw and one restart it is the exact gradient; with more it costs one backward pass."""
    defense = _curved()
    found, _ = jit(attacks.Grafted(defense, num_samples=1))(keys_for(3), IMAGES, LABELS)
    expected, _ = jit(attacks.ExactGradient(defense, losses.margin))(
        _fold(keys_for(3), 0), IMAGES, LABELS
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    four, _ = jit(attacks.Grafted(defense, num_samples=4))(keys_for(3), IMAGES, LABELS)
    mean, _ = jit(attacks.EOT(attacks.ExactGradient(defense, losses.margin), num_samples=4))(
        keys_for(3), IMAGES, LABELS
    )
    apart = float(jnp.abs(four - mean).max() / jnp.abs(mean).max())
    assert 1e-3 < apart < 0.5  # the Jacobians differ, a little
    for step in (None, 0.05):
        attack = lambda d, step=step: attacks.PGD(
            attacks.Grafted(d, num_samples=6, step=step, samples_at_once=3),
            epsilon=0.1, num_steps=1, best_iterate=False,
        )  # fmt: skip
        assert costs.count(attack, _curved(restarts=2), jnp.asarray(IMAGES)) == (7, 1, 12, 12)


def _two_kinds():
    """Four draws: three lie near the boundary along u, one is out of reach and pulls back, hard."""
    u = np.zeros((1, 2, 2, 1), np.float32)
    u[0, 0, 0, 0] = 1
    grads = jnp.asarray(np.stack([u, -30 * u, u, u]))
    return jnp.array([[-0.1], [-20.0], [-0.1], [0.3]]), grads, u


@pytest.mark.ci
def test_weights_leave_out_the_draws_that_cannot_be_won():
    loss, grads, u = _two_kinds()
    weights, best = vulnerability(loss, grads, 0.5, rounds=2)
    assert best.tolist() != [1]
    # By hand: r points along u, so L + ⟨step, g⟩ is 0.4, −35, 0.4 and 0.8.
    np.testing.assert_allclose(
        weights[:, 0], 1 / (1 + np.exp(-np.array([0.4, -35, 0.4, 0.8]))), rtol=1e-4, atol=1e-12
    )
    assert float(jnp.mean(grads, axis=0)[0, 0, 0, 0]) < 0  # where the plain mean goes


def test_bad_input_is_named():
    defense = Defense(_noise_alone(), _square_of_norm)
    with pytest.raises(InputError, match="num_samples: got 0"):
        attacks.Grafted(defense, num_samples=0)
    with pytest.raises(InputError, match="step: got -1"):
        attacks.Grafted(defense, num_samples=4, step=-1)
    with pytest.raises(InputError, match="rounds: got 0"):
        vulnerability(*_two_kinds()[:2], 0.1, rounds=0)
