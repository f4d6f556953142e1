"""Work in pieces: within a budget, after running out of memory, on two devices; the numbers are the same."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, XLA_FLAGS, environment

import purify_jax as pj
from purify_jax import attacks
from purify_jax.devices import memory, pieces, sharding
from purify_jax.devices.chunks import Chunk
from purify_jax.pytrees import Partial

COUNT, WIDTH = 32, 64
#: A budget for the mean over 4 draws of 4 restarts → what is computed at once.
BUDGETS = {"40MB": (8, 4, 4), "3MB": (1, 2, 4)}


def _score(weights, images):
    return jnp.tanh(images @ weights) @ weights.T - images


def _logits(weights, images):
    return jnp.mean(jnp.tanh(images @ weights), axis=(1, 2))[:, :10]


@pytest.fixture
def made():
    """A defense of 4 restarts whose hidden layer takes 0.26 MB an image and restart, and images."""
    keys = jax.random.split(jax.random.key(0), 2)
    weights = jax.random.normal(keys[0], (3, WIDTH))
    purifier = pj.purifier(Partial(_score, weights), num_steps=2, noise_scale=0.1, num_restarts=4)
    images = np.asarray(jax.random.uniform(keys[1], (COUNT, 32, 32, 3)))
    labels = np.arange(COUNT) % 10
    return pj.defend(purifier, Partial(_logits, weights)), images, labels


TWO_DEVICES = """
import jax, jax.numpy as jnp, numpy as np, purify_jax as pj
from purify_jax.devices import pieces, sharding

