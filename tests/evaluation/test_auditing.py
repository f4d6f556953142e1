"""Somebody's own defense: every suite takes it, a plan fits its time, and what is found is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purify_jax as pj
from purify_jax.attacks import SPSA, suites
from purify_jax.attacks.suites import Options
from purify_jax.checks import InputError
from purify_jax.defense import Whole, attackable
from purify_jax.evaluation import evaluate, suite_runs
from purify_jax.evaluation.audits import auditing
from purify_jax.evaluation.probes import red_flags
from purify_jax.evaluation.statistics import Difference

SHAPE = (4, 4, 1)
WEIGHTS = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
KEY = jax.random.key(0)


def _logits(images):
    return images.reshape(len(images), -1) @ WEIGHTS


def _whole(keys, images):
    """Random: noise before a linear classifier."""
    return jax.nn.log_softmax(_logits(images + 0.05 * pj.keys.normal_like(keys, images)))


def _rounded(keys, images):
    return jax.nn.log_softmax(_logits(jnp.round(8 * images) / 8))


_rounded.is_deterministic = True


def _data(count=12):
    images = np.random.default_rng(1).uniform(0.2, 0.8, (count, *SHAPE)).astype(np.float32)
    labels = np.asarray(_logits(images)).argmax(-1).astype(np.int32)
    return pj.data.Dataset("linear", "test", images, labels, 5)


def _purifier(change):
    def purify(keys, images):
        purified = change(images)[None]
        none = jnp.zeros((0, 1, len(images)))
        return purified, pj.types.PurifyInfo(none, none, jnp.zeros((1, len(images)), jnp.int32))

    return purify


@pytest.mark.ci
@pytest.mark.parametrize("suite", sorted(suites.SUITES))
def test_every_suite_takes_a_plain_function(suite):
    """What needs the parts is left out by name, and nothing else."""
    model = attackable(_whole, SHAPE)
    options = Options(epsilon=0.1, steps=2, eot=2)
    parts = pj.Defense(_purifier(lambda x: x), _logits)
    built, missing = suites.build(suite, model, options), suites.left_out(suite, model, options)
    of_parts = suites.build(suite, parts, options)
    assert set(missing) >= set(of_parts) - set(built)
    assert set(missing) <= {"transfer", "blind", "BPDA+EOT", "joint (score)", "joint (full)"}
    assert all("parts" in why for why in missing.values())
    images, labels = _data().batch(np.arange(2))
    keys = pj.image_keys(KEY, np.arange(2))
    for attack in built.values():
        assert float(jnp.abs(attack(keys, images, labels) - images).max()) <= 0.1 + 1e-6


@pytest.mark.parametrize(
    ("suite", "attack", "needed"), [("standard", "APGD-T", 4), ("rand", "APGD-DLR+EOT", 3)]
)
def test_losses_that_need_more_classes_are_left_out(suite, attack, needed):
    for classes in (needed - 1, needed):
        model = attackable(lambda keys, x, n=classes: _whole(keys, x)[:, :n], SHAPE)
        options = suites.with_classes(Options(epsilon=0.1, steps=2), model, SHAPE)
        assert options.num_classes == classes
        missing = suites.left_out(suite, model, options)
        if classes == needed:
            assert not missing
        else:
            assert missing == {attack: f"its loss needs {needed} classes of {classes}"}
    few = pj.data.Dataset("d", "s", _data().images, np.zeros(len(_data()), np.int32), 2)
    two = lambda keys, x: jax.nn.log_softmax(_whole(keys, x)[:, :2])
    run = suite_runs.SuiteRun(suite, probe_images=0)
    found = suite_runs.evaluate_suite(two, few, Options(epsilon=0.1, steps=1, eot=1), run)
    assert attack in found.left_out
    assert attack not in {record["attack"] for record in found.records["defended"]}


def test_a_purifier_that_resizes_is_one_function():
    crop = pj.Defense(_purifier(lambda x: x[:, 1:3]), lambda x: x.reshape(len(x), -1) @ WEIGHTS[:8])
    model = attackable(crop, SHAPE)
    assert isinstance(model, Whole)
    assert model.reason == "its purifier resizes 4×4 to 2×4"
    assert "transfer" in suites.left_out("honest", model, Options())
    same = pj.Defense(_purifier(lambda x: x), _logits)
    assert attackable(same, SHAPE) is same
    with pytest.raises(InputError, match="num_restarts: got 2, but its purifier resizes"):
        model.with_restarts(2)


def test_draws_of_a_function_are_draws():
    """Ten scoring draws differ, where one call for all of them would answer ten times the same."""
    run = suite_runs.SuiteRun("clean", draws=10, probe_images=0)
    noisy = lambda keys, images: jax.nn.log_softmax(
        _logits(images + pj.keys.normal_like(keys, images))
    )
    found = suite_runs.evaluate_suite(noisy, _data(), Options(), run)
    assert found.summary().all_draws.value < found.summary().average.value < 1
    single = suite_runs.evaluate_suite(_rounded, _data(), Options(), run)
    assert {record["draws"] for record in single.records["defended"]} == {1}


def test_a_failing_probe_loses_nothing(monkeypatch):
    def fails(*arguments):
        raise MemoryError("no room")

    monkeypatch.setattr(red_flags, "probe", fails)
    run = suite_runs.SuiteRun("rand", draws=2)
    found = suite_runs.evaluate_suite(_whole, _data(4), Options(epsilon=0.1, steps=1, eot=1), run)
    assert [flag.cause for flag in found.red_flags] == ["the probes could not be run"]
    assert "MemoryError: no room" in found.red_flags[0].evidence
    assert len(found.records["defended"]) == 3 * 4


def _gradient(defense):
    seen = pj.examine(defense, *_data().batch(np.arange(12)))
    model = attackable(seen.defense, SHAPE)
    return auditing._gradient(seen, model, _data(), Options(epsilon=0.1), pj.Execution())


@pytest.mark.ci
def test_a_gradient_that_is_zero_is_replaced():
    """By one from values for a whole function, by BPDA's where the purifier stands apart."""
    options, (name, why) = _gradient(_rounded)
    assert (name, options.smoothing) == ("smoothed", pytest.approx(0.05))
    assert why == "the exact one is zero"
    rounding = pj.Defense(_purifier(lambda x: jnp.round(32 * x) / 32), _logits)
    options, (name, _) = _gradient(rounding)
    assert (name, options.bpda, options.smoothing) == ("BPDA", True, None)
    assert _gradient(pj.undefended(_logits))[1][0] == _gradient(_whole)[1][0] == "exact"


