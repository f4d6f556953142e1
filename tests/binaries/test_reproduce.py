"""reproduce on a small budget: every part writes, names its command, and is not repeated."""

import importlib
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from conftest import ROOT

import purify_jax as pj
from experiments.common import config_schema, from_config, provenance
from experiments.reproduction import leaderboard, plans, publishing, rows, tables
from purify_jax.checks import InputError


def test_a_part_is_marked_and_not_repeated(run_binary, tmp_path):
    # The part "demo" was done elsewhere: its networks are those that ship.
    (tmp_path / "results").mkdir()
    demo = plans.plan("digits", 0.3, tmp_path / "runs", None).parts[0]
    done = {"command": provenance.shown(demo.command, None)}
    (tmp_path / "results" / "demo.json").write_text(json.dumps(done))
    args = (
        "--suite=digits", "--budget=0.3", f"--workdir={tmp_path / 'runs'}",
        f"--results={tmp_path / 'results'}", "--parts=demo,certification", "--noprogress",
    )  # fmt: skip
    first = run_binary("reproduce", *args)
    assert "demo: done before\ndemo: not trained here; taken from" in first.stdout
    results = tmp_path / "results"
    found = json.loads((results / "certification.json").read_text())
    assert found["command"].startswith("python -m experiments.certify --ebm=")
    assert "--n=100" in found["command"]
    assert "0.3 of 15 minutes" in found["budget"]
    assert len(found["commit"]) >= 7
    assert found["seconds"] > 0
    assert found["networks"] == "as shipped in pretrained/"
    (figure,) = (results / "figures").glob("certification_*.png")
    with PIL.Image.open(figure) as image:
        assert image.text["Command"] == found["command"]
        assert image.text["Commit"] == found["commit"]
    assert found["commit"] in (results / "certification.html").read_text()
    before = (results / "certification.json").stat().st_mtime_ns
    done = run_binary("reproduce", *args)
    assert "certification: done before" in done.stdout
    assert (results / "certification.json").stat().st_mtime_ns == before


def test_a_result_without_an_average_is_made_anew():
    assert plans.is_done({"command": "c", "worst_case": {}, "figures": {}}, "c")
    assert plans.is_done({"command": "c", "auroc": 1}, "c")
    assert not plans.is_done({"command": "c", "worst_case": {}}, "c")
    assert not plans.is_done({"command": "b", "figures": {}}, "c")
    assert not plans.is_done({}, "c")


@pytest.mark.parametrize("name", sorted(plans.SUITES))
def test_every_suite_has_a_config_that_builds(name):
    plan = plans.plan(name, None, tables.ROOT / "runs", "DIR")
    config = importlib.import_module(f"experiments.configs.{name}").get_config()
    assert config.purification.method in pj.models.METHODS
    pj.networks.build(config.ebm.network.to_dict())
    pj.networks.build({**config.classifier.network.to_dict(), "num_outputs": 10})
    levels = from_config.sigmas(config.ebm)
    assert levels.shape == (config.ebm.num_sigmas,)
    assert float(levels.max()) == pytest.approx(config.ebm.sigma_max)
    assert float(levels.min()) == pytest.approx(config.ebm.sigma_min)
    for section in ("ebm", "classifier"):
        assert from_config.settings(config, section).num_steps == config[section].steps
    # The full plan is the config's own number of steps, and purified training gets its purifier.
    steps = f"--config.ebm.steps={config.ebm.steps}"
    trained = [p for p in plan.parts if p.name in ("ebm", "demo")]
    assert steps in trained[0].command
    training = [p for p in plan.parts if p.name == "classifier"]
    purifies = any(x.startswith("--ebm=") for p in training for x in p.command)
    assert purifies == bool(config.classifier.get("purified", 0.0))


@pytest.mark.parametrize("name", sorted(rows.ROWS))
def test_every_row_trains_what_it_evaluates(name):
    """The configs hold the plan's steps, and each file that a command reads was made by one before it."""
    plan = plans.plan(name, None, tables.ROOT / "runs" / name, "DIR")
    made = set()
    for part in plan.parts:
        flags = dict(x.removeprefix("--").partition("=")[::2] for x in part.command[1:])
        read = {flags[n] for n in ("ebm", "classifier") if n in flags}
        assert read <= made
        if part.is_training:
            made |= {str(part.folder / f"{n}.safetensors") for n in ("model", "classifier", "ebm")}
            (steps,) = [n for n in flags if n.endswith(".steps")]
            section = steps.split(".")[1]
            module = Path(flags["config"]).stem
            config = importlib.import_module(f"experiments.configs.{module}").get_config()
            share = 0.5 if part.name == "defense" else 1  # row C: each step costs twice row D's
            assert int(flags[steps]) == share * config[section].steps
            config_schema.check(config, section)
    evaluated = [part for part in plan.parts if not part.is_training]
    classified = [part for part in evaluated if part.name != "denoising"]
    assert all(f"--classifier={plan.classifier}" in part.command for part in classified)
    assert all(
        (f"--ebm={plan.ebm}" in part.command) == (plan.ebm is not None) for part in evaluated
    )