weights = jax.random.normal(jax.random.key(0), (3, 64))
score = lambda weights, x: jnp.tanh(x @ weights) @ weights.T - x
logits = lambda weights, x: jnp.mean(x, axis=(1, 2)) @ weights[:, :10]  # of all restarts, in little memory
purifier = pj.purifier(pj.Partial(score, weights), pj.purifiers.Constant(0.1), num_restarts=16)
defense = pj.defend(purifier, pj.Partial(logits, weights))
images, keys = np.full((6, 32, 32, 3), 0.5, np.float32), pj.image_keys(jax.random.key(1), np.arange(6))
found = pieces.over_images(defense, sharding.data_mesh())(keys, images)
(chunk,) = pieces._chosen.values()
print(*chunk, np.abs(found - defense(keys, images)).max())
"""


@pytest.fixture(autouse=True)
def forgotten(monkeypatch, tmp_path):
    """No choices of before, in this process or on disk."""
    monkeypatch.setattr(pieces, "_chosen", {})
    monkeypatch.setattr(pieces, "_said", set())
    monkeypatch.setattr(pieces, "_folder", lambda: tmp_path)


@pytest.fixture
def compiled(monkeypatch):
    """What is compiled to be measured."""
    seen = []
    real = memory.compiled_bytes
    monkeypatch.setattr(memory, "compiled_bytes", lambda c: seen.append(real(c)) or seen[-1])
    return seen


def _keys(count=COUNT):
    return pj.image_keys(jax.random.key(1), np.arange(count))


def _mean(defense, samples_at_once=None):
    return attacks.average_draws(defense, 4, samples_at_once)


def test_what_obviously_fits_is_neither_compiled_to_be_measured_nor_mentioned(
    made, compiled, capfd
):
    defense, images, _ = made
    run = pieces.over_images(defense, None)
    np.testing.assert_array_equal(run(_keys(), images), pj.jit(defense)(_keys(), images))
    assert (compiled, capfd.readouterr().err) == ([], "")
    assert list(pieces._chosen.values()) == [Chunk(COUNT, 1, 4)]


def test_a_small_budget_divides_the_work_and_changes_no_numbers(made, monkeypatch, capfd):
    defense, images, _ = made
    mean = _mean(defense)
    whole = np.asarray(pj.jit(mean)(_keys(), images))
    for budget, chunk in BUDGETS.items():
        monkeypatch.setenv(memory.VARIABLE, budget)
        pieces._chosen.clear()
        run = pieces.over_images(mean, None)
        np.testing.assert_allclose(run(_keys(), images), whole, rtol=1e-5, atol=1e-5)
        assert list(pieces._chosen.values()) == [chunk], budget
        said = capfd.readouterr().err.splitlines()
        assert len(said) == 1
        assert said[0].startswith("memory: ")
        run(_keys(), images)
        assert capfd.readouterr().err == ""


def test_a_number_that_was_given_is_kept_to(made, monkeypatch):
    defense, images, _ = made
    monkeypatch.setenv(memory.VARIABLE, "1KB")
    run = pieces.over_images(_mean(defense, 4), None)
    run(_keys(), images)
    assert list(pieces._chosen.values()) == [Chunk(1, 1, 1)]
    assert run._limited(Chunk(1, 1, 1)).function.samples_at_once == 4


def test_what_was_measured_is_remembered(made, monkeypatch, compiled, tmp_path):
    defense, images, _ = made
    (budget, chunk), *_ = BUDGETS.items()
    monkeypatch.setenv(memory.VARIABLE, budget)
    run = lambda: pieces.over_images(_mean(defense), None)(_keys(), images)
    run()
    assert len(compiled) == 3  # all, one image, and what was chosen
    (file,) = tmp_path.glob("*.json")
    pieces._chosen.clear()
    run()
    assert len(compiled) == 3
    file.write_text("{damaged")
    pieces._chosen.clear()
    run()
    assert len(compiled) == 6
    assert list(pieces._chosen.values()) == [chunk]


def test_it_is_kept_beside_the_compiled_programs(monkeypatch):
    monkeypatch.undo()
    assert pieces._folder() == Path(jax.config.jax_compilation_cache_dir) / "memory"


def test_a_device_that_runs_out_of_memory_gets_half(made, monkeypatch, capfd):
    defense, images, _ = made
    whole, real, sizes = np.asarray(defense(_keys(), images)), sharding.over_images, []

    def at_most_ten(function, *where):
        run = real(function, *where)

        def call(keys, images):
            sizes.append(len(images))
            if len(images) > 10:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1")
            return run(keys, images)

        call.trace = run.trace
        return call

    monkeypatch.setattr(sharding, "over_images", at_most_ten)
    run = pieces.over_images(defense, None)
    np.testing.assert_allclose(run(_keys(), images), whole, rtol=1e-5, atol=1e-6)
    assert sizes == [32, 16, 8, 8, 8, 8]
    run(_keys(), images)
    assert sizes[6:] == [8, 8, 8, 8]
    assert [line.split(", ")[0] for line in capfd.readouterr().err.splitlines()] == [
        "memory: the device ran out of it", "memory: the device ran out of it",
    ]  # fmt: skip


def test_other_errors_of_the_device_come_out(made, monkeypatch):
    defense, images, _ = made

    def broken(function, *where):
        def call(*arguments):
            raise jax.errors.JaxRuntimeError("INTERNAL: it burns")

        call.trace = sharding.jit(function).trace
        return call

    monkeypatch.setattr(sharding, "over_images", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="it burns"):
        pieces.over_images(defense, None)(_keys(), images)


def test_records_do_not_know_of_it(made, monkeypatch, tmp_path):
    """Their header is the same, the numbers too, and a file is continued with another budget."""
    defense, images, labels = made
    data = pj.data.Dataset("made", "test", images[:16], labels[:16].astype(np.int32), 10)
    attack = attacks.PGD(attacks.eot(attacks.exact(defense), 2), epsilon=0.05, num_steps=2)
    path = tmp_path / "records.jsonl"
    run = lambda path=None: pj.evaluate(
        jax.random.key(0), defense, {"pgd": attack}, data, draws=2, batch_size=16, path=path
    )
    monkeypatch.setenv(memory.VARIABLE, "unlimited")
    whole = run(path)
    content = path.read_bytes()
    monkeypatch.setenv(memory.VARIABLE, "20MB")
    for found, expected in zip(run(), whole, strict=True):
        assert found == expected | {
            name: pytest.approx(expected[name], abs=1e-3) for name in ("loss", "own_loss", "l2")
        }
    assert {chunk.images for chunk in pieces._chosen.values()} == {16, 2}
    path.write_bytes(content[: content.index(b"pgd", len(content) // 2)])
    run(path)
    header = lambda text: text.splitlines()[0]
    assert header(path.read_bytes()) == header(content)
    assert len(path.read_bytes().splitlines()) == len(content.splitlines())


def test_a_batch_on_two_devices_is_divided_for_both():
    """A chunk is a multiple of the devices, and each of them has its share of the memory."""
    flags = f"--xla_force_host_platform_device_count=2 {XLA_FLAGS}"
    done = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES],
        env=environment() | {"XLA_FLAGS": flags, memory.VARIABLE: "2MB", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *chunk, difference = map(float, done.stdout.split())
    assert chunk == [2, 1, 4]
    assert difference < 1e-5


def test_what_needs_more_than_there_is_finishes_within_it(made, monkeypatch):
    """As compiled: more than 500 MB as one piece, at most 200 MB in the programs that ran, results equal."""
    defense, images, labels = made
    gradient = attacks.eot(attacks.exact(defense), 4)
    taken = lambda run, *arguments: memory.compiled_bytes(run.trace(*arguments).lower().compile())
    assert taken(pj.jit(gradient), _keys(), images, labels) > 500e6
    whole = np.asarray(pj.jit(gradient)(_keys(), images, labels)[0])
    monkeypatch.setenv(memory.VARIABLE, "200MB")
    run = pieces.over_images(gradient, None)
    # The loss is of the whole batch: attacks follow the gradient.
    found = run(_keys(), images, labels)[0]
    (chunk,) = pieces._chosen.values()
    n = chunk.images
    assert n < COUNT
    assert taken(run._limited(chunk), _keys()[:n], images[:n], labels[:n]) <= 200e6
    np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-6 * np.abs(whole).max())
