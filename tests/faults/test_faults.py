"""A full disk, a folder that may not be written, a clock that jumps: one line, and nothing is lost."""

import json
import os
import re
import subprocess
import sys

import pytest

from experiments.common import provenance
from tests.faults import harness, workplace
from tests.faults.harness import ROOT
from tests.faults.workplace import BINARIES, PAGES, TABLES

#: In bytes: nothing can be written; then a later and later file is the one that fails.
SIZES = (300, 1500, 5000, 12000, 30000)

#: What a process that ended leaves beside its results.
LOCKS = {
    f"{folder}{lock}" for folder in ("", "runs/", "results/") for lock in (".lock", ".lock-holder")
}


def folders(place, parent):
    """Binary → a folder for its output, with what it expects to find there."""
    return {name: workplace.prepare(name, place, parent / name) for name in BINARIES}


def in_pairs(place, outs, **faults):
    """(binary, how it ended) of all binaries, two at a time."""
    names = list(outs)
    for first in range(0, len(names), 2):
        pair = names[first : first + 2]
        running = {n: workplace.start(n, place, outs[n], **faults) for n in pair}
        yield from ((n, process.wait()) for n, process in running.items())


def files(out):
    return {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}


@pytest.mark.ci
@pytest.mark.parametrize(
    "fault", [{"file_size": 0}, {"unprivileged": True}], ids=["full", "read-only"]
)
def test_what_cannot_be_written_is_one_line(place, tmp_path, fault):
    outs = folders(place, tmp_path)
    before = {name: files(out) for name, out in outs.items()}
    if "unprivileged" in fault:
        for out in outs.values():
            for path in (out, *(p for p in out.rglob("*") if p.is_dir())):
                path.chmod(0o555)
    for name, done in in_pairs(place, outs, **fault):
        assert (name, done.outcome) == (name, "refused"), done.err
        wanted = ("cannot be written", "too large", "the disk is full")
        assert any(text in done.line for text in wanted), done.line
        assert files(outs[name]) - before[name] <= LOCKS


@pytest.mark.parametrize(
    "fault", [{"file_size": 3000}, {"unprivileged": True}], ids=["full", "read-only"]
)
def test_tables_leaves_a_readme_that_it_cannot_write(place, tmp_path, fault):
    copy = workplace.prepare(TABLES, place, tmp_path / "checkout")
    before = [(copy / page).read_bytes() for page in PAGES]
    if "unprivileged" in fault:
        copy.chmod(0o555)
    done = workplace.start(TABLES, place, copy, **fault).wait()
    assert done.outcome == "refused", done.err
    assert [(copy / page).read_bytes() for page in PAGES] == before
    copy.chmod(0o755)
    workplace.start(TABLES, place, copy).wait()
    for page in PAGES:
        assert (copy / page).read_bytes() == (ROOT / page).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_a_disk_that_fills_up_later_loses_nothing(place, tmp_path, size):
    """After one line, the same command on a disk with room ends as if there had been room before."""
    outs = folders(place, tmp_path)
    for name, done in in_pairs(place, outs, file_size=size):
        lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
        # reproduce says which part failed, after what the part said.
        fine = done.outcome in ("refused", "accepted") or (name == "reproduce" and len(lines) == 2)
        assert fine, (name, done.outcome, done.err[-2000:])
    whole = folders(place, tmp_path / "whole")
    for given in (outs, whole):
        for name, done in in_pairs(place, given):
            assert (name, done.outcome) == (name, "accepted"), done.err[-2000:]
    for name in BINARIES:
        assert workplace.content(outs[name]) == workplace.content(whole[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("clock", ["backwards", "jumping"])
def test_a_clock_that_jumps_changes_nothing(place, tmp_path, clock):
    outs = folders(place, tmp_path)
    whole = folders(place, tmp_path / "whole")
    stopped = {}
    for name, done in in_pairs(place, outs, clock=clock):
        # orbax's patience with a save runs by this clock: the line says so, and the command continues.
        if clock == "jumping" and done.line.startswith("error: saving: a checkpoint in "):
            stopped[name] = outs[name]
        else:
            assert (name, done.outcome) == (name, "accepted"), done.err[-2000:]
    for name, done in [*in_pairs(place, stopped), *in_pairs(place, whole)]:
        assert (name, done.outcome) == (name, "accepted"), done.err[-2000:]
    for name in BINARIES:
        assert workplace.content(outs[name]) == workplace.content(whole[name]), name
        for path in outs[name].rglob("*.json"):
            assert not re.search(r'"(milli)?seconds": -', path.read_text()), path


@pytest.mark.ci
def test_a_run_continues_under_a_clock_that_went_back(place, tmp_path):
    """The newest checkpoint is the one of the most steps, not of the latest hour."""
    command = workplace.commands(place, tmp_path / "w")["train_ebm"]
    short = [a if a != "--config.ebm.steps=40" else "--config.ebm.steps=20" for a in command]
    done = harness.run("train_ebm", *short)
    assert done.outcome == "accepted", done.err
    (tmp_path / "w" / "config.json").write_text(
        (tmp_path / "w" / "config.json").read_text().replace('"steps": 20', '"steps": 40')
    )
    for path in (tmp_path / "w" / "checkpoints").rglob("*"):
        os.utime(path, (2e9, 2e9) if "/10" in str(path) else (1e9, 1e9))
    done = harness.run("train_ebm", *command, clock="backwards")
    assert done.outcome == "accepted", done.err
    steps = [
        json.loads(x)["step"] for x in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(5, 41, 5))


def test_a_run_does_not_write_into_git(monkeypatch):
    """A run that died in ``git status`` left a lock that stopped the user's next commit."""
    given = []
    monkeypatch.setattr(provenance.subprocess, "run", lambda command, **more: given.append(command))
    with pytest.raises(AttributeError):
        provenance.commit()
    assert given[0][:2] == ["git", "--no-optional-locks"]


@pytest.mark.ci
def test_a_reader_who_leaves_gets_one_line():
    """As ``| head`` does: no page about a broken pipe, at the print or at Python's end."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "experiments.reproduction.tables", "--check"]
    done = subprocess.run(
        command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=200
    )
    os.close(writing)
    assert done.returncode == 1
    assert done.stderr == "error: output: its reader is gone; what was written to files stays\n"
