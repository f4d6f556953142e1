"""Tables and leaderboard are what results/ says, and every result says where it is from."""

import json
import re

import numpy as np
import PIL.Image
import pytest
from conftest import ROOT

from experiments.reproduction import leaderboard, model_list, results, tables
from purify_jax.checks import InputError

PAIRED = "Adversarially trained, with and without the denoising step, paired by image"


def test_the_leaderboard_is_what_results_say():
    text = (ROOT / "docs" / "leaderboard.md").read_text()
    assert leaderboard.page(ROOT / "results") == text
    shown = json.loads((ROOT / "results/digits/honest_linf_0.15.json").read_text())
    share = shown["summary"]["defended"]["average"]
    shown = f"{100 * share[0]:.1f} [{100 * share[1]:.1f}, {100 * share[2]:.1f}]"
    assert f"| digits | linf 0.15 | honest | 96.9 | {shown} |" in text


def test_the_page_of_models_names_every_file_that_ships():
    shipped = ROOT / "pretrained"
    text = (shipped / "README.md").read_text()
    assert model_list.page(ROOT / "results", shipped) == text
    for path in shipped.glob("*.safetensors"):
        assert f"`{path.name}`" in text
    clean = json.loads((ROOT / "results/cifar10_purified/clean.json").read_text())
    share = results.span(clean["summary"]["defended"]["average"])
    row = text.split("\n**ADP, σ = 0.1, fine-tuned: ")[1].split("\n**adversarially")[0]
    assert f"- Results in percent: clean {share}" in row
    assert "`cifar10_classifier_purified.safetensors`, with `--noise_scale=0.1 --rate=0.25`." in row
    assert (
        "| control | `cifar10_classifier_adversarial.safetensors` | `cifar10_defense` | classifier | 1.3 |"
        in text
    )


def test_the_page_of_models_does_not_guess_hours(tmp_path):
    """Of a training in pieces the seconds are those of the last."""
    (tmp_path / "cifar10_networks").mkdir()
    record = {"seconds": 60.0, "continued": True, "commit": "abc"}
    (tmp_path / "cifar10_networks" / "edm.json").write_text(json.dumps(record))
    page = model_list.page(tmp_path, tmp_path)
    assert "| edm | `cifar10_edm.safetensors` | `cifar10_edm` |  | not recorded | abc |" in page
    assert "| dsm |" not in page


@pytest.mark.parametrize("page", tables.MARKED)
def test_tables_are_what_results_say(page):
    text = (ROOT / page).read_text()
    assert tables.rewrite(text, ROOT / "results") == text


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_first_picture_is_told_as_it_was_measured(page):
    """The sentence below it is written by hand, the figures are those of results/."""
    said = " ".join((ROOT / page).read_text().split())
    shown = json.loads((ROOT / "results/cifar10_defense/photographs.json").read_text())
    rows = {row["name"]: row for row in shown["attacks"]}
    count = lambda name, label: round(rows[name][label] * rows[name]["images"])
    assert {row["images"] for row in rows.values()} == {32}
    bare, defended = (count("blind PGD", label) for label in ("undefended", "defended"))
    assert (
        f"the bare classifier gets {bare} of 32 photographs right and the defense {defended}"
        in said
    )
    assert f"ten steps long, leaves {count('exact+EOT', 'defended')} of the 32" in said
    assert rows["exact+EOT"]["steps"] == 10
    honest = json.loads((ROOT / "results/cifar10_defense/honest_linf_0.0314.json").read_text())
    # What stands below the six pictures, as the page of the same run says it.
    report = (ROOT / "results/cifar10_defense/photographs.html").read_text()
    blind, exact = re.search(r"6 images.* Right at the end: (\d), and (\d)\.", report).groups()
    words = dict(
        zip("0123456", ["none", "one", "two", "three", "four", "five", "six"], strict=True)
    )
    assert f"recovers {words[blind]} of six" in said
    assert f"the purifier: {words[exact]} of six are left" in said
    average, *_, images = honest["summary"]["defended"]["average"]
    assert f"suite `honest` leaves {100 * average:.1f}% of {images} images" in said


