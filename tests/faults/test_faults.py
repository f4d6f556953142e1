"""A full disk, a folder that may not be written, a clock that jumps: one line, and nothing is lost."""

import json
import os
import shutil

import harness
import pytest
import workplace
from harness import ROOT

#: Binaries that write into a folder of their own; tables is below.
BINARIES = (
    "train_ebm", "train_classifier", "train_defense", "evaluate", "detect", "certify", "corruptions",
    "compare", "denoise", "purify", "score", "export", "import_weights", "reproduce",
    "experiments.reproduction.exchange",
)  # fmt: skip
#: In bytes: nothing can be written; then a later and later file is the one that fails.
SIZES = (300, 1500, 5000, 12000, 30000)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return workplace.make(tmp_path_factory.mktemp("place"))


def folder(place, tmp_path, name):
    """A folder for the output of a binary, with what it expects to find there."""
    out = tmp_path / name
    out.mkdir(parents=True)
    if name == "reproduce":
        workplace.prepare(place, out)
    return out


def in_pairs(place, outs, **faults):
    """(binary, how it ended) of all binaries, two at a time."""
    names = list(outs)
    for first in range(0, len(names), 2):
        pair = names[first : first + 2]
        running = {n: workplace.start(n, place, outs[n], **faults) for n in pair}
        yield from ((n, process.wait()) for n, process in running.items())


def files(out):
    return {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "fault", [{"file_size": 0}, {"unprivileged": True}], ids=["full", "read-only"]
)
def test_what_cannot_be_written_is_one_line(place, tmp_path, fault):
    outs = {name: folder(place, tmp_path, name) for name in BINARIES}
    before = {name: files(out) for name, out in outs.items()}
    if "unprivileged" in fault:
        for out in outs.values():
            for path in (out, *(p for p in out.rglob("*") if p.is_dir())):
                path.chmod(0o555)
    for name, done in in_pairs(place, outs, **fault):
        assert (name, done.outcome) == (name, "refused"), done.err
        wanted = ("cannot be written", "too large", "the disk is full")
        assert any(text in done.line for text in wanted), done.line
        assert files(outs[name]) - before[name] <= {".lock", "runs/.lock", "results/.lock"}


@pytest.mark.parametrize(
    "fault", [{"file_size": 3000}, {"unprivileged": True}], ids=["full", "read-only"]
)
def test_tables_leaves_a_readme_that_it_cannot_write(tmp_path, fault):
    """In a checkout that holds no more than it needs."""
    copy = tmp_path / "checkout"
    for name in ("experiments", "results"):
        shutil.copytree(ROOT / name, copy / name)
    (copy / "docs").mkdir()
    pages = ("README.md", "docs/results.md")
    for page in pages:
        (copy / page).write_text((ROOT / page).read_text().replace("0.9", "0.0"))
    before = [(copy / page).read_bytes() for page in pages]
    if "unprivileged" in fault:
        copy.chmod(0o555)
    done = harness.run("experiments.reproduction.tables", cwd=copy, checkout=copy, **fault)
    assert done.outcome == "refused", done.err
    assert [(copy / page).read_bytes() for page in pages] == before
    copy.chmod(0o755)
    done = harness.run("experiments.reproduction.tables", cwd=copy, checkout=copy)
    for page in pages:
        assert (copy / page).read_bytes() == (ROOT / page).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_a_disk_that_fills_up_later_loses_nothing(place, tmp_path, size):
    """After one line, the same command on a disk with room ends as if there had been room before."""
    outs = {name: folder(place, tmp_path, name) for name in BINARIES}
    for name, done in in_pairs(place, outs, file_size=size):
        lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
        # reproduce says which part failed, after what the part said.
        fine = done.outcome in ("refused", "accepted") or (name == "reproduce" and len(lines) == 2)
        assert fine, (name, done.outcome, done.err[-2000:])
    whole = {name: folder(place, tmp_path / "whole", name) for name in BINARIES}
    for given in (outs, whole):
        for name, done in in_pairs(place, given):
            assert (name, done.outcome) == (name, "accepted"), done.err[-2000:]
    for name in BINARIES:
        assert workplace.content(outs[name]) == workplace.content(whole[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("clock", ["backwards", "jumping"])
def test_a_clock_that_jumps_changes_nothing(place, tmp_path, clock):
    outs = {name: folder(place, tmp_path, name) for name in BINARIES}
    whole = {name: folder(place, tmp_path / "whole", name) for name in BINARIES}
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
            assert not list(_negative_times(json.loads(path.read_text()))), path


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


def _negative_times(value):
    if isinstance(value, dict):
        for key, part in value.items():
            if key in ("seconds", "milliseconds") and part < 0:
                yield part
            yield from _negative_times(part)
    elif isinstance(value, list):
        for part in value:
            yield from _negative_times(part)