def test_a_saturated_softmax_is_attacked_by_the_margin():
    options, (name, why) = _gradient(lambda keys, x: jax.nn.log_softmax(1e4 * _logits(x)))
    assert (name, options.margin) == ("of the margin", True)
    assert "saturated on 100%" in why


@pytest.mark.ci
def test_an_audit_reaches_a_rounded_classifier():
    """A linear classifier behind a little rounding: what fells it fells the rounded one."""
    settings = {"epsilon": 0.1, "suite": "honest", "steps": 32}
    found = auditing.audit(_rounded, _data(), **settings)
    bare = evaluate(KEY, pj.undefended(_logits), {"pgd": _pgd}, _data(), draws=1)
    assert found.gradient[0] == "smoothed"
    assert found.converged
    change = found.average.value - pj.evaluation.summary(bare).average.value
    assert abs(round(12 * change)) <= 1  # image
    # Had it still fallen with twice the steps, it would be an upper bound.
    falling = found._replace(change=Difference(-0.05, -0.1, 0.0, 12))
    level = found._replace(change=Difference(-0.01, -0.03, 0.01, 12))
    assert (falling.converged, level.converged) == (False, True)
    (line,) = pj.reporting.audits.verdict(falling)
    value = f"{100 * found.average.value:.1f}%"
    assert line.startswith(f"Not converged: robust accuracy is at most {value}: with twice")
    assert len(falling.only_bounds) == 2
    assert level.only_bounds == ("the gradient that attacks follow is an approximation, smoothed",)
    # A gradient that is there, but not the derivative: what a stopped branch returns.
    seen = level.examination._replace(gradient="derivative")
    sound = level._replace(gradient=("exact", "it is there"), examination=seen)
    assert pj.reporting.audits.verdict(sound) == []
    seen = seen._replace(gradient="not the derivative", wrong=0.75)
    (line,) = pj.reporting.audits.verdict(sound._replace(examination=seen))
    assert line.startswith(f"Robust accuracy is at most {value}: the gradient")
    assert line.endswith("is not the derivative on 75% of the images.")
    assert found.worst_of(1).value == found.average.value
    with pytest.raises(InputError, match="draws: got 3, expected 1 to 1"):
        found.worst_of(3)