def test_the_headline_is_in_percent_and_says_where_it_is_a_bound():
    text = (ROOT / "README.md").read_text()
    honest = json.loads((ROOT / "results/cifar10_defense/honest_linf_0.0314.json").read_text())
    value, low, high, images = honest["summary"]["defended"]["average"]
    row = next(x for x in text.splitlines() if x.startswith("| one denoising step |"))
    assert f"| **{100 * value:.1f}** [{100 * low:.1f}, {100 * high:.1f}] |" in row  # all its steps
    assert row.endswith(f"| {images} |")
    adp = next(x for x in text.splitlines() if x.startswith("| ADP, σ = 0.25 |"))
    assert adp.count("²") == 2  # fewer steps, through one restart: of both suites


def test_the_page_on_exact_gradients_tells_what_was_measured():
    text = " ".join((ROOT / "docs" / "why_exact_gradients.md").read_text().split())
    rows = re.findall(
        r"^\| .* \| (.*) \|$", (ROOT / "docs/why_exact_gradients.md").read_text(), re.MULTILINE
    )
    assert len(rows) == 5  # the head and four attackers
    read = lambda name: json.loads((ROOT / "results" / name).read_text())["summary"]
    worst = read("digits/honest_linf_0.15.json")["defended"]["all_draws"][0]
    average = read("digits/honest_linf_0.15.json")["defended"]["average"][0]
    assert (
        f"all ten draws: {100 * worst:.1f}% on `digits`, where the average is {100 * average:.1f}%"
        in text
    )
    shares = [
        read(f"cifar10_adp/{s}_linf_0.0314.json")["defended"]["average"]
        for s in ("paper", "honest")
    ]
    said = f"falls from {100 * shares[0][0]:.1f}% under the suite `paper` to {100 * shares[1][0]:.1f}% under `honest`"
    assert said in text
    gains = {}
    for suite in ("paper", "honest"):
        with_step = read(f"cifar10_defense/{suite}_linf_0.0314.json")["defended"]["average"][0]
        without = read(f"cifar10_control/{suite}_linf_0.0314.json")["undefended"]["average"][0]
        gains[suite] = 100 * (with_step - without)
    assert (
        f"gains {gains['paper']:.1f} points. Under `honest` it loses {-gains['honest']:.1f}" in text
    )


@pytest.mark.parametrize(
    "text", ["<!-- table: nothing -->\n<!-- end -->", "<!-- table: digits -->", "<!-- attackers: digits -->\n<!-- table: mnist --><!-- end -->"]
)  # fmt: skip
def test_a_marker_without_results_or_end_is_refused(text):
    with pytest.raises(InputError, match="marker: got <!-- "):
        tables.rewrite(text, ROOT / "results")


_ABOUT = {
    "union_accuracy": {},
    "budget": "full plan.",
    "seconds": 60,
    "versions": {"device": "cpu", "jax": "1"},
}


def _part(label, settings, average, correct_draws, **more):
    cost = {"purifier_backward": 900.0, "classifier_backward": 400.0}
    figures = {"average": average, "all_draws": [0.1, 0.0, 0.2, 4], "draws": 2, "cost": cost}
    return {
        "commit": "abc",
        "settings": settings,
        "rows": {label: [{"attack": "clean", "one_draw": [0.8, 0.7, 0.9, 4]}]},
        "summary": {"undefended": figures, label: figures},
        "per_image": {label: {"draws": 2, "correct_draws": correct_draws}},
        "red_flags": [],
    } | more


def test_passes_are_told_with_the_restarts_that_each_went_through():
    part = _part("defended", {"surrogate_restarts": 1}, [0.5, 0.2, 0.8, 4], [1, 1, 1, 1])
    assert results.spent(part) == "900 backward passes, each through 1 restart"
    assert (
        results.spent(part | {"settings": {"surrogate_restarts": 4}}, "")
        == "900, each through 4 restarts"
    )
    skipped = {"settings": {"skip": ["SPSA", "shared keys"]}}
    assert results.spent(part | skipped) == "900 backward passes, without SPSA"
    assert results.spent(part | {"settings": {}}) == "900 backward passes"


