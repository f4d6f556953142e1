"""The demo as a user runs it, and how it chooses what fits into a minute."""

import json
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import ROOT

import purify_jax as pj
from experiments.story import accuracy, budget, illustrations


@pytest.mark.ci
def test_demo_needs_no_data_and_no_training(run_binary, tmp_path):
    done = run_binary(
        "demo", "--model=digits", "--images=10", "--steps=2", "--eot=2", f"--workdir={tmp_path}"
    )
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["model"], results["dataset"]) == ("digits", "digits")
    rows = {row["name"]: row for row in results["attacks"]}
    assert list(rows) == ["blind PGD", "BPDA+EOT", "exact+EOT"]
    assert all(row["images"] == 10 and row["steps"] == 2 for row in rows.values())
    assert rows["blind PGD"]["undefended"] < results["clean"]["undefended"]
    assert "10 images, 2 attack steps with 2 draws each" in done.stdout
    page = (tmp_path / "report.html").read_text()
    # What it is not, and the figure to quote from the model's card: the average, not the union.
    card = json.loads((ROOT / "pretrained" / "digits.json").read_text())
    average = card["evaluations"]["honest_linf_0.15"]["summary"]["defended"]["average"][0]
    assert f"The whole evaluation left {100 * average:.1f}%" in page
    assert "This is a demo: 2 attack steps with 2 draws each" in page
    assert "(128 images, the model" in page
    strip = (tmp_path / "figures" / "purification.png").read_bytes()
    assert strip.startswith(b"\x89PNG")


def test_a_page_says_how_its_model_was_trained():
    alone = accuracy.what_ships(pj.pretrained.load("digits").card)
    assert alone.startswith("A model that was trained only to remove noise")
    assert "trained together on attacks" in accuracy.what_ships(pj.pretrained.load("cifar10").card)


def test_larger_models_get_shorter_attacks():
    """A classifier of a known cost behind one blur: the size is the first that the budget pays."""
    test = pj.load_split("cifar10_photos", "test")
    weights = np.ones((3072, 10), np.float32)
    defense = pj.undefended(lambda x: x.reshape(len(x), -1) @ weights)
    # A deterministic defense: forward is 61,440 operations, a gradient twice as many, three gradients a
    # step, and 14 answers; so of Size(64, 10, 1) one image costs 10·6 + 14 forward passes.
    forward = 2 * 3072 * 10
    exactly = 64 * (10 * 6 + 14) * forward
    assert budget.size(defense, test, exactly) == budget.Size(64, 10, 1)
    assert budget.size(defense, test, exactly - 1) == budget.Size(32, 10, 1)
    assert budget.size(defense, test, 0) == budget.SIZES[-1]
    assert budget.size(defense, test) == budget.Size(64, 10, 1)


@pytest.mark.slow
def test_demo_on_photographs(run_binary, tmp_path):
    started = time.monotonic()
    run_binary("demo", "--model=cifar10", f"--workdir={tmp_path}")
    # A minute on two idle cores; four where others work beside it.
    assert time.monotonic() - started < 240
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["dataset"] == "cifar10_photos"
    assert results["clean"]["undefended"] > results["attacks"][0]["undefended"]
    page = (tmp_path / "report.html").read_text()
    assert len(page) < 3_000_000
    assert '"airplane","automobile"' in page


@pytest.mark.ci
def test_any_purifier_is_shown(digits_test):
    """One step to the posterior mean, where the demo's models take several: the same sections."""
    ready = pj.pretrained.load("digits")
    purifier = pj.models.model_purifier(ready.score_model, method="tweedie", num_restarts=1)
    defense = pj.Defense(purifier, ready.logits_fn)
    test, ball = digits_test.take(4), SimpleNamespace(norm="linf", epsilon=0.15)
    named = accuracy.attacks(defense, ball, steps=1, num_samples=1)
    images = {entry.name: np.clip(test.images + 0.1, 0, 1) for entry in named}
    found = illustrations.sections(
        jax.random.key(0), defense, ready.score_model, named, images, test, ball, sweep=False
    )
    assert list(found) == ["browser", "purification", "steps", "energy"]
    assert found["browser"].gallery.content["steps"] == [0, 1]
    assert len(found["steps"].rows) == 1
    assert found["steps"].figure is None
    assert found["purification"].figure
