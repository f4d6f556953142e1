"""Records, scoring, intervals, resumption and red flags."""

import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import purify_jax as pj
from purify_jax import attacks, evaluation
from purify_jax.attacks.suites import Options
from purify_jax.checks import InputError
from purify_jax.evaluation import records, red_flags, suite_runs
from purify_jax.types import PurifyInfo


def _pgd(defense, epsilon=0.15):
    gradient = attacks.EOT(attacks.ExactGradient(defense), num_samples=2)
    return attacks.PGD(gradient, epsilon=epsilon, step_size=epsilon / 3, num_steps=4)


def test_wilson_interval_in_closed_form():
    found = records.wilson(47, 64)
    z, n, p = stats.norm.ppf(0.975), 64, 47 / 64
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    np.testing.assert_allclose([found.low, found.high], [centre - half, centre + half], rtol=1e-6)
    assert found.value == p


def test_scorings_of_a_known_random_defense():
    """A defense that answers right in a known share of draws, by the draw's key."""

    def coin(keys, images):
        right = jax.vmap(lambda k: jax.random.bernoulli(k, 0.7))(keys)
        return jnp.log(jnp.where(right[:, None], jnp.array([0.8, 0.2]), jnp.array([0.25, 0.75])))

    rng = np.random.default_rng(0)
    images = rng.uniform(size=(400, 2, 2, 1)).astype(np.float32)
    data = pj.data.Dataset("coin", "test", images, np.zeros(400, np.int32), 2)
    found = evaluation.evaluate(
        jax.random.key(0), coin, {}, data, draws=10, execution=pj.Execution(batch_size=150)
    )
    share = lambda scoring: records.accuracy(found, "clean", scoring)
    assert share("one_draw").low < 0.7 < share("one_draw").high
    assert share("all_draws").low < 0.7**10 < share("all_draws").high
    # Mean of 10 draws: 0.25 + 0.055·k > 0.5 needs k ≥ 5 right draws; a tie of votes goes to 0.
    above = stats.binom.sf(4, 10, 0.7)
    assert share("vote").low < above < share("vote").high
    assert share("mean").low < above < share("mean").high
    drawn = np.mean([r["correct_draws"] for r in found]) / 10
    assert abs(drawn - 0.7) < 0.03


@pytest.mark.ci
def test_results_do_not_depend_on_the_batch_size(defense, digits_test):
    data = digits_test.take(20)
    run = lambda size: evaluation.evaluate(
        jax.random.key(1), defense, {"pgd": _pgd(defense)}, data, draws=2,
        execution=pj.Execution(batch_size=size),
    )  # fmt: skip
    one, other = run(20), run(7)
    for a, b in zip(one, other, strict=True):
        assert abs(a["loss"] - b["loss"]) < 0.02 * max(1, a["loss"])
        assert abs(a["linf"] - b["linf"]) < 1e-4
    same = np.mean([a["one_draw"] == b["one_draw"] for a, b in zip(one, other, strict=True)])
    assert same >= 0.95


def test_killed_five_times_and_resumed_gives_identical_bytes(digits_test, tmp_path):
    """Torn anywhere, also within a line, the file ends byte for byte the same."""
    data = digits_test.take(24)
    weights = jax.random.normal(jax.random.key(0), (64, 10))

    def defense(keys, images):  # random, and quick to compile
        noisy = images + 0.1 * pj.keys.normal_like(keys, images)
        return jax.nn.log_softmax(noisy.reshape(-1, 64) @ weights)

    table = {"pgd": _pgd(defense), "second": _pgd(defense, 0.1)}
    run = lambda draws=2: evaluation.evaluate(
        jax.random.key(1), defense, table, data, draws=draws, drop_fallen=True,
        execution=pj.Execution(batch_size=8, workdir=tmp_path),
    )  # fmt: skip
    first = run()
    path = tmp_path / "records.jsonl"
    content = path.read_bytes()
    chance = random.Random(0)
    for cut in [0, 10, *(chance.randrange(len(content)) for _ in range(5))]:
        path.write_bytes(content[:cut])
        assert run() == first
        assert path.read_bytes() == content, cut
    with pytest.raises(InputError, match="belongs to another evaluation .draws: 2 there, 3 now"):
        run(draws=3)
    assert path.read_bytes() == content