def test_defenses_are_one_table_with_their_paired_difference(tmp_path):
    settings = {"suite": "honest", "norm": "linf", "epsilon": 0.0313725}
    evaluations = {
        # Shares of right draws 1, 1, 1/2, 0 and 1/2, 1, 0, 0: on average 1/4 apart, with a t interval of ±0.459.
        "cifar10_defense": _part("defended", settings, [0.625, 0.2, 0.9, 4], [2, 2, 1, 0]),
        "cifar10_control": _part("undefended", settings, [0.375, 0.1, 0.7, 4], [1, 2, 0, 0], red_flags=[1]),
    }  # fmt: skip
    evaluations["cifar10_control"]["summary"]["undefended"] |= {"draws": 1}
    for name, part in evaluations.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "honest_linf_0.0314.json").write_text(json.dumps(part))
    certified = {"radii": [0.0, 0.25], "settings": {"images": 100}, "commit": "def"}
    curve = {"undefended": [[0.2] * 3] * 2, "defended": [[0.9] * 3, [0.55, 0.45, 0.64]]}
    (tmp_path / "cifar10_certified").mkdir()
    part = json.dumps({**certified, "certified_accuracy": curve})
    (tmp_path / "cifar10_certified" / "certification.json").write_text(part)
    page = tables.rewrite("<!-- defenses: cifar10 --><!-- end -->", tmp_path)
    assert "| **62.5 [20.0, 90.0]** | 10.0 [0.0, 20.0] | – |" in page
    assert "`honest`: 4 images, 900 backward passes.\n" in page
    assert "`honest`: 4 images, 400 backward passes, **red flags**.\n" in page
    assert "| 55.0 [45.0, 64.0] |" in page
    assert "Certified: 100 images." in page
    assert "Not evaluated yet: ADP, σ = 0.25; ADP, σ = 0.1; ADP, σ = 0.1, fine-tuned.\n" in page
    d = np.array([0.5, 0.0, 0.5, 0.0])
    half = 3.182446 * d.std(ddof=1) / 2
    shown = f"+25.0 [{25 - 100 * half:+.1f}, {25 + 100 * half:+.1f}]"
    assert f"{PAIRED}:\n" in page
    assert f"| `honest`, linf 8/255 | 62.5 | 37.5 | {shown} | 4 |" in page
    assert "commit abc, def." in page


def test_a_defense_says_what_papers_report_beside_the_exact_gradient(tmp_path):
    ball = {"norm": "linf", "epsilon": 0.0313725, "draws": 2, "images": 4}
    blind = {"attack": "blind", "one_draw": [0.9, 0.8, 1.0, 4], "mean": [0.7, 0.6, 0.8, 4]}
    parts = {
        "clean": ({"suite": "clean"}, 0.75),
        "paper_linf_0.0314": (ball | {"suite": "paper", "steps": 40, "eot": 4}, 0.5),
        "honest_linf_0.0314": (ball | {"suite": "honest", "steps": 100}, 0.25),
    }
    (tmp_path / "cifar10_adp").mkdir()
    for name, (settings, share) in parts.items():
        part = _part("defended", settings, [share, share - 0.1, share + 0.1, 4], [1, 1, 1, 1])
        part["rows"]["defended"] = [blind]
        (tmp_path / "cifar10_adp" / f"{name}.json").write_text(json.dumps(part))
    page = tables.rewrite("<!-- defenses: cifar10 --><!-- end -->", tmp_path)
    assert "| 75.0 [65.0, 85.0] | 50.0 [40.0, 60.0] | **25.0 [15.0, 35.0]** |" in page
    assert "`paper`: 4 images, 40 steps × 4 draws." in page
    assert "`honest`: 4 images, 100 steps, 900 backward passes" in page
    assert "`honest`, L2" not in page  # no defense has it: no column
    assert "`paper` by attack, the mean prediction of 2 draws: blind 70.0 [60.0, 80.0]." in page
    (tmp_path / "cifar10_adp" / "paper_linf_0.0314.json").unlink()
    assert "by attack" not in tables.rewrite("<!-- defenses: cifar10 --><!-- end -->", tmp_path)


