"""An attack is not weaker than the same attack, of another norm, in a ball inside its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import keys_for

import purify_jax as pj
from purify_jax import attacks

# On the 64 pixels of a digit each ball lies inside the one before it, by Cauchy-Schwarz or by the norms' order.
CHAINS = [
    (("l1", 4.0), ("l2", 0.5), ("linf", 1 / 16)),
    (("l1", 8.0), ("l2", 1.0), ("linf", 1 / 8)),
    (("linf", 0.4), ("l2", 0.4), ("l1", 0.4)),
]
IMAGES = 50
LOOPS = ["pgd", "momentum", "apgd", "apgd-t", "square"]


def _loops(defense, gradient, steps, **more):
    """Name → (norm, ε) → attack."""
    predict = more.get("predict")
    return {
        "pgd": lambda norm, e: attacks.PGD(gradient(norm), norm=norm, epsilon=e, num_steps=steps),
        "momentum": lambda norm, e: attacks.MomentumPGD(
            gradient(norm), norm=norm, epsilon=e, num_steps=steps
        ),
        "apgd": lambda norm, e: attacks.APGD(
            gradient(norm), norm=norm, epsilon=e, num_steps=steps, predict=predict
        ),
        "apgd-t": lambda norm, e: attacks.TargetedAPGD(
            defense, norm=norm, epsilon=e, num_steps=steps, num_targets=3,
            deterministic=predict is not None,
        ),
        "square": lambda norm, e: attacks.Square(
            defense, norm=norm, epsilon=e, num_queries=10 * steps, rescale_schedule=True
        ),
    }  # fmt: skip


def _follow(gradient, steps):
    return lambda norm, e: attacks.PGD(gradient(norm), norm=norm, epsilon=e, num_steps=steps)


@pytest.fixture(scope="module")
def bare(models):
    return pj.undefended(pj.models.logits_fn(models[1]))


@pytest.fixture(scope="module")
def batch():
    images, labels = pj.load_split("digits", "test").batch(np.arange(IMAGES))
    return jnp.asarray(images), jnp.asarray(labels)


def _check(make, defense, images, labels, draws=1, chains=CHAINS):
    """Along every chain, accuracy falls by no more than 0.02 from a ball to one inside it."""
    programs = {
        norm: jax.jit(lambda e, *given, norm=norm: make(norm, e)(*given))
        for norm in ("l1", "l2", "linf")
    }
    right = jax.jit(lambda keys, x: jnp.argmax(defense(keys, x), axis=-1) == labels)
    keys = keys_for(IMAGES)

    def accuracy(norm, epsilon):
        adversarial = programs[norm](epsilon, keys, images, labels)
        fresh = [keys_for(IMAGES, 100 + draw) for draw in range(draws)]
        return float(np.mean([right(k, adversarial) for k in fresh]))

    for chain in chains:
        found = [accuracy(*ball) for ball in chain]
        for i, outer in enumerate(found):
            assert outer <= min(found[i:]) + 0.02, (chain, found)


@pytest.mark.ci
@pytest.mark.parametrize(
    "name", ["pgd", *(pytest.param(n, marks=pytest.mark.slow) for n in LOOPS if n != "pgd")]
)
def test_loops_on_a_bare_classifier(bare, batch, name):
    gradient = attacks.ExactGradient(bare)
    make = _loops(bare, lambda norm: gradient, 40, predict=bare)[name]
    _check(make, bare, *batch)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOOPS)
def test_loops_on_a_random_defense(defense, batch, name):
    gradient = attacks.EOT(attacks.ExactGradient(defense), num_samples=2)
    _check(_loops(defense, lambda norm: gradient, 40)[name], defense, *batch, draws=10)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["bpda", "blind", "joint (score)", "joint (full)", "spsa", "grafted"]
)
def test_gradients_on_a_random_defense(defense, batch, name):
    score_fn = pj.purifiers.score_of(defense.purifier)
    gradients = {
        "bpda": lambda norm: attacks.EOT(attacks.bpda(defense), num_samples=4),
        "blind": lambda norm: attacks.blind(defense.logits_fn),
        "joint (score)": lambda norm: attacks.JointScore(score_fn, defense.logits_fn, norm=norm),
        "joint (full)": lambda norm: attacks.EOT(
            attacks.JointFull(defense, norm=norm), num_samples=4
        ),
        "spsa": lambda norm: attacks.SPSA(defense, num_queries=128),
        "grafted": lambda norm: attacks.Grafted(defense, num_samples=4, step=0.1, norm=norm),
    }
    _check(_follow(gradients[name], 40), defense, *batch, draws=10)
