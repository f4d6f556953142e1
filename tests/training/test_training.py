"""Training resumes to the bit, as a real process that is really killed."""

import dataclasses
import functools
import json
import random
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import keys_for

import purify_jax as pj
from purify_jax import energy, networks, noise, training
from purify_jax.checks import InputError
from purify_jax.devices import compiling
from purify_jax.training import feeding
from purify_jax.training.checkpoints import digest
from tests.faults import harness


def _start(workdir, steps=400, **faults):
    return harness.start(
        "train_ebm", f"--workdir={workdir}", "--noprogress",
        f"--config.ebm.steps={steps}", "--config.ebm.steps_per_dispatch=20",
        "--config.ebm.checkpoint_every=40", "--config.ebm.network.features=(32,32)", **faults,
    )  # fmt: skip


def _wait_for_steps(workdir, step, running):
    path = Path(workdir) / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and running.process.is_alive():
        if path.exists() and path.read_text().count("\n") * 20 >= step:
            return
        time.sleep(0.01)


def _interrupted(workdir):
    """A long training that got SIGTERM after some steps."""
    running = _start(workdir, steps=200_000)
    _wait_for_steps(workdir, 60, running)
    running.process.terminate()
    return running.wait(120)


@pytest.mark.ci
def test_killed_and_resumed_ends_with_the_same_parameters(tmp_path):
    whole = _start(tmp_path / "whole").wait(300)
    assert whole.code == 0, whole.err
    chance = random.Random(1)
    for attempt in range(3):
        running = _start(tmp_path / "killed")
        _wait_for_steps(tmp_path / "killed", 100 * (attempt + 1), running)
        time.sleep(chance.uniform(0, 0.05))
        running.kill()
        assert running.wait().outcome == "killed"
    rest = _start(tmp_path / "killed").wait(300)
    assert rest.code == 0, rest.err
    files = [tmp_path / name / "model.safetensors" for name in ("whole", "killed")]
    first, second = (pj.models.load_model(f) for f in files)
    chex.assert_trees_all_equal(first.params, second.params)
    metrics = [(tmp_path / n / "metrics.jsonl").read_text() for n in ("whole", "killed")]
    assert metrics[0] == metrics[1]
    assert [json.loads(line)["step"] for line in metrics[0].splitlines()] == list(
        range(20, 401, 20)
    )


