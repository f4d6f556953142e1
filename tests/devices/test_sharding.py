"""Four virtual devices give the numbers of one; a checkpoint moves between them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import ROOT, XLA_FLAGS, environment

import purify_jax as pj
from purify_jax.checks import InputError
from purify_jax.devices import memory, sharding

WORK = """
import json, os, sys
import jax, numpy as np
import purify_jax as pj
from experiments.common import from_config
from experiments.configs import digits
from purify_jax.evaluation import corruption
from purify_jax import attacks, evaluation
from purify_jax.devices import sharding
from purify_jax.evaluation import certification

folder, steps, images = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if len(sys.argv) > 4:
    sharding.initialize(sys.argv[4], 2, int(sys.argv[5]))
config = digits.get_config()
config.ebm.steps, config.ebm.steps_per_dispatch, config.classifier.steps = steps, 20, 40
config.ebm.schedule = "constant"  # the cosine would depend on the number of steps
config.ebm.checkpoint_every, config.classifier.steps_per_dispatch = 20, 20
train, test = (pj.data.load_split("digits", s) for s in ("train", "test"))
placement = json.loads(os.environ.get("PLACEMENT", "{}"))
run = {"stream": placement.pop("stream", None)}
score_model, _ = from_config.train_ebm(config, train, pj.Execution(workdir=folder, **placement), **run)
mesh = sharding.default_mesh()
found = {"devices": jax.device_count(), "norm": float(sum(
    np.sum(np.abs(np.asarray(x, np.float64))) for x in jax.tree.leaves(score_model.variables)))}
if images:
    classifier, _ = from_config.train_classifier(config, train, pj.Execution())
    purifier = pj.models.model_purifier(score_model, num_steps=2, num_restarts=2)
    defense = pj.Defense(purifier, pj.models.logits_fn(classifier))
    attack = attacks.PGD(attacks.ExactGradient(defense), epsilon=0.1, step_size=0.05, num_steps=2)
    found["records"] = evaluation.evaluate(
        jax.random.key(0), defense, {"pgd": attack}, test.take(images), draws=2,
        execution=pj.Execution(batch_size=images))
    found["corrupted"] = {n: list(r[1]) for n, r in corruption.evaluate_corrupted(
        jax.random.key(0), {"defense": defense}, lambda n, s: corruption.corrupted_dataset(test.take(images), n, s),
        names=["fog", "contrast"], severities=[1], execution=pj.Execution(batch_size=images))["defense"].items()}
    found["certificates"] = certification.certify(
        jax.random.key(0), defense, test.take(images), sigma=0.2, n0=5, n=40,
        samples_at_once=20, execution=pj.Execution(batch_size=images))
if mesh is not None and images:
    found["split"] = pj.evaluate(
        jax.random.key(0), defense, {"pgd": attack}, test.take(images), draws=2,
        execution=pj.Execution(batch_size=images, shard_parameters=True))
if mesh is not None:
    split = jax.device_put(dict(score_model.params), sharding.large_arrays_split(mesh, dict(score_model.params)))
    found["shares"] = sorted({x.size // x.addressable_shards[0].data.size
                              for x in jax.tree.leaves(split)})
print("FOUND" + json.dumps(found))
"""


def start(folder, devices, steps, images=0, *joined, **placement):
    env = environment() | {
        "PLACEMENT": json.dumps(placement),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {XLA_FLAGS}",
        "PYTHONPATH": str(ROOT),
    }
    arguments = map(str, (folder, steps, images, *joined))
    return subprocess.Popen(
        [sys.executable, "-c", WORK, *arguments],
        cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process):
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.split("FOUND")[1])


def run(folder, devices, steps, images=0, **placement):
    found = finish(start(folder, devices, steps, images, **placement))
    assert found["devices"] == devices
    return found


def assert_same(one, other):
    assert other["norm"] == pytest.approx(one["norm"], rel=1e-5)
    everything = [*other["records"], *other.get("split", [])]
    for a, b in zip(
        one["records"] * (len(everything) // len(one["records"])), everything, strict=True
    ):
        assert (a["attack"], a["index"], a["one_draw"]) == (b["attack"], b["index"], b["one_draw"])
        assert a["loss"] == pytest.approx(b["loss"], abs=0.02)
    assert other["corrupted"] == one["corrupted"]
    for a, b in zip(one["certificates"], other["certificates"], strict=True):
        assert abs(a["votes"] - b["votes"]) <= 1


@pytest.mark.ci
def test_four_devices_give_the_numbers_of_one(tmp_path):
    # Six images: the last batch is padded to eight.
    one, four = (run(tmp_path / str(n), n, 40, 6) for n in (1, 4))
    assert_same(one, four)
    assert four["shares"] == [1, 4]  # biases whole, the large kernel in four
    # Trained to the same step on four devices after half of it on one, with everything split.
    moved = tmp_path / "moved"
    run(moved, 1, 20)
    assert run(moved, 4, 40, stream=True, shard_parameters=True)["norm"] == pytest.approx(
        one["norm"], rel=1e-5
    )


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_stops_the_other_and_four_devices_continue_on_one(victim, tmp_path):
    address, errors = free_address(), [tmp_path / f"{rank}.err" for rank in (0, 1)]

    def train(steps, devices, *joined, **options):
        return subprocess.Popen(
            [sys.executable, "-m", "experiments.train_ebm",
             "--config=experiments/configs/digits.py", f"--config.ebm.steps={steps}",
             "--config.ebm.schedule=constant", "--config.ebm.steps_per_dispatch=50",
             "--config.ebm.checkpoint_every=100", f"--workdir={tmp_path / 'score_model'}",
             "--noprogress", *joined],
            cwd=ROOT, **options,
            env=environment()
            | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {XLA_FLAGS}"},
        )  # fmt: skip

    both = [
        train(10**6, 2, f"--coordinator={address}", "--num_processes=2", f"--process_id={rank}",
              stderr=errors[rank].open("w"))
        for rank in (0, 1)
    ]  # fmt: skip
    checkpoints = tmp_path / "score_model" / "checkpoints"
    saved = lambda: [int(p.name) for p in checkpoints.glob("[0-9]*") if p.name.isdigit()]
    deadline = time.monotonic() + 200
    while max(saved(), default=0) < 200 and time.monotonic() < deadline:
        time.sleep(0.2)
    both[victim].kill()
    assert both[1 - victim].wait(2 * sharding.HEARTBEAT) == -signal.SIGABRT
    assert "another task died" in errors[1 - victim].read_text()
    # The same folder, on one device of one process, to a step that the killed run had not reached.
    reached = max(saved())
    (
        tmp_path / "score_model" / "config.json"
    ).unlink()  # it holds the number of steps, which changes
    done = train(reached + 100, 1, stderr=subprocess.PIPE, text=True)
    _, err = done.communicate(timeout=200)
    assert done.returncode == 0, err[-2000:]
    steps = [json.loads(x)["step"] for x in (tmp_path / "score_model" / "metrics.jsonl").open()]
    assert steps == [*range(50, reached + 101, 50)]


FAILING = """
import sys, time
import jax
from purify_jax.devices import sharding
sharding.HEARTBEAT = 10
sharding.initialize(sys.argv[1], 2, int(sys.argv[2]))
print(jax.device_count(), flush=True)
if sys.argv[2] == sys.argv[3]:
    raise ValueError("mine")
