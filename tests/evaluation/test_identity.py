"""Records are of one model: another model's weights, other images or other settings are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purify_jax as pj
from purify_jax import attacks
from purify_jax.attacks.suites import Options
from purify_jax.bridges.inspection import code_identity
from purify_jax.checks import InputError
from purify_jax.evaluation import (
    corruption,
    evaluate,
    evaluate_corrupted,
    identity,
    suite_runs,
    transfer,
)
from purify_jax.evaluation.certification import certify
from purify_jax.evaluation.identity import difference

KEY = jax.random.key(0)


def _logits(weights, images):
    return images.reshape(len(images), -1) @ weights


def _classifier(scale=1.0):
    """Weights that a checkpoint would hold, as leaves of the defense."""
    weights = scale * jax.random.normal(jax.random.key(1), (64, 10))
    return pj.undefended(pj.Partial(_logits, weights))


def _data(seed=0):
    rng = np.random.default_rng(seed)
    images = rng.uniform(0.3, 0.7, (6, 8, 8, 1)).astype(np.float32)
    return pj.data.Dataset("noise", "test", images, np.arange(6, dtype=np.int32), 10)


def _attack(defense, steps=2):
    return attacks.PGD(attacks.ExactGradient(defense), epsilon=0.1, num_steps=steps)


def _evaluate(execution, defense, data, steps=2):
    return evaluate(KEY, defense, {"pgd": _attack(defense, steps)}, data, execution=execution)


def _suite(execution, defense, data, steps=2):
    options = Options(epsilon=0.1, steps=steps)
    run = suite_runs.SuiteRun("standard", probe_images=0, skip=("APGD-T", "Square"))
    return suite_runs.evaluate_suite(defense, data, options, run, execution=execution).records


def _certify(execution, defense, data, steps=2):
    return certify(KEY, defense, data, sigma=0.1, n0=5, n=20 * steps, execution=execution)


def _corruptions(execution, defense, data, steps=2):
    load = lambda name, severity: corruption.corrupted_dataset(data, name, severity)
    return evaluate_corrupted(
        KEY, {"m": defense}, load, names=["contrast"], severities=[steps], execution=execution
    )


def _transfer(execution, defense, data, steps=2):
    moved = {"m": data.images}
    settings = {"draws": steps, "execution": execution}
    return transfer.measure(KEY, {"m": defense}, moved, data.labels, **settings)


ALL = [_evaluate, _suite, _certify, _corruptions, _transfer]


@pytest.mark.parametrize("run", ALL)
def test_the_records_of_another_model_are_refused(run, tmp_path):
    """Evaluated, retrained into the same names, evaluated again in the same work directory."""
    execution = pj.Execution(workdir=tmp_path)
    first = run(execution, _classifier(), _data())
    contents = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert run(execution, _classifier(), _data()) == first
    with pytest.raises(InputError, match=r"defense.*differs: sha256 \w{12} there, sha256 \w{12} n"):
        run(execution, _classifier(0.0), _data())
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == contents
    # In a folder of its own it gets its own answer: class 0 for every image.
    other = run(pj.Execution(workdir=tmp_path / "other"), _classifier(0.0), _data())
    assert other != first


@pytest.mark.parametrize("run", ALL)
def test_the_records_of_other_images_are_refused(run, tmp_path):
    execution = pj.Execution(workdir=tmp_path)
    run(execution, _classifier(), _data())
    with pytest.raises(InputError, match="differ"):
        run(execution, _classifier(), _data(seed=1))


@pytest.mark.parametrize("run", ALL[:4])
def test_the_records_of_other_settings_are_refused(run, tmp_path):
    execution = pj.Execution(workdir=tmp_path)
    run(execution, _classifier(), _data())
    with pytest.raises(InputError, match="there, .* now"):
        run(execution, _classifier(), _data(), steps=3)


def test_a_defense_is_its_structure_its_numbers_and_its_weights(defense):
    whole = identity(defense=defense)
    assert "unhashed" not in whole
    fields = whole["defense"]
    assert (fields[""], fields["purifier"], fields["purifier.num_steps"]) == ("Defense", "ADP", 3)
    hashes = [value for value in fields.values() if str(value).startswith("sha256 ")]
    assert len(hashes) == 2  # of the energy model and of the classifier
    noisier = defense.replace(purifier=defense.purifier.replace(noise_scale=0.5))
    assert "defense.purifier.noise_scale: 0.25 there, 0.5 now" in difference(
        whole, identity(defense=noisier)
    )
    moved = jax.tree.map(lambda x: x + 0 if jnp.ndim(x) else x, defense)
    assert identity(defense=moved) == whole
    assert difference(whole, whole) is None


def test_an_attack_is_all_its_fields_but_how_it_is_executed(defense):
    attack = lambda **more: attacks.PGD(
        attacks.EOT(
            attacks.ExactGradient(defense), num_samples=4, samples_at_once=more.pop("at_once", 2)
        ),
        **{"epsilon": 0.1, "num_steps": 2, **more},
    )
    same = identity(attack=attack())
    assert identity(attack=attack(at_once=4)) == same
    for change in ({"epsilon": 0.2}, {"num_steps": 3}, {"norm": "l2"}, {"step_size": 0.01}):
        assert identity(attack=attack(**change)) != same


def test_plain_functions_are_named_as_unhashed():
    weights = jnp.ones((64, 10))
    closure = pj.undefended(lambda images: _logits(weights, images))
    assert identity(defense=closure)["unhashed"] == ["defense.logits_fn"]
    assert identity(defense=_logits)["unhashed"] == ["defense"]
    # The library's own functions hold no weights.
    assert "unhashed" not in identity(defense=pj.undefended(pj.Partial(jnp.tanh)))


@pytest.mark.parametrize("method", sorted(pj.models.METHODS))
def test_no_purifier_of_a_stored_model_holds_unhashed_functions(method, models):
    purifier = pj.models.model_purifier(models[0], method=method)
    assert "unhashed" not in identity(purifier=purifier)


def test_data_are_their_images_and_labels():
    data = _data()
    same = pj.data.Dataset("another name", "train", data.images, data.labels, 10)
    assert identity(data=same) == identity(data=data)
    other = pj.data.Dataset("noise", "test", data.images, data.labels[::-1].copy(), 10)
    assert identity(data=other) != identity(data=data)
    assert identity(data=data.take(5)) != identity(data=data)


@pytest.mark.ci
def test_a_label_decides_nothing(defense, digits_test):
    """Whether there is a purifier says how many draws score a model, whatever its name."""
    run = suite_runs.SuiteRun("clean", draws=3, probe_images=0)
    bare = pj.undefended(defense.logits_fn)
    found = suite_runs.evaluate_suite(
        defense, digits_test.take(4), Options(), run, label="undefended", beside={"defended": bare}
    )
    draws = {label: {r["draws"] for r in records} for label, records in found.records.items()}
    assert draws == {"defended": {1}, "undefended": {3}}
    assert (found.label, found.bare) == ("undefended", "defended")


def test_a_closure_is_its_code_and_what_it_holds():
    """A second function of the same name is another one, in the same work directory too."""
    made = lambda weights: lambda images: _logits(weights, images)
    same = lambda: identity(defense=pj.undefended(made(np.ones((64, 10)))))
    assert same() == same()
    assert same() != identity(defense=pj.undefended(made(np.zeros((64, 10)))))

    def halved(images):
        return images / 2

    first = halved

    def halved(images):
        return images / 3

    assert identity(defense=first) != identity(defense=halved)

    # The order in which a set is shown is another one in every process.
    names: dict = {}
    exec("def within(x): return x in {'b', 'a'}", names)
    assert repr(["'a'", "'b'"]) in code_identity(names["within"].__code__)[2]

    def again(depth):
        return again(depth - 1) if depth else 0

    assert identity(defense=again)["unhashed"]  # it holds itself
