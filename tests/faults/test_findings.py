"""What the fuzz and the kills found, each as small as it is."""

import os
import re
import subprocess
import sys

import harness
import pytest
import workplace

from experiments.common import provenance
from purify_jax.attacks.norms import get
from purify_jax.checks import InputError
from purify_jax.evaluation import detection, statistics


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return workplace.make(tmp_path_factory.mktemp("place"))


@pytest.mark.parametrize(
    ("name", "argument", "message"),
    [
        ("evaluate", "--score_model=", "score_model: got an empty text"),
        ("corruptions", "--dataset=", "dataset: got an empty text"),
        ("reproduce", "--parts=", "parts: got '', expected some names"),
    ],
)
def test_a_flag_left_empty_is_no_default(place, tmp_path, name, argument, message):
    """As it is where a variable of the shell is not set."""
    flag = argument.split("=")[0]
    arguments = [
        a for a in workplace.commands(place, tmp_path)[name] if not a.startswith(f"{flag}=")
    ]
    done = harness.run(name, *arguments, argument)
    assert done.outcome == "refused", done.err
    assert message in done.line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: statistics.wilson(1, 2, 1.0), "confidence: got 1.0"),
        (lambda: statistics.wilson(2.5, 3), "successes: got 2.5"),
        (lambda: statistics.wilson(3, 2), "successes: got 3, expected a whole number from 0 to 2"),
        (lambda: statistics.wilson(0, -1), "total: got -1"),
        (lambda: detection.fit_threshold([1.0], "0.5"), "false_positive_rate: got '0.5'"),
        (lambda: get([]), "norm: got [], expected one of"),
    ],
)
def test_arguments_that_were_accepted_or_raised_something_else(call, message):
    with pytest.raises(InputError, match=re.escape(message)):
        call()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--depth=27"], "depth: got 27, expected 10, 16, 22, 28"),
        (["--features=100000"], "features: got 100000, expected a whole number from 1 to 65536"),
        (
            ["--sections=memory,memory"],
            "sections: got 'memory,memory', expected some names, each of them",
        ),
        (["--out=/"], "out: / is a folder, expected a file to write"),
        (["--data_dir=/nowhere"], "data_dir: /nowhere is not a folder"),
        (["--models=mnist"], "data_dir: not given, expected the folder of data for ['mnist']"),
        (["--repeats=0"], "repeats=0: 0 is not a positive integer"),
        (["--peers=quick"], "peers: got 'quick', expected one of"),
    ],
)
def test_the_benchmark_checks_its_flags_first(run_binary, arguments, message):
    done = run_binary("benchmarks.run", *arguments, check=False)
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]


def test_a_run_does_not_write_into_git(monkeypatch):
    """A run that died in ``git status`` left a lock that stopped the user's next commit."""
    given = []
    monkeypatch.setattr(provenance.subprocess, "run", lambda command, **more: given.append(command))
    with pytest.raises(AttributeError):
        provenance.commit()
    assert given[0][:2] == ["git", "--no-optional-locks"]


def test_a_reader_who_leaves_gets_one_line():
    """As ``| head`` does: no page about a broken pipe, at the print or at Python's end."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "experiments.reproduction.tables", "--check"]
    done = subprocess.run(
        command, cwd=harness.ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=200
    )
    os.close(writing)
    assert done.returncode == 1
    assert done.stderr == "error: output: its reader is gone; what was written to files stays\n"