time.sleep(300)
"""


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_an_error_in_one_process_ends_the_other(victim):
    command = [sys.executable, "-c", FAILING, free_address()]
    both = [
        subprocess.Popen(
            [*command, str(rank), str(victim)],
            cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    said = [process.communicate(timeout=300)[1] for process in both]
    assert both[victim].returncode == 1
    assert "ValueError: mine" in said[victim]
    assert both[1 - victim].returncode == -signal.SIGABRT
    assert "another task died" in said[1 - victim]


@pytest.mark.slow
def test_two_processes_with_two_devices_give_the_numbers_of_one(tmp_path):
    one = run(tmp_path / "one", 1, 40, 6)
    address = free_address()
    both = [start(tmp_path / "two", 2, 40, 6, address, rank) for rank in (0, 1)]
    for process in both:
        found = finish(process)
        assert found["devices"] == 4
        assert_same(one, found)
    address = free_address()
    placement = {"stream": True, "shard_parameters": True}
    both = [start(tmp_path / "split", 2, 40, 0, address, rank, **placement) for rank in (0, 1)]
    for process in both:
        assert finish(process)["norm"] == pytest.approx(one["norm"], rel=1e-5)


def test_rounding_and_placement_on_one_device():
    mesh = sharding.data_mesh()
    assert sharding.round_up(7, None) == 7
    assert sharding.round_up(7, mesh) == 7
    double = sharding.over_images(lambda x: 2 * x, mesh)
    np.testing.assert_array_equal(double(np.arange(4.0)), 2 * np.arange(4.0))
    assert sharding.default_mesh() is None or jax.device_count() > 1


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_that_are_placed_keep_their_implementation(implementation):
    spread = jax.sharding.NamedSharding(
        sharding.data_mesh(), jax.sharding.PartitionSpec(sharding.AXIS)
    )
    keys = jax.random.split(jax.random.key(3, impl=implementation), 4 * jax.device_count())
    placed = sharding._place(keys, spread)
    assert placed.dtype == keys.dtype
    assert placed.sharding.is_equivalent_to(spread, 1)
    np.testing.assert_array_equal(jax.random.key_data(placed), jax.random.key_data(keys))


def test_no_cluster_to_join_gets_one_line(run_binary, tmp_path):
    done = run_binary("train_ebm", "--distributed", f"--workdir={tmp_path}", check=False)
    assert done.returncode == 1
    (message,) = done.stderr.strip().splitlines()
    assert message.startswith("error: distributed: ")
    assert "coordinator, num_processes and process_id" in message


def test_bad_input_gets_one_line():
    with pytest.raises(InputError, match="expected all three or none"):
        sharding.initialize("localhost:1234", 2, None)
    with pytest.raises(InputError, match="process_id: got 2, expected 0 to 1"):
        sharding.initialize("localhost:1234", 2, 2)
    with pytest.raises(InputError, match="devices: got none"):
        sharding.data_mesh([])
    assert os.environ.get("PURIFY_TEST_CACHE")
    assert pj.sharding is sharding


TWO_DEVICES = """
import jax, jax.numpy as jnp, numpy as np, purify_jax as pj
from purify_jax.devices import memory, sharding

weights = jax.random.normal(jax.random.key(0), (3, 64))
score = lambda weights, x: jnp.tanh(x @ weights) @ weights.T - x
logits = lambda weights, x: jnp.mean(x, axis=(1, 2)) @ weights[:, :10]  # of all restarts, in little memory
purifier = pj.ADP(pj.Partial(score, weights), pj.purifiers.Constant(0.1), num_restarts=16)
defense = pj.Defense(purifier, pj.Partial(logits, weights))
images, keys = np.full((6, 32, 32, 3), 0.5, np.float32), pj.image_keys(jax.random.key(1), np.arange(6))
found = memory.divided(defense, sharding.data_mesh())(keys, images)
(chunk,) = memory._chosen.values()
print(*chunk, np.abs(found - defense(keys, images)).max())
"""


@pytest.mark.ci
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