@pytest.mark.ci
def test_a_suite_does_not_go_on_from_attacks_of_another_length(digits_test, tmp_path):
    """The attacks' names are the same whatever their steps: their records must not be mixed."""
    weights = jax.random.normal(jax.random.key(0), (64, 10))
    logits_fn = lambda images: images.reshape(-1, 64) @ weights
    defense = pj.Defense(pj.purifiers.identity, logits_fn)
    run = suite_runs.SuiteRun("standard", draws=1, probe_images=0, skip=("APGD-T", "Square"))
    execution = pj.Execution(batch_size=8, workdir=tmp_path)
    again = lambda **given: suite_runs.evaluate_suite(
        defense, digits_test.take(8), Options(epsilon=0.1, **given), run, execution=execution
    )
    first = again(steps=2).records
    assert again(steps=2).records == first
    with pytest.raises(InputError, match="APGD-CE.num_steps: 2 there, 3 now"):
        again(steps=3)
    with pytest.raises(InputError, match="APGD-CE.num_steps: 2 there, 100 now"):
        again()


@pytest.mark.ci
def test_fallen_images_are_dropped_and_counted(defense, digits_test):
    data = digits_test.take(24)
    table = {"strong": _pgd(defense, 0.4), "weak": _pgd(defense, 0.01)}
    found = evaluation.evaluate(
        jax.random.key(1), defense, table, data, draws=2, drop_fallen=True,
        execution=pj.Execution(batch_size=8),
    )  # fmt: skip
    fallen = {r["index"] for r in found if r["attack"] != "weak" and not r.get("own_correct")}
    last = records.of_attack(found, "weak")
    assert fallen
    assert {r["index"] for r in last} == set(range(24))
    assert {r["index"] for r in last if r.get("skipped")} == fallen
    # A skipped image counts as wrong, so the last row is no better than what had not fallen.
    assert not any(r.get("one_draw") for r in last if r.get("skipped"))
    assert records.accuracy(found, "weak").value <= (24 - len(fallen)) / 24
    assert records.union_accuracy(found).value <= records.accuracy(found, "weak").value


def test_shared_keys_attack_the_very_draw_that_is_scored(defense, digits_test):
    """With shared keys the loss the attack sees is the loss that is recorded."""
    data = digits_test.take(8)
    seen = {}

    def spy(keys, images, labels):
        jax.debug.callback(
            lambda v: seen.update(loss=np.asarray(v)),
            pj.losses.cross_entropy(defense(keys, images), labels),
        )
        return images

    found = evaluation.evaluate(
        jax.random.key(4), defense, {"spy": spy}, data, draws=1, shared_keys=True
    )
    jax.effects_barrier()
    recorded = [r["loss"] for r in records.of_attack(found, "spy")]
    np.testing.assert_allclose(recorded, seen["loss"], atol=2e-4)


def test_bad_input_is_named(defense, digits_test):
    key = jax.random.key(0)
    data = digits_test.take(4)
    with pytest.raises(InputError, match="draws: got 0"):
        evaluation.evaluate(key, defense, {}, data, draws=0)
    with pytest.raises(InputError, match="the name 'clean' is taken"):
        evaluation.evaluate(key, defense, {"clean": lambda k, x, y: x}, data)
    with pytest.raises(
        InputError, match=r"labels of x: values lie in \[0, 10\], expected \[0, 9\]"
    ):
        pj.data.Dataset("x", "test", data.images, np.array([0, 10, 1, 2], np.int32), 10)
    with pytest.raises(InputError, match="scoring: got 'best'"):
        records.check_scoring("best")


# --- red flags --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short_defense(models):
    """Probes take a thousand gradients an image: a purifier of two steps, alone."""
    score_model, classifier = models
    purifier = pj.models.adp_purifier(score_model, num_steps=2, num_restarts=1)
    return pj.Defense(purifier, pj.models.logits_fn(classifier))


def _flags(defense, digits_test):
    options = Options(epsilon=0.15)
    probes = red_flags.probe(jax.random.key(0), defense, digits_test.take(12), options)
    return [flag.cause for flag in red_flags.red_flags((), probes)]


