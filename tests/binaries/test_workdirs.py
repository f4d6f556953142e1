"""Work directories: claimed, refused, never emptied."""

import json
import os

import pytest

from experiments.common import locks
from experiments.common.workdirs import claim_workdir
from purify_jax.checks import InputError


def test_workdir_of_another_config_is_refused_and_kept(tmp_path):
    claim_workdir(tmp_path / "run", {"ebm": {"steps": 5, "rate": 0.1}})
    claim_workdir(tmp_path / "run", {"ebm": {"steps": 5, "rate": 0.1}})
    with pytest.raises(
        InputError, match=r"belongs to another config \(ebm.steps: 5 there, 6 now\)"
    ):
        claim_workdir(tmp_path / "run", {"ebm": {"steps": 6, "rate": 0.1}})
    assert json.loads((tmp_path / "run" / "config.json").read_text())["ebm"]["steps"] == 5


def test_workdir_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="workdir: .* cannot be written"):
        claim_workdir(tmp_path / "x", {})
    (tmp_path / "file").write_text("")
    monkeypatch.undo()
    with pytest.raises(InputError, match="workdir: .* cannot be written"):
        claim_workdir(tmp_path / "file" / "x", {})


def test_the_end_says_what_was_written_where(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    locks.release()
    claim_workdir("run", {})
    assert locks.endings() == ["written to run: config.json"]
    for name in ("report.html", "figures/a.png", "figures/b.png", ".hidden", "deep/er/x"):
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("x")
    said = "written to run: config.json, deep/ (1 file), figures/ (2 files), report.html"
    assert locks.endings() == [said]
    locks.release()
    # Another process: what was there is not said again, what it changed is.
    claim_workdir("run", {})
    assert locks.endings() == ["nothing new in run: what this command writes was there"]
    (tmp_path / "run" / "report.html").write_text("xx")
    locks.hold("results", "other")
    for i in range(20):
        (tmp_path / "other" / f"{i:02d}").write_text("")
    first, second = locks.endings()
    assert first == "written to run: report.html"
    assert second.startswith("written to other: 00, 01, ")
    assert second.endswith(", 11 and 8 more")
    locks.release()