@pytest.mark.ci
def test_sigterm_saves_and_exits_cleanly(tmp_path):
    done = _interrupted(tmp_path)
    assert done.code == 0, done.err
    assert "stopped by SIGTERM; saved" in done.out
    steps = [int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert max(steps) == last
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.ci
def test_a_disk_that_fills_up_leaves_the_previous_checkpoint(tmp_path):
    """The file size limit of the process stands in for a full disk."""
    _interrupted(tmp_path)
    before = pj.training.TrainingCheckpoints(tmp_path / "checkpoints")
    steps = sorted(before._manager.all_steps())
    before.close()

    full = _start(tmp_path, steps=200_000, file_size=8 * 1024).wait(300)
    assert full.code == 1
    last = full.err.strip().splitlines()[-1]
    assert last.startswith("error: saving:"), full.err[-2000:]
    after = pj.training.TrainingCheckpoints(tmp_path / "checkpoints")
    assert sorted(after._manager.all_steps()) == steps
    after.close()


def test_ema_and_step_in_closed_form():
    """One SGD step on ½w² with w = 1, rate 0.1: w = 0.9; the average's decay is (1 + 0)/(10 + 0)."""
    loss = lambda params, stats, keys, images, labels: (0.5 * params["w"] ** 2, ({}, stats))
    optimizer = optax.sgd(0.1)
    params = {"w": jnp.ones(())}
    state = training.TrainState(jnp.zeros((), int), params, params, {}, optimizer.init(params), {})
    new, metrics = training.train_step(
        loss, optimizer, state, keys_for(1), jnp.zeros(1), jnp.zeros(1)
    )
    np.testing.assert_allclose(new.params["w"], 0.9, rtol=1e-6)
    np.testing.assert_allclose(new.ema_params["w"], 0.1 * 1 + 0.9 * 0.9, rtol=1e-6)
    np.testing.assert_allclose(metrics["gradient_norm"], 1.0)
    assert int(new.step) == 1


def test_schedules():
    """Cosine: half the rate half way; constant: the rate; both after a linear warm-up."""

    def updates(steps, **more):
        settings = training.Settings(100, learning_rate=1.0, clip_norm=None, **more)
        return _updates(settings.optimizer(), steps)

    cosine = updates(100)
    np.testing.assert_allclose(cosine[[0, 50]], [1, 0.5], rtol=1e-4)
    constant = updates(100, schedule="constant")
    np.testing.assert_allclose(constant, 1, rtol=1e-4)
    warm = updates(20, schedule="constant", warmup_steps=10)
    np.testing.assert_allclose(warm[[0, 5, 15]], [0, 0.5, 1], atol=1e-4)


def _updates(optimizer, steps):
    params = jnp.ones(())
    state, found = optimizer.init(params), []
    for _ in range(steps):
        update, state = optimizer.update(jnp.ones(()), state, params)
        found.append(-float(update))
    return np.array(found)


def test_augmentation():
    images = jnp.arange(2 * 4 * 4 * 1.0).reshape(2, 4, 4, 1)
    flipped = training.random_flip(keys_for(2, 5), images)
    for i in range(2):
        assert jnp.array_equal(flipped[i], images[i]) or jnp.array_equal(
            flipped[i], images[i, :, ::-1]
        )
    many = training.random_flip(keys_for(2000), jnp.tile(images[:1], (2000, 1, 1, 1)))
    share = float(jnp.mean(jnp.all(many == images[0], axis=(1, 2, 3))))
    assert abs(share - 0.5) < 0.05
    crops = np.asarray(training.random_crop(keys_for(200), jnp.ones((200, 4, 4, 1)), 2))
    assert set(np.unique(crops.sum((1, 2, 3)))) == {a * b for a in (2, 3, 4) for b in (2, 3, 4)}


def test_zero_steps_are_named(digits_test):
    with pytest.raises(InputError, match="num_steps: got 0"):
        training.RunSettings(num_steps=0)
    with pytest.raises(InputError, match="batch_size: got 7, expected none: training has no use"):
        training.fit(
            None, None, digits_test, training.RunSettings(1), execution=pj.Execution(batch_size=7)
        )
    with pytest.raises(InputError, match="warmup_steps: got 5, expected fewer than num_steps = 5"):
        training.Settings(num_steps=5, warmup_steps=5)


@pytest.mark.ci
def test_streamed_data_give_the_same_parameters_as_resident_ones():
    dataset = pj.data.load_split("digits", "train[:100]")
    network, optimizer = networks.MLP((16,)), training.Settings(50).optimizer()
    loss = training.DSMLoss(
        noise.linear(0.5, 0.1, 8), network=network, score_factory=energy.NetworkScore,
        scale=noise.per_sigma,
    )  # fmt: skip
    flip = training.flip_at_random
    run = training.scan_steps(loss, optimizer, jax.random.key(0), augment=flip)

    def fit(stream):
        state = training.init_state(network, optimizer, jax.random.key(0), dataset.image_shape)
        # 33 steps in dispatches of 10: the last one is shorter; 100 images: batches straddle epochs.
        settings = training.RunSettings(33, 16, seed=3, steps_per_dispatch=10, stream=stream)
        return training.fit(run, state, dataset, settings).state.params

    chex.assert_trees_all_equal(fit(stream=True), fit(stream=False))


def test_dispatches_end_at_fixed_steps():
    plan = lambda start: [
        x.shape[0] for x in feeding.dispatches(50, start, 33, batch_size=4, seed=0, at_once=10)
    ]
    assert plan(0) == [10, 10, 10, 3]
    assert plan(17) == [3, 10, 3]
    assert plan(33) == []
    whole = np.concatenate([*feeding.dispatches(50, 0, 33, batch_size=4, seed=0, at_once=10)])
    rest = np.concatenate([*feeding.dispatches(50, 17, 33, batch_size=4, seed=0, at_once=10)])
    np.testing.assert_array_equal(whole[17:], rest)


def test_compiling_ahead_says_so_and_is_not_repeated():
    lines, compiled = [], []
    listen = lambda event, seconds, **_: (
        compiled.append(event) if "backend_compile" in event else None
    )
    function = jax.jit(lambda x: jax.lax.scan(lambda y, _: (y @ y, None), x, length=3)[0])
    x = jnp.ones((100, 100))
    jax.monitoring.register_event_duration_secs_listener(listen)
    compiling.ahead_of_time(function, x, announce=lines.append)
    assert compiled
    count = len(compiled)
    function(x)
    jax.monitoring.unregister_event_duration_listener(listen)
    assert len(compiled) == count
    assert lines[0] == "compiling ..."
    # One turn of the loop: 100³ multiplications and as many additions, to three digits.
    assert "; 0.002 GFLOP a step" in lines[1]
    assert "MB of temporary memory" in lines[1]


def test_a_classifier_goes_on_from_another_one():
    dataset = pj.data.load_split("digits", "train").take(64)
    ready = pj.pretrained.load("digits").classifier
    settings = training.ClassifierSettings(2, 16, learning_rate=0.0, ema_decay=0.5)
    made, _ = pj.train_classifier(ready.network, dataset, settings, start=ready)
    chex.assert_trees_all_close(made.params, ready.params, rtol=1e-6)  # the average rounds
    fresh, _ = pj.train_classifier(ready.network, dataset, settings)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(fresh.params, ready.params, rtol=1e-6)
    other = networks.build({"name": "ConvNet", "features": (3,), "hidden": 4, "num_outputs": 10})
    with pytest.raises(
        InputError, match="start: got the network {.*expected the one that is trained, {"
    ):
        pj.train_classifier(other, dataset, settings, start=ready)


@pytest.mark.ci
def test_a_score_network_goes_on_from_another_one(tmp_path):
    dataset = pj.data.load_split("digits", "train").take(64)
    ready = pj.pretrained.load("digits").score_model
    kept = dict(learning_rate=0.0, ema_decay=0.5, sigmas=[0.1, 0.5])
    how = {"role": ready.role, "scale": ready.metadata["training"]["scale"]}
    settings = training.ScoreSettings(2, 16, **kept, **how)
    train = functools.partial(pj.train_score_model, ready.network, dataset)
    made, _ = train(settings, start=ready, execution=pj.Execution(workdir=tmp_path / "one"))
    chex.assert_trees_all_close(made.params, ready.params, rtol=1e-6)  # the average rounds
    # The chain of stages is in the header, and a stage says of which weights it is the next.
    again, _ = train(settings, start=made)
    before = again.metadata["training"]["start"]
    assert before["start"]["sigma_max"] == ready.metadata["training"]["sigma_max"]
    assert before["weights"] == digest(dict(made.variables))
    assert before["start"]["weights"] == digest(dict(ready.variables))
    fresh, _ = train(settings)
    assert "start" not in fresh.metadata["training"]
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(fresh.params, ready.params, rtol=1e-6)
    with pytest.raises(InputError, match="start: its weights are not those that the training"):
        train(settings, start=fresh, execution=pj.Execution(workdir=tmp_path / "one"))


def test_a_score_network_goes_on_from_its_like_only():
    dataset = pj.data.load_split("digits", "train").take(64)
    shipped = pj.pretrained.load("digits")
    ready = shipped.score_model
    role, scale = ready.role, ready.metadata["training"]["scale"]
    settings = functools.partial(training.ScoreSettings, 2, 16, sigmas=[0.1, 0.5])
    other = "score" if role == "energy" else "energy"
    for start, network, given, message in [
        (
            shipped.classifier,
            ready.network,
            {"role": role, "scale": scale},
            "start: a model of role 'classifier'",
        ),
        (ready, ready.network, {"role": other, "scale": scale}, f"expected .* {other!r}"),
        (
            ready,
            ready.network,
            {"role": role, "scale": "per_sigma"},
            f"scale {scale!r}, expected",
        ),
        (
            ready,
            networks.MLP(features=(4,)),
            {"role": role, "scale": scale},
            "start: got the network {",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            pj.train_score_model(network, dataset, settings(**given), start=start)
    wider = dataclasses.replace(ready, image_shape=(16, 16, 1))
    with pytest.raises(
        InputError, match=r"start: made for images \(16, 16, 1\), expected the data's \(8, 8, 1\)"
    ):
        pj.train_score_model(ready.network, dataset, settings(role=role, scale=scale), start=wider)
