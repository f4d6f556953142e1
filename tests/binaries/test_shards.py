"""Several processes, one evaluation: after the merge, the bytes of a single process."""

import json
import socket
import subprocess
import sys
import time

import pytest
from conftest import ROOT, environment

from experiments.common import shards
from purify_jax.checks import InputError
from tests.faults import harness

MODEL = ["--model=digits", "--num_steps=2", "--num_restarts=1"]
ATTACK = ["--suite=rand", "--steps=2", "--eot=2", "--epsilon=0.3", "--probe_images=0", "--draws=4"]
SIZE = ["--images=32", "--batch_size=4", "--block=8"]
COMMAND = ["evaluate", *MODEL, *ATTACK, *SIZE, "--noprogress"]


@pytest.fixture(scope="module")
def single(run_binary, tmp_path_factory):
    """The folder of one process that does it all."""
    folder = tmp_path_factory.mktemp("single")
    run_binary(*COMMAND, f"--workdir={folder}")
    return folder


def _blocks(header):
    """The units of a run over 32 images in blocks of 8."""
    blocks = [range(first, first + header["block"]) for first in range(0, 32, 8)]
    return [[(a, i) for a in ["clean", *header["attacks"]] for i in block] for block in blocks]


def _contents(folder):
    return {m: (folder / f"records_{m}.jsonl").read_bytes() for m in ("defended", "undefended")}


def _summary(folder):
    return json.loads((folder / "results.json").read_text())["summary"]


@pytest.mark.ci
def test_three_shards_of_which_one_is_killed(run_binary, refusal, single, tmp_path):
    done = run_binary(*COMMAND, f"--workdir={tmp_path}", "--shard=0/3")
    assert "shard 0/3: written to" in done.stdout
    # Shard 1 is killed as soon as it has written something, and left torn.
    victim = harness.start(*COMMAND, f"--workdir={tmp_path}", "--shard=1/3")
    torn = tmp_path / "shard-1-of-3" / "records_undefended.jsonl"
    for _ in range(3000):
        if not victim.process.is_alive() or (torn.exists() and torn.read_bytes().count(b"\n") > 2):
            break
        time.sleep(0.02)
    victim.kill()
    victim.wait()
    line = refusal(*COMMAND, f"--workdir={tmp_path}", "--merge")
    assert "merge: shards 2/3 lack records_undefended.jsonl, expected all" in line
    run_binary(*COMMAND, f"--workdir={tmp_path}", "--shard=2/3")
    (tmp_path / "shard-1-of-3" / "records_defended.jsonl").unlink(missing_ok=True)
    line = refusal(*COMMAND, f"--workdir={tmp_path}", "--merge")
    assert "1/3" in line or "shard-1-of-3 is not finished" in line
    assert not (tmp_path / "records_defended.jsonl").exists()
    run_binary(*COMMAND, f"--workdir={tmp_path}", "--shard=1/3")
    run_binary(*COMMAND, f"--workdir={tmp_path}", "--merge")
    assert _contents(tmp_path) == _contents(single)
    assert _summary(tmp_path) == _summary(single)


@pytest.mark.slow
def test_two_processes_by_coordinator(single, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free_port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "experiments.evaluate", *COMMAND[1:], f"--workdir={tmp_path}",
        f"--coordinator=127.0.0.1:{free_port}", "--num_processes=2",
    ]  # fmt: skip
    both = [
        subprocess.Popen(
            [*command, f"--process_id={i}"],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment(),
        )
        for i in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert _contents(tmp_path) == _contents(single)
    assert _summary(tmp_path) == _summary(single)


def test_shards_of_two_evaluations_are_one_line(single, tmp_path):
    lines = (single / "records_defended.jsonl").read_text().splitlines(keepends=True)
    header = json.loads(lines[0])["header"]

    def write(i, **changed):
        head = {**header, "shard": [i, 2], **changed}
        head = {k: v for k, v in head.items() if v is not None}
        body = [json.dumps({"header": head, "lines": "crc32"}) + "\n"]
        folder = tmp_path / f"shard-{i}-of-2"
        folder.mkdir(exist_ok=True)
        (folder / "records_defended.jsonl").write_text("".join(body + lines[1:]))

    write(0)
    write(1, draws=5)
    with pytest.raises(
        InputError, match=r"belongs to another evaluation \(draws: 4 there, 5 now\)"
    ):
        shards.merge(tmp_path, "records_defended.jsonl", _blocks)
    for i in (0, 1):
        write(i, attacks=None)
    with pytest.raises(InputError, match="has no header"):
        shards.merge(tmp_path, "records_defended.jsonl", _blocks)
    write(0)
    (tmp_path / "shard-0-of-3").mkdir()
    (tmp_path / "shard-0-of-3" / "records_defended.jsonl").write_text("")
    with pytest.raises(InputError, match=r"has shards of \[2, 3\] in all"):
        shards.merge(tmp_path, "records_defended.jsonl", _blocks)


SMALL = [*MODEL, "--noprogress", "--batch_size=4"]
OTHERS = {
    "certify": [*SMALL, "--images=10", "--n0=8", "--n=40", "--samples_at_once=8"],
    "corruptions": [*SMALL, "--images=12", "--corruptions=gaussian_noise,contrast"],
    "detect": [*SMALL, "--images=12", "--calibration_images=20", "--epsilon=0.3", "--steps=2", "--eot=2"],
    "compare": [*SMALL, "--images=8", "--epsilon=0.3", "--steps=2", "--eot=1", "--draws=2",
                "--only=none,ADP,JPEG 50"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_two_shards_of_the_others_are_one_process(run_binary, refusal, tmp_path, name):
    command = [name, *OTHERS[name]]
    run_binary(*command, f"--workdir={tmp_path / 'one'}")
    place = tmp_path / "two"
    run_binary(*command, f"--workdir={place}", "--shard=1/2")
    line = refusal(*command, f"--workdir={place}", "--merge")
    assert line.startswith("error: merge: shards 0/2 lack ")
    run_binary(*command, f"--workdir={place}", "--shard=0/2")
    run_binary(*command, f"--workdir={place}", "--merge")
    results = [
        json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "one", place)
    ]
    for found in results:
        _without_times(found)
    assert results[0] == results[1]
    kept = [f.relative_to(tmp_path / "one") for f in (tmp_path / "one").rglob("*") if f.is_file()]
    joined = [f for f in kept if f.suffix in (".jsonl", ".npz", ".npy")]
    assert joined
    for file in joined:
        assert (tmp_path / "one" / file).read_bytes() == (place / file).read_bytes()
    line = refusal(*command, f"--workdir={tmp_path / 'many'}", "--shard=0/99")
    assert line.startswith("error: shard: got 0/99, expected one of 0/")


def _without_times(tree):
    """Takes out what one and the same run may measure differently."""
    for name in [*tree]:
        if name in ("milliseconds", "command", "workdir", "seconds", "provenance"):
            del tree[name]
        elif isinstance(tree[name], dict):
            _without_times(tree[name])