def test_rows_share_their_networks():
    trained = [
        {
            p.name: p.command
            for p in plans.plan(n, None, tables.ROOT / "runs" / n, None).parts
            if p.is_training
        }
        for n in ("cifar10_defense", "cifar10_control", "cifar10_adp")
    ]
    assert trained[0]["classifier"] == trained[1]["classifier"] == trained[2]["classifier"]
    # The control differs from the defense by its purifier, its folder and its steps, by nothing else.
    assert {
        p.shared
        for p in plans.plan("cifar10_control", None, tables.ROOT / "runs", None).parts
        if p.is_training
    } == {"cifar10_networks"}
    apart = ("--ebm", "--workdir", "--config.defense.steps")
    without = lambda command: [x for x in command if not x.startswith(apart)]
    assert without(trained[0]["defense"]) == without(trained[1]["control"])


def test_a_training_of_two_networks_ships_both():
    def shipped(row):
        parts = plans.plan(row, None, tables.ROOT / "runs" / row, None).parts
        return [p.shipped for p in parts if p.name == row.removeprefix("cifar10_")]

    assert shipped("cifar10_defense") == [
        {
            "classifier.safetensors": "cifar10_row_defense.safetensors",
            "ebm.safetensors": "cifar10_row_defense_ebm.safetensors",
        }
    ]
    assert shipped("cifar10_control") == [
        {"classifier.safetensors": "cifar10_row_control.safetensors"}
    ]


def test_a_network_is_published_alone(models, tmp_path):
    """What a training part made is stored beside the models that ship, and read back as it was."""
    source, target = tmp_path / "model.safetensors", tmp_path / "shipped.safetensors"
    pj.models.save_model(source, models[1])
    said = publishing.publish_network(source, target)
    assert said["stored_as"] == "float32"
    assert said["sha256"] == pj.pretrained.digest(target)
    assert target.read_bytes() == source.read_bytes()


def test_a_budget_scales_steps_and_images():
    full = plans.plan("mnist", None, tables.ROOT / "runs", "DIR")
    half = plans.plan("mnist", 30, tables.ROOT / "runs", "DIR")
    assert [p.name for p in full.parts] == [p.name for p in half.parts]
    flag = lambda plan, part, name: next(
        x.split("=")[1]
        for p in plan.parts
        if p.name == part
        for x in p.command
        if x.startswith(f"--{name}=")
    )
    assert flag(full, "paper_linf_0.3", "images") == "256"
    assert flag(half, "paper_linf_0.3", "images") == "128"
    assert flag(half, "ebm", "config.ebm.steps") == "10000"
    assert "30 of 60 minutes" in half.note


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--budget=0",), "budget: got 0.0, expected a positive number"),
        (("--budget=inf",), "budget: got inf, expected a positive number"),
        (("--suite=digits", "--parts=nothing"), "parts: got ['nothing'], expected some of"),
    ],
)
def test_bad_input_gets_one_line(run_binary, tmp_path, args, message):
    done = run_binary("reproduce", *args, f"--workdir={tmp_path}", check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_leaderboard_is_what_results_say():
    text = (ROOT / "docs" / "leaderboard.md").read_text()
    assert leaderboard.page(ROOT / "results") == text
    shown = json.loads((ROOT / "results/digits/honest_linf_0.15.json").read_text())
    share = (
        shown.get("figures", {}).get("defended", {}).get("average", shown["worst_case"]["defended"])
    )
    assert f"{share[0]:.3f} [{share[1]:.3f}, {share[2]:.3f}]" in text


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_tables_are_what_results_say(page):
    text = (ROOT / page).read_text()
    assert tables.rewrite(text, ROOT / "results") == text


def test_another_suite_in_readmes_one_line_is_another_flagship():
    text = (ROOT / "README.md").read_text()
    other = tables.rewrite(text.replace("flagship: digits", "flagship: cifar10"), ROOT / "results")
    _, table = other.split("CIFAR-10; from `results/cifar10/`")
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert rows[1] == "| none | 1000 | 0.798 | 0.715 | [0.686, 0.742] |"
    assert sum("BPDA+EOT" in row for row in rows) == sum("`honest`" in row for row in rows) == 2


@pytest.mark.parametrize(
    "text", ["<!-- table: nothing -->\n<!-- end -->", "<!-- table: digits -->", "<!-- flagship: digits -->\n<!-- table: mnist --><!-- end -->"]
)  # fmt: skip
def test_a_marker_without_results_or_end_is_refused(text):
    with pytest.raises(InputError, match="marker: got <!-- "):
        tables.rewrite(text, ROOT / "results")


def _part(label, settings, average, correct_draws, **more):
    cost = {"purifier_backward": 900.0, "classifier_backward": 400.0}
    figures = {"average": average, "worst": [0.1, 0.0, 0.2, 4], "draws": 2, "cost": cost}
    return {
        "commit": "abc",
        "settings": settings,
        "rows": {label: [{"attack": "clean", "one_draw": [0.8, 0.7, 0.9, 4]}]},
        "figures": {"undefended": figures, label: figures},
        "per_image": {label: {"draws": 2, "correct_draws": correct_draws}},
        "red_flags": [],
    } | more


def test_rows_are_one_table_with_their_paired_difference(tmp_path):
    settings = {"suite": "honest", "norm": "linf", "epsilon": 0.0313725}
    evaluations = {
        # Shares of right draws 1, 1, 1/2, 0 and 1/2, 1, 0, 0: on average 1/4 apart, with a t interval of ±0.459.
        "cifar10_defense": _part("defended", settings, [0.625, 0.2, 0.9, 4], [2, 2, 1, 0]),
        "cifar10_control": _part("undefended", settings, [0.375, 0.1, 0.7, 4], [1, 2, 0, 0], red_flags=[1]),
    }  # fmt: skip
    evaluations["cifar10_control"]["figures"]["undefended"] |= {"draws": 1}
    for name, part in evaluations.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "honest_linf_0.0314.json").write_text(json.dumps(part))
    certified = {"radii": [0.0, 0.25], "settings": {"images": 100}, "commit": "def"}
    curve = {"undefended": [[0.2] * 3] * 2, "defended": [[0.9] * 3, [0.55, 0.45, 0.64]]}
    (tmp_path / "cifar10_certified").mkdir()
    part = json.dumps({**certified, "certified_accuracy": curve})
    (tmp_path / "cifar10_certified" / "certification.json").write_text(part)
    (tmp_path / "cifar10").mkdir()
    page = tables.rewrite("<!-- rows: cifar10 --><!-- end -->", tmp_path)
    assert (
        "| **0.625 [0.200, 0.900]** (4, 900 backward passes) | 0.100 [0.000, 0.200] (4) |" in page
    )
    assert "(4, 400 backward passes), **red flags** | as the average |" in page
    assert "| 0.550 [0.450, 0.640] (100) |" in page
    assert "Not run yet: A, B." in page
    d = np.array([0.5, 0.0, 0.5, 0.0])
    half = 3.182446 * d.std(ddof=1) / 2
    shown = f"+0.250 [{0.25 - half:+.3f}, {0.25 + half:+.3f}]"
    assert f"C − D, paired by image: `honest`, linf 8/255 {shown} (4 images)." in page
    assert "commit abc, def." in page


