"""Work within a budget and after running out of memory: the numbers are the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purify_jax as pj
from purify_jax import attacks
from purify_jax.checks import InputError
from purify_jax.devices import memory, sharding
from purify_jax.devices.memory import Chunk
from purify_jax.evaluation.certification import ClassCounts
from purify_jax.pytrees import Partial

pytestmark = pytest.mark.usefixtures("compiled_with_optimisations")
COUNT, WIDTH = 32, 64


def test_halves():
    ladder, chunk = [], Chunk(5, 3, 2)
    while chunk is not None:
        ladder.append(chunk)
        chunk = chunk.halved()
    assert ladder == [(5, 3, 2), (3, 3, 2), (2, 3, 2), (1, 3, 2), (1, 2, 2), (1, 1, 2), (1, 1, 1)]
    assert [Chunk(n).halved(8) for n in (24, 16, 8)] == [Chunk(16), Chunk(8), None]


def test_images_are_divided_first_then_samples_then_restarts():
    asked = []

    def need(chunk):
        asked.append(chunk)
        return 100 + 10 * chunk.images * chunk.samples * chunk.restarts

    most = Chunk(64, 4, 8)
    for free, expected in (
        (100 + 10 * 64 * 4 * 8, most),
        (99 + 10 * 64 * 4 * 8, Chunk(32, 4, 8)),
        (100 + 10 * 16 * 4 * 8, Chunk(16, 4, 8)),
        (100 + 10 * 4 * 8, Chunk(1, 4, 8)),
        (100 + 10 * 2 * 8, Chunk(1, 2, 8)),
        (100 + 10 * 8, Chunk(1, 1, 8)),
        (100 + 10 * 3, Chunk(1, 1, 2)),
        (50, Chunk(1, 1, 1)),
    ):
        assert memory.choose(need, free, most) == expected
    asked.clear()
    memory.choose(need, 100 + 10 * 16 * 4 * 8, most)
    assert asked == [most, Chunk(16, 4, 8)]
    assert memory.choose(need, 100 + 10 * 20 * 4 * 8, Chunk(48, 4, 8), multiple=8) == (16, 4, 8)


def test_what_cannot_be_compiled_is_halved_until_it_can():
    need = lambda chunk: np.inf if chunk.images > 20 else 20 * chunk.images
    assert memory.choose(need, 200, Chunk(64)) == Chunk(8)


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
    write("proc/self/cgroup", "4:cpu,memory:/a/b\n0::/job/step\n")
    assert memory.host_free(tmp_path) == 5000 * 1024
    write("sys/fs/cgroup/job/step/memory.max", "max\n")
    assert memory.host_free(tmp_path) == 5000 * 1024
    write("sys/fs/cgroup/job/memory.max", "4000000\n")
    assert memory.host_free(tmp_path) == 4000000


def test_only_open_numbers_are_lowered():
    purifier = pj.ADP(jnp.negative, num_restarts=4)
    defense = pj.Defense(purifier, lambda x: x.mean((1, 2)))
    pinned = defense.replace(purifier=defense.purifier.replace(restarts_at_once=4))
    mean = lambda d, at_once=None: attacks.MeanPrediction(d, num_samples=8, samples_at_once=at_once)
    at_once = lambda m: (m.samples_at_once, m.defense.purifier.restarts_at_once)
    low = lambda m: at_once(memory.lowered(m, Chunk(1, 2, 3)))
    assert low(mean(defense)) == (2, 3)
    assert low(mean(defense, 4)) == (4, 3)
    assert low(mean(pinned, 4)) == (4, 4)
    whole = mean(defense)
    assert at_once(memory.lowered(whole, Chunk(1, 4, 4))) == (None, None)
    # By default at most 4 draws, 100 for certification, of which there may be fewer.
    assert memory.most_at_once(whole) == {"samples": 4, "restarts": 4}
    for samples, most in ((1000, 100), (50, 50)):
        counts = ClassCounts(pinned, 0.1, num_samples=samples)
        assert memory.most_at_once(counts) == {"samples": most, "restarts": 1}


# --- programs that run ----------------------------------------------------------------------------

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
    purifier = pj.ADP(Partial(_score, weights), num_steps=2, noise_scale=0.1, num_restarts=4)
    images = np.asarray(jax.random.uniform(keys[1], (COUNT, 32, 32, 3)))
    labels = np.arange(COUNT) % 10
    return pj.Defense(purifier, Partial(_logits, weights)), images, labels


@pytest.fixture(autouse=True)
def chosen(monkeypatch):
    """What is chosen, with nothing of before."""
    found = {}
    monkeypatch.setattr(memory, "_chosen", found)
    return found


def _keys():
    return pj.image_keys(jax.random.key(1), np.arange(COUNT))


def test_what_obviously_fits_is_neither_compiled_to_be_measured_nor_mentioned(
    made, chosen, monkeypatch, capfd
):
    monkeypatch.setattr(memory, "compiled_bytes", None)
    defense, images, _ = made
    run = memory.divided(defense, None)
    np.testing.assert_array_equal(run(_keys(), images), pj.jit(defense)(_keys(), images))
    assert capfd.readouterr().err == ""
    assert list(chosen.values()) == [Chunk(COUNT, 1, 4)]


@pytest.mark.ci
def test_a_small_budget_divides_the_work_and_changes_no_numbers(made, chosen, monkeypatch, capfd):
    defense, images, _ = made
    mean = attacks.MeanPrediction(defense, num_samples=4)
    whole = np.asarray(pj.jit(mean)(_keys(), images))
    for budget, chunk in BUDGETS.items():
        monkeypatch.setenv(memory.VARIABLE, budget)
        chosen.clear()
        run = memory.divided(mean, None)
        np.testing.assert_allclose(run(_keys(), images), whole, rtol=1e-5, atol=1e-5)
        assert list(chosen.values()) == [chunk], budget
        (said,) = capfd.readouterr().err.splitlines()
        assert said.startswith("memory: ")
        memory.divided(mean, None)(_keys(), images)
        assert capfd.readouterr().err == ""


@pytest.mark.ci
def test_a_number_that_was_given_is_kept_whatever_was_chosen_for_the_default(
    made, chosen, monkeypatch
):
    """4 samples that the user gave and at most 4 by default are two programs."""
    defense, images, _ = made
    monkeypatch.setenv(memory.VARIABLE, "3MB")
    mean = attacks.MeanPrediction(defense, num_samples=4)
    means = [mean.replace(samples_at_once=at_once) for at_once in (4, None)]
    given, default = (memory.divided(mean, None) for mean in means)
    for run in (given, default, given):
        run(_keys(), images)
    assert list(chosen.values()) == [Chunk(1, 1, 1), Chunk(1, 2, 4)]
    assert given.limited(Chunk(1, 1, 1)).function.samples_at_once == 4
    assert default.limited(Chunk(1, 2, 4)).function.samples_at_once == 2


def _over_images(monkeypatch, answer):
    """In place of the device: ``answer`` (a program, keys, images)."""
    real = sharding.over_images

    def over_images(function, *placed):
        run = real(function, *placed)
        call = lambda keys, images: answer(run, keys, images)
        call.trace = run.trace
        return call

    monkeypatch.setattr(sharding, "over_images", over_images)


@pytest.mark.ci
def test_a_device_that_runs_out_of_memory_gets_half(made, monkeypatch, capfd):
    defense, images, _ = made
    whole, sizes = np.asarray(defense(_keys(), images)), []

    def at_most_ten(run, keys, images):
        sizes.append(len(images))
        if len(images) > 10:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1")
        return run(keys, images)

    _over_images(monkeypatch, at_most_ten)
    run = memory.divided(defense, None)
    np.testing.assert_allclose(run(_keys(), images), whole, rtol=1e-5, atol=1e-6)
    assert sizes == [32, 16, 8, 8, 8, 8]
    run(_keys(), images)
    assert sizes[6:] == [8, 8, 8, 8]
    said = [line.split(", ")[0] for line in capfd.readouterr().err.splitlines()]
    assert said == ["memory: the device ran out of it"] * 2


def test_other_errors_of_the_device_come_out(made, monkeypatch):
    defense, images, _ = made

    def broken(run, keys, images):
        raise jax.errors.JaxRuntimeError("INTERNAL: it burns")

    _over_images(monkeypatch, broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="it burns"):
        memory.divided(defense, None)(_keys(), images)


@pytest.mark.ci
def test_records_do_not_know_of_it(made, chosen, monkeypatch, tmp_path):
    """Their header is the same, the numbers too, and a file is continued with another budget."""
    defense, images, labels = made
    data = pj.data.Dataset("made", "test", images[:16], labels[:16].astype(np.int32), 10)
    gradient = attacks.EOT(attacks.ExactGradient(defense), num_samples=2)
    attack = attacks.PGD(gradient, epsilon=0.05, num_steps=2)
    at = lambda workdir: pj.Execution(batch_size=16, workdir=workdir)
    run = lambda workdir=None: pj.evaluate(
        jax.random.key(0), defense, {"pgd": attack}, data, draws=2, execution=at(workdir)
    )
    monkeypatch.setenv(memory.VARIABLE, "unlimited")
    whole = run(tmp_path)
    content = (path := tmp_path / "records.jsonl").read_bytes()
    monkeypatch.setenv(memory.VARIABLE, "20MB")
    for found, expected in zip(run(), whole, strict=True):
        assert found == expected | {
            name: pytest.approx(expected[name], abs=1e-3) for name in ("loss", "own_loss", "l2")
        }
    assert {chunk.images for chunk in chosen.values()} == {16, 2}
    path.write_bytes(content[: content.index(b"pgd", len(content) // 2)])
    run(tmp_path)
    header = lambda text: text.splitlines()[0]
    assert header(path.read_bytes()) == header(content)
    assert len(path.read_bytes().splitlines()) == len(content.splitlines())


@pytest.mark.ci
def test_what_needs_more_than_there_is_finishes_within_it(made, chosen, monkeypatch):
    """As compiled: more than 500 MB as one piece, at most 200 MB in the programs that ran, results equal."""
    defense, images, labels = made
    gradient = attacks.EOT(attacks.ExactGradient(defense), num_samples=4)
    taken = lambda run, *arguments: memory.compiled_bytes(run.trace(*arguments).lower().compile())
    assert taken(pj.jit(gradient), _keys(), images, labels) > 500e6
    whole = np.asarray(pj.jit(gradient)(_keys(), images, labels)[0])
    monkeypatch.setenv(memory.VARIABLE, "200MB")
    run = memory.divided(gradient, None)
    # The loss is of the whole batch: attacks follow the gradient.
    found = run(_keys(), images, labels)[0]
    (chunk,) = chosen.values()
    assert (n := chunk.images) < COUNT
    assert taken(run.limited(chunk), _keys()[:n], images[:n], labels[:n]) <= 200e6
    np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-6 * np.abs(whole).max())