def _masking_purifier(purifier, change):
    def masked(keys, images):
        purified, info = purifier(keys, images)
        return change(purified), info

    return masked


@pytest.mark.ci
def test_no_red_flag_on_an_honest_model(short_defense, digits_test):
    assert _flags(short_defense, digits_test) == []


@pytest.mark.ci
def test_a_quantiser_is_caught(short_defense, digits_test):
    quantised = _masking_purifier(short_defense.purifier, lambda x: jnp.round(x * 16) / 16)
    causes = _flags(short_defense.replace(purifier=quantised), digits_test)
    assert "the purifier passes no gradient (quantised, or stopped on purpose)" in causes
    assert "transfer beats the exact gradient" in causes
    assert "BPDA beats the exact gradient" in causes


@pytest.mark.ci
def test_a_stopped_gradient_is_caught(short_defense, digits_test):
    stopped = _masking_purifier(short_defense.purifier, jax.lax.stop_gradient)
    causes = _flags(short_defense.replace(purifier=stopped), digits_test)
    assert "the purifier passes no gradient (quantised, or stopped on purpose)" in causes
    assert "accuracy does not fall to 0 as ε grows" in causes


@pytest.mark.ci
def test_an_extreme_temperature_is_caught(short_defense, digits_test):
    hot = short_defense.replace(logits_fn=lambda x, f=short_defense.logits_fn: 1e4 * f(x))
    causes = _flags(hot, digits_test)
    assert "the softmax is saturated (extreme temperature or confidence)" in causes


def test_flags_from_records_and_curves():
    def record(attack, index, right):
        return {"attack": attack, "index": index, "label": 0, "one_draw": right, "mean": right}

    exact = [record("clean", i, True) for i in range(40)] + [
        record("PGD+EOT", i, i < 30) for i in range(40)
    ]
    honest = exact + [record("Square", i, i < 29) for i in range(40)]
    masked = exact + [record("Square", i, i < 10) for i in range(40)]
    assert red_flags.red_flags(honest) == []
    (flag,) = red_flags.red_flags(masked)
    assert "Square (black-box) beats the exact gradient" in flag.cause
    assert "turns 20 of 30 images" in flag.evidence
    interval = lambda k: records.wilson(k, 100)
    from purify_jax.evaluation.probes.sweeps import Curve

    flat = Curve("epsilon", [0.0, 0.5, 1.0], [interval(90), interval(60), interval(55)])
    falling = Curve("epsilon", [0.0, 0.5, 1.0], [interval(90), interval(20), interval(0)])
    steep = Curve("eot", [1, 5, 20], [interval(90), interval(60), interval(30)])
    assert [f.cause for f in red_flags.red_flags(curve=flat)] == [
        "accuracy does not fall to 0 as ε grows"
    ]
    assert red_flags.red_flags(curve=falling) == []
    assert [f.cause for f in red_flags.red_flags(curve=steep)] == [
        "more eot still lower the accuracy much"
    ]


@pytest.mark.ci
def test_purify_info_is_what_the_types_say(defense, digits_test):
    images, _ = digits_test.batch(np.arange(3))
    _, info = defense.purifier(pj.image_keys(jax.random.key(0), np.arange(3)), images)
    assert isinstance(info, PurifyInfo)
    assert json.dumps(np.asarray(info.active_steps).tolist()) == "[[3, 3, 3], [3, 3, 3]]"


@pytest.mark.ci
def test_the_white_box_is_no_weaker_than_fresh_keys(defense, digits_test):
    """Sharing the defender's keys helps the attacker: fewer images stay right."""
    from purify_jax.attacks import suites

    data, options = digits_test.take(48), Options(epsilon=0.12, steps=10)
    attack = {suites.WHITE_BOX: attacks.white_box(defense, options)}
    run = lambda shared: records.accuracy(
        evaluation.evaluate(
            jax.random.key(1),
            defense,
            attack,
            data,
            draws=1,
            shared_keys=shared,
        ),
        suites.WHITE_BOX,
    )
    assert run(True).value < run(False).value
