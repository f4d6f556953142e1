"""The attacker's gradients: what each one is, and how EOT averages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import keys_for

import purify_jax as pj
from purify_jax import attacks, costs, losses
from purify_jax.keys import fold_keys


@pytest.fixture(scope="module")
def batch(digits_test):
    images, labels = digits_test.batch(np.arange(12))
    return keys_for(12), jnp.asarray(images), jnp.asarray(labels)


def test_bpda_forward_is_the_defense_and_backward_the_identity(defense, batch):
    keys, images, labels = batch
    gradient, loss = jax.jit(attacks.bpda(defense))(keys, images, labels)
    log_probs = jax.jit(defense)(keys, images)
    np.testing.assert_allclose(loss, losses.cross_entropy(log_probs, labels), rtol=1e-5)
    purified, _ = jax.jit(defense.purifier)(keys, images)

    def classify(points):
        logits = defense.logits_fn(points.reshape(-1, *images.shape[1:]))
        log_probs = defense.combine(logits.reshape(*points.shape[:2], -1))
        return losses.cross_entropy(log_probs, labels).sum()

    # The classifier's gradient at the purified images, summed over restarts.
    expected = jax.jit(jax.grad(classify))(purified).sum(0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-6)


def test_blind_is_the_bare_classifiers_gradient(defense, batch):
    keys, images, labels = batch
    gradient, _ = jax.jit(attacks.blind(defense.logits_fn))(keys, images, labels)
    loss = lambda x: losses.cross_entropy(jax.nn.log_softmax(defense.logits_fn(x)), labels).sum()
    np.testing.assert_allclose(gradient, jax.jit(jax.grad(loss))(images), rtol=1e-3, atol=2e-6)


def test_held_steps_share_the_loss_but_not_the_gradient(defense, batch):
    exact, loss = jax.jit(attacks.ExactGradient(defense))(*batch)
    held, held_loss = jax.jit(attacks.exact_held_steps(defense))(*batch)
    np.testing.assert_allclose(loss, held_loss, rtol=1e-4, atol=1e-6)
    assert jnp.abs(exact - held).max() > 1e-4 * jnp.abs(exact).max()


def test_held_steps_equal_exact_for_a_constant_step(defense, batch):
    rule = pj.purifiers.Constant(0.1)
    fixed = defense.replace(purifier=defense.purifier.replace(step_rule=rule))
    exact, _ = jax.jit(attacks.ExactGradient(fixed))(*batch)
    held, _ = jax.jit(attacks.exact_held_steps(fixed))(*batch)
    np.testing.assert_allclose(exact, held, rtol=1e-4, atol=1e-7)


def test_joint_gradients_are_means_of_signs(defense, batch):
    keys, images, labels = batch
    score_fn = defense.purifier.score_fn
    blind, _ = jax.jit(attacks.blind(defense.logits_fn))(*batch)
    joint, _ = jax.jit(attacks.JointScore(score_fn, defense.logits_fn))(*batch)
    score = jax.jit(score_fn)(images)
    np.testing.assert_array_equal(joint, (jnp.sign(blind) + jnp.sign(score)) / 2)
    bpda, _ = jax.jit(attacks.bpda(defense))(*batch)
    full, _ = jax.jit(attacks.JointFull(defense))(*batch)
    purified, _ = jax.jit(defense.purifier)(keys, images)
    expected = (jnp.sign(bpda) + jnp.sign(purified.mean(0) - images)) / 2
    assert jnp.mean(full == expected) > 0.999


@pytest.mark.ci
def test_spsa_is_unbiased_on_a_linear_loss():
    """For L = ⟨w, x⟩, each direction gives ⟨w, v⟩v, whose mean is w; error ~ ‖w‖/√n."""
    weights = jax.random.normal(jax.random.key(0), (4, 4, 1))
    model = lambda keys, x: jnp.stack([jnp.sum(x * weights, (1, 2, 3)), jnp.zeros(len(x))], -1)
    loss = lambda log_probs, labels: log_probs[:, 0]
    images, labels = jnp.full((3, 4, 4, 1), 0.5), jnp.zeros(3, jnp.int32)
    gradient = attacks.SPSA(model, loss, num_queries=20000, queries_at_once=2000)
    found, _ = jax.jit(gradient)(keys_for(3), images, labels)
    bound = 5 * jnp.linalg.norm(weights) / jnp.sqrt(10000)
    assert jnp.abs(found - weights).max() < bound


def test_averages_of_one_draw_have_the_keys_as_they_are():
    keys, images, labels = keys_for(3), jnp.zeros((3, 2, 2, 1)), jnp.zeros(3, jnp.int32)
    draw = lambda keys, images: pj.keys.normal_like(keys, images)
    gradient = lambda keys, images, labels: (draw(keys, images), labels)
    found, _ = attacks.EOT(gradient, num_samples=1)(keys, images, labels)
    np.testing.assert_array_equal(found, draw(keys, images))
    found = attacks.MeanPrediction(draw, num_samples=1)(keys, images)
    np.testing.assert_array_equal(found, draw(keys, images))


def test_a_step_of_the_joint_attack_purifies_once(defense, batch):
    restarts = defense.purifier.num_restarts
    assert costs.count(attacks.JointFull, defense, batch[1]) == (1, 0, restarts, restarts)


@pytest.mark.ci
def test_eot_is_the_mean_over_folded_keys_in_any_chunking(defense, batch):
    keys, images, labels = batch
    gradient = attacks.ExactGradient(defense)
    one = jax.jit(gradient)
    rows = [one(fold_keys(keys, i), images, labels) for i in range(6)]
    expected = jax.tree.map(lambda *a: sum(a) / 6, *rows)
    for chunk in (2, 4):  # 4 is no divisor of 6: 3 is used
        found = jax.jit(attacks.EOT(gradient, num_samples=6, samples_at_once=chunk))(
            keys, images, labels
        )
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)


def test_eot_changes_no_number_of_a_deterministic_defense(defense, batch):
    model = pj.undefended(defense.logits_fn)
    gradient = attacks.ExactGradient(model)
    single = jax.jit(gradient)(*batch)
    many = jax.jit(attacks.EOT(gradient, num_samples=8, samples_at_once=4))(*batch)
    for a, b in zip(many, single, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.ci
def test_averaged_gradients_converge_as_one_over_root_n(defense, batch):
    """The spread of n-sample means over independent keys falls as n^(−1/2), within 0.09 of the exponent."""
    _, images, labels = batch
    images, labels = images[:4], labels[:4]
    # A softmax that is hardly saturated: where few draws carry the whole gradient, 40 means say little.
    soft = pj.Defense(defense.purifier, lambda x: 0.1 * defense.logits_fn(x))
    spread = []
    for samples in (2, 32):
        gradient = jax.jit(attacks.EOT(attacks.ExactGradient(soft), num_samples=samples))
        means = jnp.stack([gradient(keys_for(4, 100 + s), images, labels)[0] for s in range(40)])
        spread.append(float(jnp.sqrt(jnp.mean(jnp.var(means, axis=0)))))
    slope = np.log(spread[1] / spread[0]) / np.log(16)
    assert abs(slope + 0.5) < 0.09, (slope, spread)


@pytest.mark.ci
def test_average_draws_is_the_loss_of_the_mean(defense, batch):
    keys, images, labels = batch
    mean = attacks.MeanPrediction(defense, num_samples=4, samples_at_once=2)
    one = jax.jit(defense)
    rows = jnp.stack([one(fold_keys(keys, i), images) for i in range(4)])
    np.testing.assert_allclose(jax.jit(mean)(keys, images), rows.mean(0), rtol=1e-3, atol=1e-3)
    # Cross-entropy is linear in the log-probabilities, so both ways of averaging agree for it.
    of_mean, _ = jax.jit(attacks.ExactGradient(mean))(*batch)
    mean_of, _ = jax.jit(attacks.EOT(attacks.ExactGradient(defense), num_samples=4))(*batch)
    np.testing.assert_allclose(of_mean, mean_of, rtol=5e-3, atol=1e-4)


@pytest.mark.ci
def test_memory_grows_with_the_chunk_not_with_samples_or_steps(defense, batch):
    keys, images, labels = batch

    def memory(samples, chunk, steps=3):
        purifier = defense.purifier.replace(num_steps=steps)
        gradient = attacks.EOT(
            attacks.ExactGradient(defense.replace(purifier=purifier)),
            num_samples=samples,
            samples_at_once=chunk,
        )
        compiled = jax.jit(gradient).lower(keys, images, labels).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    base = memory(4, 2)
    assert memory(64, 2) < 1.1 * base
    assert memory(64, 8) > 2 * base
    # 30 steps keep 3 images a step (the secant's), restart and sample side by side.
    assert memory(4, 2, steps=30) < 1.5 * base + 3 * 30 * 2 * 2 * images.nbytes