def test_a_classifier_alone_has_a_table_and_a_place_in_the_leaderboard(tmp_path):
    settings = {"suite": "honest", "norm": "linf", "epsilon": 0.0314}
    part = _part("undefended", settings, [0.375, 0.1, 0.7, 4], [1, 2, 0, 0])
    about = {
        "worst_case": {},
        "budget": "full plan.",
        "seconds": 60,
        "versions": {"device": "cpu", "jax": "1"},
    }
    (tmp_path / "cifar10_control").mkdir()
    file = tmp_path / "cifar10_control" / "honest_linf_0.0314.json"
    file.write_text(json.dumps(part | about))
    shown = tables.block("cifar10_control", file.parent)
    average = "| **average under `honest`, linf 0.0314** (400 backward passes) | 4 | 0.375 |  | [0.100, 0.700] |"
    assert average in shown
    assert "| none | 4 | 0.800 |  | [0.700, 0.900] |" in shown
    assert "| 0.375 [0.100, 0.700] | 2: 0.100 [0.000, 0.200] | 400 |" in leaderboard.page(tmp_path)


def test_a_defense_alone_has_a_table(tmp_path):
    settings = {"suite": "honest", "norm": "linf", "epsilon": 0.0314}
    part = _part("defended", settings, [0.375, 0.1, 0.7, 4], [1, 2, 0, 0])
    del part["figures"]["undefended"]
    about = {
        "worst_case": {},
        "budget": "full plan.",
        "seconds": 60,
        "versions": {"device": "cpu", "jax": "1"},
    }
    (tmp_path / "honest_linf_0.0314.json").write_text(json.dumps(part | about))
    shown = tables.block("cifar10_defense", tmp_path)
    assert "(900 backward passes) | 4 |  | 0.375 | [0.100, 0.700] |" in shown


def test_fewer_images_change_nothing_else():
    full = plans.plan("cifar10_defense", None, tables.ROOT / "runs", None)
    fewer = plans.with_fewer_images(full, 300)
    images = lambda plan: [x for p in plan.parts for x in p.command if x.startswith("--images=")]
    # denoising, clean, paper and honest at Linf, honest at L2, in the order of the plan
    assert images(full) == [f"--images={n}" for n in (512, 10_000, 512, 512, 256)]
    assert images(fewer) == [f"--images={n}" for n in (300, 300, 300, 300, 256)]
    rest = lambda plan: [
        [x for x in p.command if not x.startswith("--images=")] for p in plan.parts
    ]
    assert rest(full) == rest(fewer)
    assert fewer.note.endswith("At most 300 images.")
    with pytest.raises(InputError, match="images: got 0"):
        plans.with_fewer_images(full, 0)


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