def _pgd(keys, images, labels):
    gradient = pj.attacks.ExactGradient(pj.undefended(_logits))
    return pj.attacks.PGD(gradient, epsilon=0.1, num_steps=40)(keys, images, labels)


def test_delta_of_a_smoothed_gradient_is_half_the_way():
    for norm, epsilon in (("linf", 0.1), ("l2", 0.4), ("l1", 1.6)):
        delta = auditing.smoothing(Options(norm=norm, epsilon=epsilon), SHAPE)
        assert delta == pytest.approx(0.05)
        direction = delta * jnp.ones((1, *SHAPE))
        assert float(pj.attacks.norms.get(norm).size(direction)[0]) == pytest.approx(epsilon / 2)


def test_options_choose_the_gradient():
    parts = pj.Defense(_purifier(lambda x: x), _logits)
    assert isinstance(Options(smoothing=0.1).gradient(_whole), SPSA)
    exact = Options().gradient(parts)
    assert exact.loss_fn.func is pj.losses.cross_entropy
    assert Options(margin=True).gradient(parts).loss_fn.func is pj.losses.margin
    held = Options(bpda=True).gradient(parts).defense.purifier
    assert isinstance(held, pj.attacks.IdentityBackward)
    with pytest.raises(InputError, match="smoothing"):
        Options(smoothing=0.0)


def test_own_code(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import helper\n"
        "def build(): return lambda keys, images: images\n"
        "def logits(): return lambda images: images\n"
        "def broken(): raise ValueError('no weights')\n"
        "def text(): return 'a text'\n"
    )
    (tmp_path / "helper.py").write_text("")
    bridges = pj.bridges
    assert bridges.built(f"{file}:build")(None, 1) == 1
    data = _data(2)
    assert isinstance(bridges.defense_of(bridges.built(f"{file}:logits"), data.images), pj.Defense)
    pair = bridges.defense_of((_purifier(lambda x: x), _logits), data.images)
    assert isinstance(attackable(pair, SHAPE), pj.Defense)
    for place, message in (
        (f"{tmp_path}/none.py:build", "is no file, expected FILE.py:FUNCTION"),
        (f"{file}", "expected FILE.py:FUNCTION, such as"),
        (f"{file}:nothing", r"has no function 'nothing', expected one of \['build', 'logits', "),
        (f"{file}:broken", "raised ValueError: no weights"),
    ):
        with pytest.raises(InputError, match=message):
            bridges.built(place)
    with pytest.raises(InputError, match="defense: got str, expected a torch.nn.Module, a pair"):
        bridges.defense_of(bridges.built(f"{file}:text"), data.images)


@pytest.mark.ci
def test_an_audit_says_what_a_module_is():
    """As it was given, not as the suites take it."""
    torch = pytest.importorskip("torch")

    class Sharp(torch.nn.Module):
        def forward(self, x):
            flat = x.permute(0, 2, 3, 1).flatten(1)
            return torch.softmax(flat @ torch.tensor(WEIGHTS), -1)

    settings = {"epsilon": 0.1, "suite": "clean", "draws": 2}
    found = auditing.audit(Sharp(), _data(4), **settings).examination
    assert (found.output, found.draws) == ("probabilities", "none")
    assert found.code.startswith("Sharp, 0 parameters")
