"""Adversarial training through the purifier: what is attacked, what trains, what it brings, collapse."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import purify_jax as pj
from experiments.common import from_config
from experiments.configs import digits_defense
from purify_jax import attacks
from purify_jax.checks import InputError
from purify_jax.keys import stream
from purify_jax.training import DefenseSettings, adversarial, fit
from purify_jax.training.adversarial import loss as losses
from purify_jax.training.step import start_state

EPSILON = 0.15
ATTACK = adversarial.Attack(epsilon=EPSILON)
SETTINGS = DefenseSettings(num_steps=60, batch_size=64, schedule="constant", steps_per_dispatch=20,
                           checkpoint_every=20, attack=ATTACK)  # fmt: skip
ONE_STEP = {"method": "tweedie", "noise_scale": 0.2}


@pytest.fixture(scope="module")
def shipped():
    return pj.pretrained.load("digits")


@pytest.fixture(scope="module")
def train():
    return pj.data.load_split("digits", "train")


def _loss(shipped, trainable=("classifier", "purifier"), **changes):
    everything = {"classifier": shipped.classifier.params, "purifier": shipped.score_model.params}
    made = adversarial.DefenseLoss(
        {k: v for k, v in everything.items() if k not in trainable},
        denoising_weight=0.5,
        label_smoothing=0.1,
        parts=losses.parts_of(shipped.classifier, shipped.score_model, ONE_STEP),
        attack=ATTACK,
    )
    return made.replace(**changes), {k: everything[k] for k in trainable}


@pytest.mark.ci
def test_the_loss_is_that_of_an_attack_through_everything(shipped, train):
    loss, params = _loss(shipped)
    images, labels = (jnp.asarray(a) for a in train.batch(np.arange(32)))
    keys = pj.image_keys(jax.random.key(0), np.arange(32))
    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, (metrics, _)), grads = gradient(params, {}, keys, images, labels)

    # The same from the library's own pieces: FGSM of 1.25 ε from a random start, fresh noise after it.
    purifier = pj.models.model_purifier(shipped.score_model, **ONE_STEP, num_restarts=1)
    defense = pj.Defense(purifier, pj.models.logits_fn(shipped.classifier))
    attack = attacks.PGD(
        attacks.ExactGradient(defense), epsilon=EPSILON, num_steps=1, step_size=1.25 * EPSILON,
        best_iterate=False,
    )  # fmt: skip
    attacked = pj.jit(attack)(stream(keys, "attack"), images, labels)
    assert 0.9 * EPSILON < float(jnp.abs(attacked - images).max()) <= EPSILON + 1e-6
    purified = pj.jit(purifier)(stream(keys, "predict"), attacked)[0][0]
    logits = pj.jit(pj.models.logits_fn(shipped.classifier))(purified)
    targets = 0.9 * jax.nn.one_hot(labels, 10) + 0.01
    cross_entropy = -(targets * jax.nn.log_softmax(logits)).sum(-1).mean()
    assert float(metrics["cross_entropy"]) == pytest.approx(float(cross_entropy), rel=1e-3)
    expected = metrics["cross_entropy"] + 0.5 * metrics["denoising"]
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    assert set(grads) == {"classifier", "purifier"}
    for part in grads:  # both parts learn
        assert float(optax.global_norm(grads[part])) > 1e-3


def test_the_denoising_term_alone_is_that_of_score_training(shipped, train):
    loss, params = _loss(shipped)
    images, _ = train.batch(np.arange(16))
    keys = pj.image_keys(jax.random.key(1), np.arange(16))
    found = jax.jit(loss.denoising)(params["purifier"], keys, images)
    score_fn = pj.models.score_fn(shipped.score_model)
    scale = pj.noise.SCALES[shipped.score_model.metadata["training"]["scale"]]
    by_hand = lambda x: pj.losses.denoising_score_matching(
        score_fn, keys, x, jnp.array([0.2]), scale
    )
    expected = jax.jit(by_hand)(images).mean()
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def _attacked_accuracy(classifier, score_model, dataset, count=128):
    logits_fn = pj.models.logits_fn(classifier)
    if score_model is None:
        defense = pj.undefended(logits_fn)
    else:
        defense = pj.Defense(pj.models.model_purifier(score_model), logits_fn)
    attack = attacks.PGD(attacks.ExactGradient(defense), epsilon=EPSILON, num_steps=10)
    images, labels = (jnp.asarray(a) for a in dataset.batch(np.arange(count)))
    keys = pj.image_keys(jax.random.key(5), np.arange(count))
    adversarial_images = pj.jit(attack)(keys, images, labels)
    predicted = pj.jit(defense)(stream(keys, "predict"), adversarial_images).argmax(-1)
    return float((predicted == labels).mean())


@pytest.mark.ci
@pytest.mark.parametrize("control", [False, True])
def test_it_makes_a_defense_robust(control, shipped, train, digits_test):
    config = digits_defense.get_config()
    config.defense.update({"steps": 300, "checkpoint_every": 300, "steps_per_dispatch": 100})
    score_model = None if control else shipped.score_model
    made = from_config.train_defense(config, train, pj.Execution(), shipped.classifier, score_model)
    started = None if control else pj.models.Model(
        score_model.role, score_model.network, score_model.variables, score_model.image_shape,
        {**score_model.metadata, "purification": {**config.defense.purification, "num_restarts": 1}},
    )  # fmt: skip
    before = _attacked_accuracy(shipped.classifier, started, digits_test)
    after = _attacked_accuracy(made.classifier, made.score_model, digits_test)
    # A purifier already takes most attacks of so few draws away; the bare classifier has more to gain.
    assert after > before + (0.3 if control else 0.06), (before, after)
    assert (made.score_model is None) == control
    if not control:  # it purifies as it was trained to, and says so in its file
        assert made.score_model.metadata["purification"]["method"] == "tweedie"
        assert made.classifier.metadata["defense"]["purifier"]["noise_scale"] == 0.25


@pytest.mark.ci
def test_only_what_is_trainable_trains_and_a_resumed_run_ends_with_the_same_bits(
    shipped, train, tmp_path
):
    def run(num_steps, folder):
        settings = dataclasses.replace(SETTINGS, num_steps=num_steps, trainable="purifier")
        return adversarial.train_defense(
            shipped.classifier, train, settings, score_model=shipped.score_model, purification=ONE_STEP,
            execution=pj.Execution(workdir=folder),
        )  # fmt: skip

    whole = run(40, tmp_path / "whole")
    chex.assert_trees_all_equal(whole.classifier.params, shipped.classifier.params)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(whole.score_model.params, shipped.score_model.params)
    run(20, tmp_path / "parts")
    resumed = run(40, tmp_path / "parts")
    chex.assert_trees_all_equal(resumed.score_model.params, whole.score_model.params)
    lines = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [20, 40]
    assert all(0 <= json.loads(line)["probe_accuracy"] <= 1 for line in lines)


@pytest.mark.ci
def test_a_collapse_ends_the_run_and_keeps_what_was_saved(shipped, train, tmp_path):
    """The accuracy of the probe is that of the state: with a ruined classifier it falls."""
    loss, params = _loss(shipped, ("classifier",))
    probe = train.batch(np.arange(64))
    watch = losses.watch(loss, probe, ATTACK, jax.random.key(0))
    state = pj.training.TrainState(jnp.int32(0), params, params, {}, (), {})
    before = watch(0, state, [])
    assert before["probe_accuracy"] > 0.5
    ruined = state.replace(params=jax.tree.map(jnp.zeros_like, params))
    with pytest.raises(adversarial.Collapsed, match="fell from 0.* at step 7"):
        watch(7, ruined, [before, {}])

    seen = []

    def raising(step, state, history):
        seen.append(step)
        if step == 40:
            raise adversarial.Collapsed("defense: collapsed")
        return {}

    optimizer = SETTINGS.optimizer()
    start = start_state({"params": params}, optimizer)
    steps = pj.training.scan_steps(loss, optimizer, jax.random.key(1))
    with pytest.raises(adversarial.Collapsed):
        fit(steps, start, train, SETTINGS, execution=pj.Execution(workdir=tmp_path), watch=raising)
    assert seen == [20, 40]
    saved = [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]
    assert saved == ["20"]


@pytest.mark.ci
@pytest.mark.parametrize("method", pj.models.METHODS)
def test_a_defense_trains_with_every_method(method, train):
    """The purifier is built from traced parameters in each step: its structure may not depend on them."""
    energy = pj.networks.MLP(features=(4,))
    classifier = pj.networks.ConvNet(features=(2,), hidden=4, num_outputs=10)
    shape, images = train.image_shape, jnp.zeros((1, *train.image_shape))
    make = lambda role, network, **metadata: pj.models.Model(
        role, network, network.init(jax.random.key(0), images), shape, metadata
    )
    few = {"method": method, "num_steps": 2, "noise_scale": 0.02}
    used = {n: v for n, v in few.items() if n in ("method", *pj.models.METHODS[method].settings)}
    made = adversarial.train_defense(
        make("classifier", classifier),
        train.take(24),
        DefenseSettings(
            num_steps=1,
            batch_size=4,
            schedule="constant",
            steps_per_dispatch=1,
            attack=ATTACK,
            probe_images=4,
            probe_steps=1,
        ),
        score_model=make("energy", energy, training={"scale": "per_variance", "sigma_min": 0.01}),
        purification=used,
    )
    assert made.finished
    restarts = {} if method == "denoise" else {"num_restarts": 1}
    assert made.score_model.metadata["purification"] == {**used, **restarts}
    for leaf in jax.tree.leaves((made.score_model.params, made.classifier.params)):
        assert np.isfinite(leaf).all()


#: What is no setting, but a parameter.
GIVEN = ("score_model", "purification")
BAD = {
    "trainable": ({"trainable": "all"}, "trainable: got 'all'"),
    "nothing to train": ({"score_model": None}, "without a purifier"),
    "method": ({"purification": {"method": "magic"}}, "method: got 'magic'"),
    "weight": ({"denoising_weight": -1.0}, "denoising_weight"),
    "probe": ({"probe_images": 10_000}, "probe_images: got 10000"),
    "probe steps": ({"probe_steps": 0}, "probe_steps"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name, shipped, train):
    changes, message = BAD[name]
    given = {"score_model": shipped.score_model, **{n: v for n, v in changes.items() if n in GIVEN}}
    changed = {n: v for n, v in changes.items() if n not in GIVEN}
    tried = lambda: adversarial.train_defense(
        shipped.classifier, train, dataclasses.replace(SETTINGS, **changed), **given
    )
    with pytest.raises(InputError, match=message) as caught:
        tried()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"epsilon": -1.0},
        {"epsilon": 0.1, "num_steps": 0},
        {"epsilon": 0.1, "norm": "l7"},
        {"epsilon": 0.1, "start_noise": -1.0},
    ],
)
def test_bad_attacks_are_named(settings):
    with pytest.raises(InputError):
        adversarial.Attack(**settings)


def test_one_step_from_a_noisy_start_in_closed_form():
    """N-FGSM: of two linear logits the gradient's sign is that of the difference of their weights."""
    weights = 0.1 * jax.random.normal(jax.random.key(0), (8 * 8 * 3, 2))
    defense = pj.undefended(lambda x: x.reshape(len(x), -1) @ weights)
    images = jax.random.uniform(jax.random.key(1), (6, 8, 8, 3))
    keys, labels = pj.image_keys(jax.random.key(2), np.arange(6)), jnp.array([0, 1, 1, 0, 0, 1])
    noised = adversarial.Attack(epsilon=0.1, start_noise=2.0).on(defense)
    attacked = np.asarray(noised(keys, images, labels))
    away = np.sign(
        np.where(np.asarray(labels)[:, None], -1, 1) * np.asarray(weights[:, 1] - weights[:, 0])
    )
    start = jnp.clip(
        images + attacks.norms.get("linf").random(stream(keys, "start"), images, 0.2), 0, 1
    )
    expected = np.clip(start + 0.1 * away.reshape(images.shape), 0, 1)
    np.testing.assert_allclose(attacked, expected, atol=1e-6)
    assert 0.25 < np.abs(attacked - images).max() <= 0.3 + 1e-6  # further than the ball of epsilon


@pytest.mark.ci
def test_the_binary(run_binary, model_files, tmp_path):
    score_model, classifier = model_files
    args = (
        "train_defense", "--config=digits_defense", f"--classifier={classifier}", f"--score_model={score_model}",
        f"--workdir={tmp_path / 'run'}", "--config.defense.steps=4",
        "--config.defense.steps_per_dispatch=2", "--config.defense.probe_images=16", "--noprogress",
    )  # fmt: skip
    run_binary(*args)
    made = pj.load_model(tmp_path / "run" / "score_model.safetensors", ("energy",))
    assert made.metadata["purification"]["method"] == "tweedie"
    trained = pj.load_model(tmp_path / "run" / "classifier.safetensors")
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(trained.params, pj.load_model(classifier).params)
    done = run_binary("train_defense", "--config=digits", *args[2:5], check=False)
    assert done.returncode == 1
    assert "has no section 'defense'" in done.stderr
