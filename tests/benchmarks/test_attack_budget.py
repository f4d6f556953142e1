"""Accuracy against passes: the rows cost what they say, differences are paired, the figure is drawn from the file."""

import io
import json

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from conftest import ROOT
from scipy import stats

from benchmarks.attack_budget import figure, recorded, rows
from purify_jax import costs, purifiers
from purify_jax.checks import InputError
from purify_jax.defense import Defense

#: Rows that are not one attack of the budget's backward passes (with PGD's loss after the last step).
OTHERS = {"exhaustive": 6080 / 400, "honest": 1000 / 400}


def _defense():
    purifier = purifiers.ADP(
        lambda x: 0.3 * (0.5 - x), purifiers.Constant(0.1), num_steps=1, num_restarts=1
    )
    return Defense(purifier, lambda x: x.reshape(len(x), -1)[:, :3])


@pytest.mark.ci
def test_every_row_takes_the_budgets_backward_passes():
    defense, image = _defense(), jnp.zeros((1, 2, 2, 1))
    table = rows.table(0.15, "linf", 400)
    alike = ("no momentum", "momentum 0.97", "momentum, margin", "momentum, smooth", "APGD")
    for name in (n for n in table if not n.startswith(alike)):
        build = table[name]
        passes = [
            costs.count(lambda d, a=a, b=build: b(d)[a], defense, image) for a in build(defense)
        ]
        backward = sum(p.purifier_backward for p in passes)
        share = 3 if "three times" in name else OTHERS.get(name, 1)
        share = 2.75 if name.startswith("stages") else share
        assert backward == pytest.approx(share * 400, abs=44), name
        if name.startswith(("grafting", "DiffHammer")):
            assert passes[0].purifier_forward == 5 * backward, name


def _content(images=50):
    rng = np.random.default_rng(0)
    hard = rng.integers(0, 21, images)

    def row(name, budget, shift):
        right = np.clip(hard + shift, 0, 20)
        value = float(right.mean() / 20)
        return {
            "name": name, "budget": budget, "average": [value, value - 0.1, value + 0.1, images],
            "worst": [0.2, 0.1, 0.3, images], "passes": [5.0 * budget, 1.0 * budget, 0, 0],
            "right": right.tolist(),
        }  # fmt: skip

    several = [row("PGD, EOT 4", b, s) for b, s in ((50, 3), (100, 2), (400, 1))]
    settings = {"draws": 20, "model": "digits", "images": images, "norm": "linf", "epsilon": 0.15}
    return {
        "settings": settings,
        "rows": [*several, row("exhaustive", 400, 0), row("gone", 400, 5)],
    }


def test_differences_are_paired():
    content = _content()
    a, exhaustive = content["rows"][0], content["rows"][3]
    each = (np.array(a["right"]) - np.array(exhaustive["right"])) / 20
    mean, half = recorded.difference(content, a, exhaustive)
    low, high = stats.t.interval(0.95, 49, each.mean(), stats.sem(each))
    assert (mean, mean - half, mean + half) == pytest.approx((each.mean(), low, high))
    # What all images share cancels: unpaired, the interval would be many times as wide.
    assert half < 0.1 * np.std(np.array(a["right"]) / 20) * 2 / np.sqrt(50) * 5
    assert f"minus exhaustive {mean:+.3f}" in recorded.line(content, a, "exhaustive")
    assert "minus" not in recorded.line(content, exhaustive, "exhaustive")


def test_what_is_written_is_read(tmp_path):
    content, path = _content(), tmp_path / "attack_budget.json"
    path.write_text(recorded.written(content))
    assert recorded.read(path, content["settings"]) == content
    assert len(path.read_text().splitlines()) == 2 + len(content["rows"])
    with pytest.raises(InputError, match="recorded: .* expected {'draws': 10"):
        recorded.read(path, {"draws": 10})
    path.write_text(json.dumps({"settings": {"draws": 3}, "rows": content["rows"]}))
    with pytest.raises(InputError, match="recorded: .* cannot be read"):
        recorded.read(path)


def test_the_figure_has_the_attacks_with_several_budgets():
    with PIL.Image.open(io.BytesIO(figure.draw(_content()))) as image:
        assert image.width > 500
        assert image.height > 500
    content = _content()
    with pytest.raises(InputError, match="against: got 'c', expected one of"):
        figure.draw(content, "c")
    content["rows"] = content["rows"][2:]
    with pytest.raises(InputError, match="every attack has one budget"):
        figure.draw(content)


def test_the_figure_that_ships_names_what_made_it():
    path = ROOT / "docs" / "attack_budget.png"
    assert path.stat().st_size < 150_000
    with PIL.Image.open(path) as image:
        named = image.text["Command"].split("--recorded=")[1]
        assert image.text["Commit"]
    content = recorded.read(ROOT / named)
    assert content["settings"]["split"] != "test"
