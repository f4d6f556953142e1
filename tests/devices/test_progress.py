"""Logs are lines, far apart, the last of which says how it ended."""

import re

import pytest

from purify_jax.devices import progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def test_without_a_terminal_there_is_a_line_every_half_minute(capsys, clock):
    with progress.bar(total=100, desc="training", unit="step") as bar:
        for step in range(100):
            clock[0] += 2
            bar.set_postfix(loss=f"{step}", refresh=False)
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training: 0/100 steps after 00:00"
    assert lines[-1] == "training: 100/100 steps after 03:20, loss=99"
    assert "training: 15/100 steps after 00:30, about 02:50 left" in lines[1]
    assert len(lines) == 2 + 6  # 200 seconds


def test_descriptions_that_change_do_not_fill_a_log(capsys, clock):
    with progress.bar(unit="image") as bar:
        for _ in range(500):
            bar.set_description("defended, PGD: robust so far 0.5")
            bar.update(4)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 2
    assert lines[-1] == "defended, PGD: robust so far 0.5: 2000 images after 00:00"


def test_a_run_that_continues_reckons_with_its_own_steps(capsys, clock):
    with progress.bar(total=10, initial=8) as bar:
        clock[0] += 40
        bar.update()
    assert "9/10 steps after 00:40, about 00:40 left" in capsys.readouterr().err


def test_switched_off_says_nothing(capsys):
    for _ in progress.bar(range(3), disable=True):
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.ci
def test_a_training_leaves_no_control_characters(run_binary, tmp_path):
    done = run_binary(
        "train_ebm", "--config=digits", "--config.ebm.steps=30", f"--workdir={tmp_path}"
    )
    assert "\r" not in done.stderr
    assert "\x1b" not in done.stderr
    assert len(done.stderr.splitlines()) < 20
    assert re.search(r"30/30 steps after \d\d:\d\d, loss=", done.stderr)
