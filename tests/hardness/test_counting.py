"""What may not be counted is refused: attacks that cheat, answers that are no numbers, no records."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import keys_for

import purify_jax as pj
from purify_jax import evaluation
from purify_jax.checks import InputError
from purify_jax.evaluation import certification, corruption, detection, records, sweeps
from purify_jax.evaluation.predictions import NOT_FINITE, predicted_class

WEIGHTS = jnp.asarray(np.random.default_rng(0).normal(size=(16, 3)), jnp.float32)


def data(count=5):
    images = np.random.default_rng(1).uniform(0.2, 0.8, (count, 4, 4, 1)).astype(np.float32)
    return pj.data.Dataset("squares", "test", images, np.zeros(count, np.int32), 3)


def linear(keys, images):
    return jax.nn.log_softmax(images.reshape(-1, 16) @ WEIGHTS)


def lost(keys, images):
    """Not a number for images whose first pixel is large, else class 0."""
    first = images[:, 0, 0, :1]
    return jnp.where(first > 0.5, jnp.nan, jnp.array([[0.0, -9.0, -9.0]]))


def record(attack, index, right=True):
    return {"attack": attack, "index": index, "label": 0, "one_draw": right}


def evaluate(defense=linear, attack=None, **more):
    attacks = {} if attack is None else {"mine": attack}
    return evaluation.evaluate(jax.random.key(0), defense, attacks, data(), draws=2, **more)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (lambda k, x, y: x.at[1, 0, 0, 0].set(jnp.nan), "attack 'mine': 1 pixels are NaN"),
        (lambda k, x, y: x + 0.5, r"attack 'mine': values lie in \[0.7.*expected \[0, 1\]"),
        (lambda k, x, y: x[:, :2], r"attack 'mine': returned shape \(5, 2, 4, 1\)"),
        (lambda k, x, y: x[..., 0], "attack 'mine': returned shape"),
    ],
)
def test_an_attack_that_returns_no_images_is_not_scored(attack, message):
    with pytest.raises(InputError, match=message):
        evaluate(attack=attack)


def test_an_attack_that_leaves_its_ball_is_not_scored():
    def shift(keys, images, labels):
        return images + 0.11

    assert len(evaluate(attack=shift)) == 10  # it declares no ball
    shift.norm, shift.epsilon = "linf", 0.11
    assert len(evaluate(attack=shift)) == 10
    shift.epsilon = 0.1
    with pytest.raises(InputError, match=r"attack 'mine': moved an image by 0.11 \(linf\)"):
        evaluate(attack=shift)

    class Declared(pj.pytrees.Pytree):
        epsilon: float
        norm: str = pj.pytrees.static(default="l2")

        def __call__(self, keys, images, labels):
            return images + 0.1  # by 0.4 in L2

    assert len(evaluate(attack=Declared(epsilon=0.4))) == 10
    with pytest.raises(InputError, match=r"moved an image by 0.4 \(l2\), expected at most .* 0.3$"):
        evaluate(attack=Declared(epsilon=0.3))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_librarys_own_attacks_stay_inside_as_checked(norm):
    for epsilon in (0.0, 1e-3, {"linf": 1.0}.get(norm, 3.0)):
        pgd = pj.attacks.PGD(
            pj.attacks.ExactGradient(linear), norm=norm, epsilon=epsilon, num_steps=3
        )
        assert len(evaluate(attack=pgd)) == 10


@pytest.mark.ci
def test_predictions_that_are_no_numbers_are_not_counted():
    with pytest.raises(InputError, match="attack 'clean': .* predictions are not finite"):
        evaluate(lost)
    with pytest.raises(InputError, match="noisy predictions of an image are not finite"):
        certification.certify(jax.random.key(0), lost, data(), sigma=0.1, n0=5, n=10)
    with pytest.raises(InputError, match="fog 1: .* predictions are not finite"):
        corruption.evaluate_corrupted(
            jax.random.key(0), {"m": lost}, lambda n, s: data(), names=["fog"], severities=[1]
        )
    options = pj.attacks.suites.Options(epsilon=0.0, steps=1, eot=1)
    broken = pj.undefended(lambda x: lost(None, x))
    with pytest.raises(InputError, match="PGD at epsilon 0: .* predictions are not finite"):
        sweeps.attacked_accuracy(jax.random.key(0), broken, data(), options)
    images, labels = data().batch(np.arange(5))
    judge = detection.Judge(lost, detection.score_norm(lambda x: x), 1.0)
    with pytest.raises(InputError, match="defense: .* predictions are not finite"):
        judge(keys_for(5), jnp.asarray(images), labels)


def test_a_class_that_is_no_number_is_none():
    inf = jnp.inf
    rows = [[0.0, 1.0], [jnp.nan, 1.0], [-inf, 0.0], [-inf, -inf], [inf, 0.0]]
    assert predicted_class(jnp.array(rows)).tolist() == [1, NOT_FINITE, 1, NOT_FINITE, NOT_FINITE]


def test_a_defense_of_too_few_classes_is_named():
    two = lambda keys, images: linear(keys, images)[:, :2]
    with pytest.raises(InputError, match="got 2 outputs per image, expected one for each of 3"):
        evaluate(two)


def test_the_union_of_nothing_is_an_error():
    some = [record("clean", 0), record("clean", 1), record("pgd", 0, False), record("pgd", 1)]
    assert records.union_accuracy(some, attacks=["pgd"]).value == 0.5
    with pytest.raises(InputError, match="attacks: no records of 'square'"):
        records.union_accuracy(some, attacks=["square"])
    with pytest.raises(InputError, match="records: got none"):
        records.union_accuracy([])
    with pytest.raises(InputError, match="records: 'pgd' has 1 of 2 images"):
        records.union_accuracy(some[:3])
    with pytest.raises(InputError, match="records: got none"):
        certification.certified_accuracy([], [0.0])


def test_labels_and_images_belong_together():
    images = data().images
    with pytest.raises(InputError, match="labels of x: got 4, expected one for each of the 5"):
        pj.data.Dataset("x", "test", images, np.zeros(4, np.int32), 3)
    with pytest.raises(InputError, match="labels of x: got a list, expected an array"):
        pj.data.Dataset("x", "test", images, [0, 0, 0, 0, 0], 3)
    empty = pj.data.Dataset("x", "test", images[:0], np.zeros(0, np.int32), 3)
    for call in (
        lambda: evaluation.evaluate(jax.random.key(0), linear, {}, empty),
        lambda: certification.certify(jax.random.key(0), linear, empty, sigma=0.1),
        lambda: evaluation.map_images(linear, jax.random.key(0), images[:0]),
    ):
        with pytest.raises(InputError, match="images: got none, expected at least one"):
            call()
    with pytest.raises(InputError, match=r"arrays: got \[5, 4\] rows"):
        evaluation.map_images(linear, jax.random.key(0), images, images[:4])


@pytest.mark.parametrize("threshold", [float("nan"), float("inf")])
def test_thresholds_are_numbers(threshold):
    statistic = detection.score_norm(lambda x: x)
    purifier = pj.ADP(lambda x: -x)
    for call in (
        lambda: detection.Judge(linear, statistic, threshold),
        lambda: detection.Evading(linear, statistic, threshold),
        lambda: detection.flagged_share([1.0], threshold),
        lambda: detection.deciding_purifier(purifier, statistic, threshold, 0.1),
    ):
        with pytest.raises(InputError, match="threshold: got (nan|inf), expected a finite number"):
            call()


def test_a_damaged_line_of_records_is_computed_again(tmp_path):
    """Also one that is still a record of its image and attack: another verdict, or under another name."""
    path = tmp_path / "records.jsonl"
    run = lambda: evaluate(execution=pj.Execution(batch_size=2, workdir=tmp_path))
    first, content = run(), path.read_bytes()
    lines = content.splitlines(keepends=True)
    verdicts = b'"one_draw": true', b'"one_draw": false'
    right, wrong = verdicts if verdicts[0] in lines[3] else reversed(verdicts)
    altered = [lines[3].replace(right, new) for new in (wrong, right.replace(b"one", b" one"))]
    for damage in (*altered, b"\0\0\0\n", b"[1]\n", b'{"attack": "clean"}\n', b'"x"\n'):
        assert damage != lines[3]
        path.write_bytes(b"".join([*lines[:3], damage, *lines[4:]]))
        with pytest.raises(InputError, match="line 4 of .* is damaged"):
            records.read_records(path)
        assert run() == first
        assert path.read_bytes() == content
    assert records.read_records(path)[1] == first
    path.write_bytes(b"7\n")
    with pytest.raises(InputError, match="cannot be read"):
        records.read_records(path)
    with pytest.raises(InputError, match="belongs to another evaluation"):
        run()
