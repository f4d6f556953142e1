"""Parameters, σ, λ and ε are arguments of compiled programs: another checkpoint compiles nothing."""

import subprocess
import sys
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ROOT, environment, init, keys_for

import purify_jax as pj
from purify_jax import attacks, purifiers, training
from purify_jax.networks import MLP, ConvNet

IMAGES = np.linspace(0.1, 0.9, 4 * 64).reshape(4, 8, 8, 1).astype(np.float32)
LABELS = np.array([0, 1, 2, 3])


@contextmanager
def compilations():
    """Counts programs that XLA compiles (or takes from its cache) in the block."""
    found = []

    def listen(event, duration, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        # Older versions have no such function: the listener goes on counting into a list that nobody reads.
        unregister = getattr(jax.monitoring, "unregister_event_duration_listener", lambda _: None)
        unregister(listen)


def _defense(seed, **changes):
    score, classifier = MLP(features=(8,)), ConvNet(features=(2,), hidden=4)
    images = jnp.zeros((1, 8, 8, 1))
    params = init(score, jax.random.key(seed), images)["params"]
    settings = {"num_steps": 2, "num_restarts": 2, "noise_scale": 0.2, "rate": 0.1, **changes}
    rate = settings.pop("rate")
    purifier = pj.ADP(pj.energy.NetworkScore(score, params), pj.Adaptive(rate=rate), **settings)
    variables = init(classifier, jax.random.key(seed + 1), images)
    return pj.Defense(purifier, pj.models.NetworkLogits(classifier, variables))


def _attack(defense, epsilon=0.1):
    gradient = attacks.EOT(attacks.ExactGradient(defense), num_samples=2)
    return attacks.PGD(gradient, epsilon=epsilon, num_steps=2)


def _evaluate(defense, epsilon=0.1):
    data = pj.data.Dataset("tiny", "test", IMAGES, LABELS, 10)
    attack = _attack(defense, epsilon)
    return pj.evaluate(jax.random.key(0), defense, {"pgd": attack}, data, draws=2)


@pytest.mark.ci
def test_a_second_checkpoint_compiles_nothing():
    first = _evaluate(_defense(0))
    with compilations() as counted:
        second = _evaluate(_defense(10, noise_scale=0.3, rate=0.2), epsilon=0.05)
    # The networks are initialised by programs of their own; those were compiled the first time.
    assert counted == []
    assert [r["loss"] for r in first] != [r["loss"] for r in second]
    with compilations() as counted:
        _evaluate(_defense(20, num_steps=3))
    assert counted, "another number of steps is another program"


def test_evaluating_twice_gives_the_same_records_and_compiles_once():
    defense = _defense(0)
    first = _evaluate(defense)
    with compilations() as counted:
        assert _evaluate(defense) == first
    assert counted == []


@pytest.mark.ci
def test_the_parameters_of_a_network_are_made_by_one_program():
    """Layers of nine sizes: each operation of each size would be a program of its own."""
    network = MLP(features=tuple(range(30, 39)))
    with compilations() as counted:
        training.init_state(network, optax.sgd(0.1), jax.random.key(0), (4, 4, 1))
    assert 0 < len(counted) < 30


@pytest.mark.ci
def test_the_cache_on_disk_serves_another_checkpoint(tmp_path):
    code = (
        "import sys; sys.path[:0] = [{tests!r}]\n"
        "import jax, test_pytrees as t\n"
        # After the import: the fixtures' module keeps only what takes long to compile.
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)\n"
        "t._evaluate(t._defense(int(sys.argv[1])))\n"
    ).format(tests=str(ROOT / "tests"))
    cache = tmp_path / "cache"
    env = environment() | {"JAX_COMPILATION_CACHE_DIR": str(cache), "PURIFY_TEST_CACHE": str(cache)}

    def programs(seed):
        done = subprocess.run(
            [sys.executable, "-c", code, str(seed)],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return {p.name for p in cache.iterdir() if p.name.endswith("-cache")}

    assert programs(0) == programs(10) != set()


@pytest.mark.parametrize(
    "make",
    [
        lambda d: d,
        lambda d: d.purifier,
        lambda d: d.logits_fn,
        lambda d: attacks.ExactGradient(d),
        lambda d: attacks.bpda(d),
        lambda d: _attack(d),
        lambda d: attacks.Square(d, epsilon=0.1, num_queries=3),
        lambda d: attacks.TargetedAPGD(d, epsilon=0.1, num_steps=2),
        lambda d: attacks.white_box(d, attacks.suites.Options(steps=2)),
        lambda d: pj.evaluation.Draws(d, draws=2),
        lambda d: pj.evaluation.certification.ClassCounts(d, 0.1, num_samples=4, samples_at_once=2),
        lambda d: pj.evaluation.detection.score_norm(d.purifier.score_fn),
    ],
)
def test_parameters_are_leaves(make):
    defense = _defense(0)
    leaves = jax.tree.leaves(make(defense))
    assert all(isinstance(leaf, (jax.Array, np.ndarray, float)) for leaf in leaves)
    assert any(isinstance(leaf, jax.Array) and leaf.ndim for leaf in leaves)
    assert jax.tree.structure(make(defense)) == jax.tree.structure(make(_defense(3)))


@pytest.mark.ci
def test_a_defense_is_an_argument_of_jit_like_any_other():
    defense = _defense(0)
    call = jax.jit(lambda d, keys, images: d(keys, images))
    expected = jax.jit(lambda *given: defense(*given))(keys_for(4), IMAGES)
    np.testing.assert_allclose(call(defense, keys_for(4), IMAGES), expected, atol=1e-5)
    np.testing.assert_allclose(jax.jit(defense)(keys_for(4), IMAGES), expected, atol=1e-5)
    np.testing.assert_allclose(pj.jit(defense)(keys_for(4), IMAGES), expected, atol=1e-5)
    slope = jax.jit(jax.grad(lambda d: d(keys_for(4), jnp.asarray(IMAGES)).sum()))(defense)
    assert float(jnp.abs(jax.tree.leaves(slope.logits_fn)[0]).max()) > 0


def test_plain_closures_still_work():
    matrix = jax.random.normal(jax.random.key(0), (64, 10))
    logits_fn = lambda x: x.reshape(x.shape[0], -1) @ matrix
    score_fn = lambda x: 0.5 - x
    defense = pj.Defense(pj.ADP(score_fn, num_steps=1, num_restarts=2), logits_fn)
    found = pj.jit(_attack(defense))(keys_for(4), IMAGES, LABELS)
    assert np.abs(np.asarray(found) - IMAGES).max() <= 0.1 + 1e-6
    keys_and_images = lambda keys, x: (x[None], None)
    plain = pj.Defense(keys_and_images, logits_fn)
    assert not plain.is_deterministic
    assert purifiers.score_of(plain.purifier) is None


def test_sigma_and_lambda_may_be_differentiated():
    score_fn = purifiers.ADP(lambda x: 0.5 - x, num_steps=2, num_restarts=1)
    total = lambda p: p(keys_for(4), jnp.asarray(IMAGES))[0].sum()
    slope = jax.grad(total)(score_fn.replace(noise_scale=0.1))
    assert np.isfinite(slope.noise_scale)
    assert float(slope.step_rule.rate) != 0


def test_what_is_printed_is_one_line_and_never_a_network_s_numbers():
    ready = pj.pretrained.load("digits")
    attack = attacks.PGD(attacks.ExactGradient(ready.defense), epsilon=0.125, num_steps=3)
    for value in (ready, ready.defense, ready.score_model, ready.classifier, attack):
        assert "\n" not in repr(value)
        assert len(repr(value)) < 1200
    counts = {
        n: sum(x.size for x in jax.tree.leaves(getattr(ready, n).variables))
        for n in ("score_model", "classifier")
    }
    assert f"params=<{counts['score_model']:,} numbers in 6 arrays>" in repr(ready)
    assert f"variables=<{counts['classifier']:,} numbers in " in repr(ready.defense)
    assert "num_steps=5, num_restarts=4" in repr(attack)
    assert "noise_scale=0.25" in repr(attack)
    assert "epsilon=0.125" in repr(attack)
    seen = []
    jax.jit(lambda e: seen.append(repr(attack.replace(epsilon=e))) or e)(0.1)
    assert "epsilon=float32[]" in seen[0]
    described = pj.pytrees.described
    assert described(jax.random.key(0)) == "key<fry>"
    assert described(jnp.zeros((2, 3), jnp.bfloat16)) == "bfloat16[2,3]"
    gone = jnp.zeros(())
    gone.delete()
    assert described(gone) == "float32[]"
