"""What is computed side by side: the choice in closed form, and that it changes no numbers."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purify_jax as pj
from purify_jax import attacks
from purify_jax.checks import InputError
from purify_jax.devices import chunks, memory, sharding
from purify_jax.devices.chunks import Chunk
from purify_jax.pytrees import Partial, UpTo

COUNT, WIDTH = 32, 64
#: A budget for the mean over 4 draws of 4 restarts → what is computed at once.
BUDGETS = {"40MB": (8, 4, 4), "2.5MB": (1, 2, 4)}


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


@pytest.fixture(autouse=True)
def forgotten(monkeypatch, tmp_path):
    """No choices of before, in this process or on disk."""
    monkeypatch.setattr(chunks, "_chosen", {})
    monkeypatch.setattr(chunks, "_said", set())
    monkeypatch.setattr(chunks, "_folder", lambda: tmp_path)


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
    return attacks.eot(attacks.exact(defense), 4, samples_at_once)


def _mean(defense, samples_at_once=None):
    return attacks.average_draws(defense, 4, samples_at_once)


# --- in closed form -----------------------------------------------------------------------------


def test_a_piece_is_the_largest_half_that_fits():
    for free, expected in ((1000, 64), (740, 64), (739, 32), (300, 16), (110, 1), (109, 0)):
        assert chunks.piece(100, 10, free, 64) == expected
    assert chunks.piece(0, 1, 20, 50) == 13  # 50, 25, 13
    assert chunks.piece(0, 1, 20, 48, multiple=8) == 16  # 48, 24, 16
    assert chunks.piece(0, 1, 7, 48, multiple=8) == 0
    assert chunks.piece(5, 0, 5, 64) == 64


def test_images_are_divided_first_then_samples_then_restarts():
    asked = []

    def need(chunk):
        asked.append(chunk)
        return 100 + 10 * chunk.images * chunk.samples * chunk.restarts

    most = Chunk(64, 4, 8)
    for free, expected in (
        (100 + 10 * 64 * 4 * 8, most),
        (100 + 10 * 16 * 4 * 8, Chunk(16, 4, 8)),
        (100 + 10 * 4 * 8, Chunk(1, 4, 8)),
        (100 + 10 * 2 * 8, Chunk(1, 2, 8)),
        (100 + 10 * 8, Chunk(1, 1, 8)),
        (100 + 10 * 3, Chunk(1, 1, 2)),
        (50, Chunk(1, 1, 1)),
    ):
        assert chunks.choose(need, free, most) == expected
    asked.clear()
    chunks.choose(need, 100 + 10 * 16 * 4 * 8, most)
    assert asked == [most, Chunk(1, 4, 8), Chunk(16, 4, 8)]


def test_a_line_that_said_too_little_is_corrected():
    need = lambda chunk: {64: 1000, 1: 10}.get(chunk.images, 20 * chunk.images)
    assert chunks.choose(need, 400, Chunk(64)) == Chunk(16)


def test_halves():
    ladder, chunk = [], Chunk(5, 3, 2)
    while chunk is not None:
        ladder.append(chunk)
        chunk = chunks.half(chunk)
    assert ladder == [(5, 3, 2), (3, 3, 2), (2, 3, 2), (1, 3, 2), (1, 2, 2), (1, 1, 2), (1, 1, 1)]
    assert chunks.half(Chunk(24), 8) == Chunk(16)
    assert chunks.half(Chunk(16), 8) == Chunk(8)
    assert chunks.half(Chunk(8), 8) is None


def test_amounts():
    assert [memory.amount(t) for t in ("200MB", "1.5 gb", "4096", "7B", "2k", "unlimited")] == [
        200e6, 1.5e9, 4096, 7, 2000, np.inf,
    ]  # fmt: skip
    for text in ("", "-3GB", "0MB", "much", "1PB", "nan"):
        with pytest.raises(InputError, match="PURIFY_JAX_MEMORY: got"):
            memory.amount(text)


def test_free_memory_is_the_least_of_the_machine_and_its_control_groups(tmp_path):
    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    assert memory.host_free(tmp_path) == np.inf
    write("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    write("proc/self/cgroup", "4:cpu,memory:/a/b\n2:cpuset:/c\n0::/job/step\n")
    assert memory.host_free(tmp_path) == 5000 * 1024
    write("sys/fs/cgroup/job/memory.max", "4000000\n")
    write("sys/fs/cgroup/job/memory.current", "3000000\n")
    write("sys/fs/cgroup/job/memory.stat", "anon 5\ninactive_file 500000\n")
    write("sys/fs/cgroup/job/step/memory.max", "max\n")
    write("sys/fs/cgroup/job/step/memory.current", "100\n")
    assert memory.host_free(tmp_path) == 1500000
    write("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "900000")
    write("sys/fs/cgroup/memory/a/b/memory.usage_in_bytes", "100000")
    assert memory.host_free(tmp_path) == 800000


def test_only_open_numbers_are_lowered(made):
    defense, _, _ = made
    at_once = lambda mean: (
        mean.samples_at_once, mean.defense.purifier.restarts_at_once,
    )  # fmt: skip
    low = lambda mean: at_once(chunks.lowered(mean, Chunk(1, 2, 3)))
    assert low(_mean(defense)) == (2, 3)
    assert low(_mean(defense, UpTo(4))) == (2, 3)
    assert low(_mean(defense, UpTo(1))) == (UpTo(1), 3)
    pinned = defense.replace(purifier=defense.purifier.replace(restarts_at_once=4))
    assert low(_mean(pinned, 4)) == (4, 4)
    whole = _mean(defense)
    assert at_once(chunks.lowered(whole, Chunk(1, 4, 4))) == at_once(whole)


# --- what was chosen ----------------------------------------------------------------------------


def test_what_obviously_fits_is_neither_compiled_to_be_measured_nor_mentioned(
    made, compiled, capfd
):
    defense, images, _ = made
    run = chunks.over_images(defense, None)
    np.testing.assert_array_equal(run(_keys(), images), pj.jit(defense)(_keys(), images))
    assert (compiled, capfd.readouterr().err) == ([], "")
    assert list(chunks._chosen.values()) == [Chunk(COUNT, 1, 4)]


def test_a_small_budget_divides_the_work_and_changes_no_numbers(made, monkeypatch, capfd):
    defense, images, _ = made
    mean = _mean(defense)
    whole = np.asarray(pj.jit(mean)(_keys(), images))
    for budget, chunk in BUDGETS.items():
        monkeypatch.setenv(memory.VARIABLE, budget)
        chunks._chosen.clear()
        run = chunks.over_images(mean, None)
        np.testing.assert_allclose(run(_keys(), images), whole, rtol=1e-5, atol=1e-5)
        assert list(chunks._chosen.values()) == [chunk], budget
        said = capfd.readouterr().err.splitlines()
        assert len(said) == 1
        assert said[0].startswith("memory: ")
        run(_keys(), images)
        assert capfd.readouterr().err == ""


def test_a_number_that_was_given_is_kept_to(made, monkeypatch):
    defense, images, _ = made
    monkeypatch.setenv(memory.VARIABLE, "1KB")
    run = chunks.over_images(_mean(defense, 4), None)
    run(_keys(), images)
    assert list(chunks._chosen.values()) == [Chunk(1, 1, 1)]
    assert run._limited(Chunk(1, 1, 1)).function.samples_at_once == 4


def test_what_was_measured_is_remembered(made, monkeypatch, compiled, tmp_path):
    defense, images, _ = made
    (budget, chunk), *_ = BUDGETS.items()
    monkeypatch.setenv(memory.VARIABLE, budget)
    run = lambda: chunks.over_images(_mean(defense), None)(_keys(), images)
    run()
    assert len(compiled) == 3  # all, one image, and what was chosen
    (file,) = tmp_path.glob("*.json")
    chunks._chosen.clear()
    run()
    assert len(compiled) == 3
    file.write_text("{damaged")
    chunks._chosen.clear()
    run()
    assert len(compiled) == 6
    assert list(chunks._chosen.values()) == [chunk]


def test_it_is_kept_beside_the_compiled_programs(monkeypatch):
    monkeypatch.undo()
    assert chunks._folder() == Path(jax.config.jax_compilation_cache_dir) / "memory"


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
    run = chunks.over_images(defense, None)
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
        chunks.over_images(defense, None)(_keys(), images)


def test_what_needs_more_than_there_is_finishes_within_it(made, monkeypatch):
    """As compiled: more than 500 MB as one piece, at most 200 MB in the programs that ran, results equal."""
    defense, images, labels = made
    gradient = attacks.eot(attacks.exact(defense), 4)
    taken = lambda run, *arguments: memory.compiled_bytes(run.trace(*arguments).lower().compile())
    assert taken(pj.jit(gradient), _keys(), images, labels) > 500e6
    whole = np.asarray(pj.jit(gradient)(_keys(), images, labels)[0])
    monkeypatch.setenv(memory.VARIABLE, "200MB")
    run = chunks.over_images(gradient, None)
    # The loss is of the whole batch: attacks follow the gradient.
    found = run(_keys(), images, labels)[0]
    (chunk,) = chunks._chosen.values()
    n = chunk.images
    assert n < COUNT
    assert taken(run._limited(chunk), _keys()[:n], images[:n], labels[:n]) <= 200e6
    np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-6 * np.abs(whole).max())
