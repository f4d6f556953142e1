"""The shipped results in the formats of RobustBench and AttackBench."""

import json

import pytest
from conftest import ROOT

from experiments.reproduction import exchange, results
from experiments.reproduction.defenses import shipped_as

RESULTS = ROOT / "results"


def _evaluations():
    parts = {p: json.loads(p.read_text()) for p in RESULTS.glob("*/*.json")}
    return {
        p: v
        for p, v in parts.items()
        if "summary" in v
        and v["settings"]["suite"] != "clean"
        and (ROOT / "pretrained" / f"{shipped_as(p.parent.name)}.json").is_file()
    }


def test_shipped_results_are_exported(run_binary, tmp_path):
    done = run_binary("experiments.reproduction.exchange", f"--out={tmp_path}")
    infos = sorted((tmp_path / "robustbench" / "model_info").rglob("*.json"))
    tables = sorted((tmp_path / "attackbench").rglob("*.json"))
    evaluations = _evaluations()
    assert len(infos) == len(evaluations) > 0
    assert f"{len(infos) + len(tables)} files written" in done.stdout
    # RobustBench's fields, in its order; "8/255" as it writes it.
    fields = (
        "link name authors additional_data number_forward_passes dataset venue architecture eps "
        "clean_acc reported autoattack_acc footnote unreliable"
    )
    for path, part in evaluations.items():
        card = ROOT / "pretrained" / f"{shipped_as(path.parent.name)}.json"
        dataset = json.loads(card.read_text())["data"]
        norm = {"linf": "Linf", "l2": "L2"}[part["settings"]["norm"]]
        place = tmp_path / "robustbench" / "model_info" / dataset / norm
        info = json.loads((place / f"{path.parent.name}_{path.name}").read_text())
        assert " ".join(info) == fields
        assert float(info["clean_acc"]) == pytest.approx(
            100 * part["rows"]["defended"][0]["one_draw"][0], abs=0.0051
        )
        # The result to quote: the average over fresh draws.
        average = part["summary"]["defended"]["average"]
        assert float(info["reported"]) == pytest.approx(100 * average[0], abs=0.0051)
        assert f"on {average[3]} images" in info["footnote"]
        assert info["autoattack_acc"] is None  # none of them is AutoAttack's suite
        top, _, bottom = info["eps"].partition("/")
        assert float(top) / float(bottom or 1) == pytest.approx(
            part["settings"]["epsilon"], abs=1e-6
        )
        assert info["unreliable"] == bool(part["red_flags"])
    cifar = tmp_path / "robustbench/model_info/cifar10/Linf/cifar10_defense_honest_linf_0.0314.json"
    assert json.loads(cifar.read_text())["eps"] == "8/255"

    rows = [row for path in tables for row in json.loads(path.read_text())]
    assert all(
        0 <= row["ASR_interval"][0] <= row["ASR"] <= row["ASR_interval"][1] <= 1 for row in rows
    )
    columns = "dataset attack library model threat_model ASR optimality n_forwards n_backwards time"
    assert all(" ".join(row).startswith(columns) for row in rows)
    digits = [row for row in rows if row["model"] == "digits_defended"]
    # "paper" attacks every image with each attack; "honest" only those that are left.
    names = [row["attack"] for row in digits]
    assert names == [
        "transfer", "honest (all of the suite)", "blind", "BPDA+EOT", "joint (score)", "joint (full)",
        "SPSA", "paper (all of the suite)",
    ]  # fmt: skip
    paper = evaluations[RESULTS / "digits" / "paper_linf_0.15.json"]
    for row in digits[2:7]:
        (source,) = [r for r in paper["rows"]["defended"] if r["attack"] == row["attack"]]
        assert row["ASR"] == pytest.approx(1 - source["one_draw"][0])
        assert row["images"] == 256


@pytest.mark.parametrize(
    ("epsilon", "text"), [(8 / 255, "8/255"), (4 / 255, "4/255"), (0.0313725, "8/255"), (0.15, "0.15"),
                          (0.5, "0.5"), (1.0, "1"), (0.2, "0.2"), (3.0, "3")],
)  # fmt: skip
def test_radii_are_written_as_robustbench_does(epsilon, text):
    assert results.fraction(epsilon) == text


@pytest.mark.parametrize(
    ("change", "filled"),
    [
        ({"suite": "rand", "steps": None, "eot": None}, True),
        ({"suite": "rand", "steps": 100, "eot": 20}, True),
        ({"suite": "rand", "steps": 10, "eot": 20}, False),
        ({"suite": "rand", "steps": 100, "eot": 2}, False),
        ({"suite": "standard", "steps": None, "eot": None}, False),
    ],
)
def test_only_autoattack_is_called_so(change, filled):
    part = json.loads((RESULTS / "digits" / "honest_linf_0.15.json").read_text())
    card = json.loads((ROOT / "pretrained" / "digits.json").read_text())
    part["settings"] |= change
    info = exchange.model_info("digits", card, part)
    assert info["autoattack_acc"] == (info["reported"] if filled else None)