def test_every_threat_that_a_defense_met_is_a_row(tmp_path):
    for defense, label, balls in (
        ("cifar10_adp", "defended", {("linf", 8 / 255): 0.25, ("l1", 12.0): 0.375}),
        ("cifar10_control", "undefended", {("linf", 8 / 255): 0.5, ("l2", 1.0): 0.75}),
        ("cifar10_purified", "defended", {("linf", 8 / 255): 0.5}),  # no other ball: no column
    ):
        (tmp_path / defense).mkdir()
        for (norm, epsilon), share in balls.items():
            settings = {"suite": "honest", "norm": norm, "epsilon": epsilon}
            part = _part(label, settings, [share, share - 0.125, share + 0.125, 4], [1, 1, 1, 1])
            file = tmp_path / defense / f"honest_{norm}_{epsilon:.3g}.json"
            file.write_text(json.dumps(part))
    corrupted = {"settings": {"images": 4}, "commit": "abc"}
    corrupted["mean_accuracy"] = {"undefended": [0.9] * 3, "defended": [0.625, 0.5, 0.75, 4]}
    (tmp_path / "cifar10_adp" / "corruptions.json").write_text(json.dumps(corrupted))
    page = tables.rewrite("<!-- defenses: cifar10 --><!-- end -->", tmp_path)
    assert (
        "| threat | ADP, σ = 0.25 | adversarially trained, no purifier |\n|---|---:|---:|\n"
        "| linf 8/255 | 25.0 [12.5, 37.5] | 50.0 [37.5, 62.5] |\n"
        "| l2 1 | – | 75.0 [62.5, 87.5] |\n"
        "| l1 12 | 37.5 [25.0, 50.0] | – |\n"
        "| corruptions | 62.5 [50.0, 75.0] | – |\n"
    ) in page
    assert "`honest` l1 12: 4 images" in page


def test_a_classifier_alone_has_a_table_and_a_place_in_the_leaderboard(tmp_path):
    settings = {"suite": "honest", "norm": "linf", "epsilon": 0.0314}
    part = _part("undefended", settings, [0.375, 0.1, 0.7, 4], [1, 2, 0, 0])
    (tmp_path / "cifar10_control").mkdir()
    file = tmp_path / "cifar10_control" / "honest_linf_0.0314.json"
    file.write_text(json.dumps(part | _ABOUT))
    shown = tables.block("cifar10_control", file.parent)
    assert "| **`honest`, average**, linf 0.0314 | 4 | 37.5 | – | [10.0, 70.0] |" in shown
    assert "| none | 4 | 80.0 | – | [70.0, 90.0] |" in shown
    assert "`honest`: 400 backward passes an image. Full plan. 1 minutes on cpu" in shown
    assert "| 37.5 [10.0, 70.0] | 10.0 [0.0, 20.0] | 400 |" in leaderboard.page(tmp_path)


def test_a_defense_alone_has_a_table(tmp_path):
    settings = {"suite": "honest", "norm": "linf", "epsilon": 0.0314}
    part = _part("defended", settings, [0.375, 0.1, 0.7, 4], [1, 2, 0, 0])
    del part["summary"]["undefended"]
    (tmp_path / "honest_linf_0.0314.json").write_text(json.dumps(part | _ABOUT))
    shown = tables.block("cifar10_defense", tmp_path)
    assert "| 4 | – | 37.5 | [10.0, 70.0] |" in shown
    assert "`honest`: 900 backward passes an image." in shown


def test_every_result_names_its_command_and_commit():
    files = [p for p in (ROOT / "results").rglob("*") if p.is_file() and p.name != ".lock"]
    assert files
    for path in files:
        if path.suffix == ".json":
            content = json.loads(path.read_text())
            assert content["command"]
            assert content["commit"] != "unknown"
        elif path.suffix == ".png":
            with PIL.Image.open(path) as image:
                assert image.text["Command"]
                assert image.text["Commit"]
        else:
            assert "; commit " in path.read_text()
