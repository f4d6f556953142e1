"""Two processes never write into one folder; a process that died locks nobody out."""

import os
import signal
import subprocess
import sys
import time

import pytest

from experiments.common import locks, workdirs
from purify_jax.atomic import remove_unfinished, write_atomically
from purify_jax.checks import InputError
from tests.faults import workplace
from tests.faults.harness import ROOT

HOLD = (
    "import sys, time; from experiments.common.workdirs import claim_workdir; "
    "claim_workdir(sys.argv[1], {}); print('held', flush=True); time.sleep(100)"
)


@pytest.fixture(autouse=True)
def _released():
    yield
    locks.release()


def holder(folder):
    command = [sys.executable, "-c", HOLD, str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_process_is_told_and_the_third_takes_over_from_a_killed_one(tmp_path):
    first = holder(tmp_path)
    try:
        before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
        message = (
            f"workdir: {tmp_path} is in use by process {first.pid} on .*, expected one process"
        )
        with pytest.raises(InputError, match=message):
            workdirs.claim_workdir(tmp_path, {})
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    started = time.monotonic()
    workdirs.claim_workdir(tmp_path, {})
    workdirs.claim_workdir(tmp_path, {})  # the same process may ask again
    assert time.monotonic() - started < 1
    locks.release()
    # The lock's file stays, as processes that wait for it share it.
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "config.json"]


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    inside, others = tmp_path / "figures", tmp_path / "part"
    for folder in (inside, others):
        folder.mkdir()
        (folder / ".model.safetensors.123.tmp").write_text("half")
    (others / locks.NAME).touch()
    for name in ("mine.tmp", ".mine.tmp", "results.json"):
        (tmp_path / name).write_text("whole")
    remove_unfinished(tmp_path, locks.NAME)
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    kept = [
        ".mine.tmp",
        "mine.tmp",
        "part/.lock",
        "part/.model.safetensors.123.tmp",
        "results.json",
    ]
    assert left == kept


def test_a_file_is_written_again_where_a_process_died_writing_it(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = [tmp_path / f".x.json.{process}.tmp" for process in (dead.pid, os.getppid())]
    for path in left:
        path.write_text("half")
    write_atomically(tmp_path / "x.json", "whole")
    assert sorted(tmp_path.iterdir()) == [left[1], tmp_path / "x.json"]  # its writer is alive


@pytest.mark.ci
def test_every_binary_that_writes_a_folder_asks_for_it(place, tmp_path):
    commands = workplace.commands(place, tmp_path)
    names = [name for name in commands if name not in ("export", "import_weights")]  # one file each
    held = tmp_path / "held"
    for name in (workplace.TABLES, "reproduce"):
        workplace.prepare(name, place, held)
    for folder in (held / "runs", held, held / "results"):
        locks.hold("workdir", folder)
    before = sorted(held.rglob("*"))
    for first in range(0, len(names), 2):
        running = {n: workplace.start(n, place, held) for n in names[first : first + 2]}
        for name, process in running.items():
            done = process.wait()
            assert (done.outcome, name) == ("refused", name), done.err
            assert f"is in use by process {os.getpid()} on " in done.line
    assert sorted(held.rglob("*")) == before
