"""The attacker's own draws choose a candidate, fresh draws judge it; what attacks cost."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purify_jax as pj
from purify_jax import attacks, costs, evaluation
from purify_jax.attacks import suites
from purify_jax.checks import InputError
from purify_jax.evaluation import protocol, records
from purify_jax.keys import fold_keys

#: All images side by side.
WHOLE = pj.Execution(batch_size=2000)


def _coin(keys, images):
    """Right with the chance that the first pixel says, anew for every image and key."""
    bits = jax.lax.bitcast_convert_type(images[:, 1, 1, 0], jnp.uint32)
    draw = lambda key, bit, p: jax.random.bernoulli(jax.random.fold_in(key, bit), p)
    right = jax.vmap(draw)(keys, bits, images[:, 0, 0, 0])
    return jnp.log(jnp.where(right[:, None], jnp.array([0.8, 0.2]), jnp.array([0.25, 0.75])))


def _coins(chances):
    images = np.full((len(chances), 2, 2, 1), 0.5, np.float32)
    images[:, 0, 0, 0] = chances
    return pj.data.Dataset("coin", "test", images, np.zeros(len(chances), np.int32), 2)


def _shift(amount, chance=None):
    """Changes the draws, and the chance if one is given."""

    def attack(keys, images, labels):
        moved = images.at[:, 1, 1, 0].add(amount)
        return moved if chance is None else moved.at[:, 0, 0, 0].set(chance)

    return attack


@pytest.mark.ci
def test_attacks_that_do_nothing_change_nothing():
    """Twelve attacks that only reroll the draws: the union falls to a third, the average stays."""
    table = {f"reroll {i}": _shift(0.01 * (i + 1)) for i in range(12)}
    found = evaluation.evaluate(
        jax.random.key(0), _coin, table, _coins([0.8] * 600), draws=10, execution=WHOLE
    )
    summary = evaluation.summary(found)
    assert records.union_accuracy(found).value < 0.15  # 0.8^13 = 0.055
    assert summary.average.low < 0.8 < summary.average.high
    assert summary.all_draws.low < 0.8**10 < summary.all_draws.high
    assert summary.worst_of[3].low < 0.8**3 < summary.worst_of[3].high
    assert sum(summary.by.values()) == 600


@pytest.mark.ci
def test_the_attacker_finds_the_stronger_candidate_by_its_own_draws():
    table = {"weak": _shift(0.1, 0.7), "strong": _shift(0.2, 0.1), "harmless": _shift(0.3, 1.0)}
    found = evaluation.evaluate(
        jax.random.key(0), _coin, table, _coins([0.9] * 2000), draws=10, execution=WHOLE
    )
    summary = evaluation.summary(found)
    assert summary.by["strong"] >= 1990
    assert summary.average.low < 0.1 < summary.average.high
    by_hand = [r["correct_draws"] / 10 for r in protocol.strongest(found)]
    assert summary.average.value == pytest.approx(np.mean(by_hand))


def test_own_draws_and_scoring_draws_are_independent():
    """Of images with one chance, those that the attacker saw lose are not worse in scoring."""
    data = _coins([0.5] * 2000)
    found = evaluation.evaluate(jax.random.key(0), _coin, {}, data, draws=10, execution=WHOLE)
    own = np.array([r["own_correct"] for r in found]) / 20
    scored = np.array([r["correct_draws"] for r in found]) / 10
    assert abs(np.corrcoef(own, scored)[0, 1]) < 0.07  # 3 standard deviations
    assert abs(own.var() - 0.25 / 20) < 0.002


def test_an_image_falls_when_no_own_draw_is_right():
    table = {"first": _shift(0.1), "second": _shift(0.2)}
    data = _coins([0.0, 1.0, 0.5, 0.0])
    found = evaluation.evaluate(
        jax.random.key(0), _coin, table, data, draws=10, drop_fallen=True, execution=pj.Execution(batch_size=2),
        passes={"first": costs.Passes(5, 4, 5, 4), "second": costs.Passes(9, 8, 9, 8)},
    )  # fmt: skip
    skipped = {(r["attack"], r["index"]) for r in found if r.get("skipped")}
    assert skipped == {(name, i) for name in table for i in (0, 3)}
    assert len(protocol.strongest(found)) == 4
    assert protocol.cost(found) == costs.Passes(7, 6, 7, 6)  # half the images
    assert protocol.cost(found, "second") == costs.Passes(4.5, 4, 4.5, 4)


def test_records_of_another_protocol_are_refused(tmp_path):
    data, execution = _coins([0.5]), pj.Execution(workdir=tmp_path)
    run = lambda: evaluation.evaluate(jax.random.key(0), _coin, {}, data, execution=execution)
    run()
    path = tmp_path / "records.jsonl"
    other = path.read_bytes().replace(b'"protocol": 2', b'"protocol": 1')
    path.write_bytes(other)
    with pytest.raises(InputError, match="protocol: 1 there, 2 now"):
        run()
    assert path.read_bytes() == other
    with pytest.raises(InputError, match="records: got none"):
        protocol.summary([])


# --- costs ------------------------------------------------------------------------------------


def _closed_forms(restarts):
    """Attack of a suite at 8 steps × 3 draws → (purifier forward, backward, classifier ...)."""
    gradients = lambda n: (n, n, restarts * n, restarts * n)
    return {
        "PGD+EOT": gradients(9 * 3),  # the last one is for the loss alone
        "APGD-CE+EOT": gradients(9 * 3),
        "BPDA+EOT": (27, 0, restarts * 27, restarts * 27),
        "blind": (0, 0, 9, 9),
        "joint (full)": (27, 0, restarts * 27, restarts * 27),
        "SPSA": (9 * 128, 0, restarts * 9 * 128, 0),
        "Square": (401, 0, restarts * 401, 0),
    }


@pytest.mark.ci
def test_passes_in_closed_form(defense):
    images = jnp.zeros((1, 8, 8, 1))
    options = suites.Options(epsilon=0.15, steps=8, eot=3)
    restarts = defense.purifier(jax.random.split(jax.random.key(0), 1), images)[0].shape[0]
    expected = _closed_forms(restarts)
    met = set()
    for suite in ("exhaustive", "paper", "rand", "standard"):
        for name, passes in suites.passes(suite, defense, options, images).items():
            if name in expected and (suite, name) != ("exhaustive", "APGD-CE+EOT"):
                if (suite, name) == ("exhaustive", "Square"):
                    continue  # 40 queries of 4 draws there
                assert passes == expected[name], (suite, name)
                met.add(name)
    assert met == set(expected)
    assert costs.count_prediction(defense, images) == (1, 0, restarts, 0)


@pytest.mark.ci
def test_attacks_look_through_as_many_restarts_as_asked_for(defense):
    images = jnp.zeros((1, 8, 8, 1))
    restarts = defense.purifier.num_restarts
    assert restarts > 1
    options = suites.Options(epsilon=0.15, steps=8, eot=3)
    whole = suites.passes("honest", defense, options, images)
    one = suites.passes(
        "honest", defense, dataclasses.replace(options, surrogate_restarts=1), images
    )
    # The same number of passes through the purifier, each of one restart, which is one of the classifier's.
    for name in ("momentum PGD", "Square"):
        forward, backward, classifier, classifier_backward = whole[name]
        assert one[name] == (
            forward,
            backward,
            classifier / restarts,
            classifier_backward / restarts,
        )
    assert one["transfer"] == whole["transfer"]


def test_passes_are_those_that_run():
    """Counted in the running program: every call of the classifier, with its batch."""
    calls = []

    def logits_fn(images):
        jax.debug.callback(lambda x: calls.append(len(x)), images)
        return images.reshape(len(images), -1) @ jnp.ones((4, 3)) + images.sum()

    def purifier(keys, images):
        noisy = images + 0.1 * pj.keys.normal_like(keys, images)
        return jnp.stack([noisy, images]), None

    noisy = pj.Defense(purifier, logits_fn)
    build = lambda d: attacks.Square(d, epsilon=0.1, num_queries=7, num_samples=3)
    image = jnp.full((1, 2, 2, 1), 0.5)
    passes = costs.count(build, noisy, image)
    calls.clear()
    jax.block_until_ready(
        jax.jit(build(noisy))(jax.random.split(jax.random.key(0), 1), image, jnp.zeros(1, int))
    )
    jax.effects_barrier()
    assert sum(calls) == passes.classifier_forward == 2 * passes.purifier_forward == 2 * 24


def test_a_loop_of_unknown_length_is_refused(defense):
    def build(d):
        def attack(keys, images, labels):
            body = lambda x: x + 0 * d(keys, x).sum()
            return jax.lax.while_loop(lambda x: x.sum() < 0, body, images)

        return attack

    with pytest.raises(InputError, match="attack: loops until a condition holds"):
        costs.count(build, defense, jnp.zeros((1, 8, 8, 1)))


# --- momentum PGD -----------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_momentum_pgd_reaches_the_optimum_of_a_noisy_linear_loss(norm):
    """Ascending ⟨w, x⟩ with noise as large as w: the end is ε·sign(w), or ε·w/‖w‖."""
    w = jax.random.normal(jax.random.key(1), (4, 4, 1))

    def gradient(keys, images, labels):
        noise = pj.keys.normal_like(keys, images)
        return w + noise, jnp.sum(w * images, axis=(1, 2, 3))

    images = jnp.full((8, 4, 4, 1), 0.5)
    keys = jax.random.split(jax.random.key(0), 8)
    attack = attacks.MomentumPGD(gradient, norm=norm, epsilon=0.1, num_steps=200)
    moved = attack(keys, images, jnp.zeros(8, int)) - images
    best = jnp.sign(w) if norm == "linf" else w / jnp.linalg.norm(w)
    reached = jnp.sum(moved * w, axis=(1, 2, 3)) / (0.1 * jnp.sum(best * w))
    assert float(reached.min()) > 0.9
    assert float(attacks.norms.get(norm).size(moved).max()) <= 0.1 + 1e-6
    # One noisy gradient alone is far from it.
    once = attacks.MomentumPGD(gradient, norm=norm, epsilon=0.1, num_steps=1)
    first = once(keys, images, jnp.zeros(8, int)) - images
    assert float((jnp.sum(first * w, axis=(1, 2, 3)) / (0.1 * jnp.sum(best * w))).mean()) < 0.8


@pytest.mark.parametrize("num_steps", [1, 6, 15, 16])
def test_momentum_pgds_path_is_as_long_as_the_ball_is_wide(num_steps):
    """From one corner it reaches the opposite one, however few steps it has."""
    attack = attacks.MomentumPGD(
        lambda keys, x, y: (jnp.ones_like(x), jnp.zeros(len(x))),
        epsilon=0.1, num_steps=num_steps, start=lambda keys, x, y: x - 0.1,
    )  # fmt: skip
    images = jnp.full((1, 2, 2, 1), 0.5)
    moved = attack(jax.random.split(jax.random.key(0), 1), images, jnp.zeros(1, int)) - images
    np.testing.assert_allclose(moved, 0.1, atol=1e-6)


def test_momentum_pgd_starts_where_it_is_told():
    attack = attacks.MomentumPGD(
        lambda keys, x, y: (jnp.zeros_like(x), jnp.zeros(len(x))),
        epsilon=0.1, num_steps=3, start=lambda keys, x, y: x + 0.05,
    )  # fmt: skip
    images = jnp.full((2, 2, 2, 1), 0.5)
    keys = fold_keys(jax.random.split(jax.random.key(0), 2), 1)
    np.testing.assert_allclose(attack(keys, images, jnp.zeros(2, int)), images + 0.05)
    with pytest.raises(InputError, match="momentum: got 1.0"):
        attacks.MomentumPGD(attack, epsilon=0.1, num_steps=3, momentum=1.0)
