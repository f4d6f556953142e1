"""How much is computed side by side, in closed form; amounts of memory; which numbers may be lowered."""

import jax.numpy as jnp
import numpy as np
import pytest

import purify_jax as pj
from purify_jax import attacks
from purify_jax.checks import InputError
from purify_jax.devices import chunks, memory
from purify_jax.devices.chunks import Chunk
from purify_jax.pytrees import UpTo


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


def test_what_cannot_be_compiled_is_halved_until_it_can():
    need = lambda chunk: np.inf if chunk.images > 20 else 20 * chunk.images
    assert chunks.choose(need, 200, Chunk(64)) == Chunk(8)


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


def test_only_open_numbers_are_lowered():
    purifier = pj.purifier(jnp.negative, num_restarts=4)
    defense = pj.defend(purifier, lambda x: x.mean((1, 2)))
    mean = lambda *at_once: attacks.average_draws(*at_once[:1], 4, *at_once[1:])
    at_once = lambda m: (
        m.samples_at_once, m.defense.purifier.restarts_at_once,
    )  # fmt: skip
    low = lambda m: at_once(chunks.lowered(m, Chunk(1, 2, 3)))
    assert low(mean(defense)) == (2, 3)
    assert low(mean(defense, UpTo(4))) == (2, 3)
    assert low(mean(defense, UpTo(1))) == (UpTo(1), 3)
    pinned = defense.replace(purifier=defense.purifier.replace(restarts_at_once=4))
    assert low(mean(pinned, 4)) == (4, 4)
    whole = mean(defense)
    assert at_once(chunks.lowered(whole, Chunk(1, 4, 4))) == at_once(whole)
