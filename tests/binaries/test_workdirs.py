"""Work directories: claimed, refused, never emptied."""

import json
import os

import pytest

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
