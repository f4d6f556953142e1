"""reproduce on a small budget: every part writes, names its command, and is not repeated."""

import importlib
import json
from pathlib import Path

import PIL.Image
import pytest

import purify_jax as pj
from experiments.common import config_schema, from_config, provenance
from experiments.reproduction import defenses, plans, publishing, tables
from experiments.reproduction.parts import SHIPPED
from purify_jax.checks import InputError


@pytest.mark.ci
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
    assert found["command"].startswith("python -m experiments.certify --score_model=")
    assert "--n=100" in found["command"]
    assert "0.3 of 15 minutes" in found["budget"]
    assert len(found["commit"]) >= 7
    assert found["seconds"] > 0
    assert "continued" not in found
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
    # Without its result, the part goes on from its records: the seconds are no longer all of it.
    (results / "certification.json").unlink()
    run_binary("reproduce", *args)
    again = json.loads((results / "certification.json").read_text())
    assert again.pop("continued") is True
    assert again["certified_accuracy"] == found["certified_accuracy"]


def test_a_part_is_done_for_the_networks_that_it_read(models, tmp_path):
    """A network that was trained again does not keep the results of the one before."""
    plan = plans.plan("mnist", None, tmp_path, None)
    (part,) = [p for p in plan.parts if p.name == "clean"]
    elsewhere = {"command": "c", "network_digests": {"score_model": "0", "classifier": "1"}}
    assert part.is_done(elsewhere, "c")  # no network lies here: the result was brought along
    assert not part.is_done(elsewhere, "another")
    for path, model in ((plan.score_model, models[0]), (plan.classifier, models[1])):
        path.parent.mkdir()
        pj.models.save_model(path, model)
    done = {"command": "c", "network_digests": part.networks()}
    assert done["network_digests"] == {
        "score_model": pj.pretrained.digest(plan.score_model),
        "classifier": pj.pretrained.digest(plan.classifier),
    }
    assert part.is_done(done, "c")
    assert not part.is_done({"command": "c"}, "c")
    pj.models.save_model(plan.classifier, models[0])
    assert not part.is_done(done, "c")
    # The networks that ship are those of the results that ship.
    for path in (plan.score_model, plan.classifier):
        (path.parent / SHIPPED).write_text("")
    assert part.networks() == {}
    assert part.is_done(done, "c")


@pytest.mark.parametrize("name", sorted(plans.SUITES))
def test_every_suite_has_a_config_that_builds(name):
    plan = plans.plan(name, None, tables.ROOT / "runs", "DIR")
    module = f"experiments.configs.{name}"
    config = importlib.import_module(module).get_config()
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
    purifies = any(x.startswith("--score_model=") for p in training for x in p.command)
    assert purifies == bool(config.classifier.get("purified", 0.0))


@pytest.mark.parametrize("name", sorted(defenses.DEFENSES))
def test_every_defense_trains_what_it_evaluates(name):
    """The configs hold the plan's steps, and each file that a command reads was made by one before it."""
    plan = plans.plan(name, None, tables.ROOT / "runs" / name, "DIR")
    made = set()
    for part in plan.parts:
        flags = dict(x.removeprefix("--").partition("=")[::2] for x in part.command[1:])
        read = {flags[n] for n in ("score_model", "classifier") if n in flags}
        assert read <= made
        if part.is_training:
            made |= {
                str(part.folder / f"{n}.safetensors")
                for n in ("model", "classifier", "score_model")
            }
            (steps,) = [n for n in flags if n.endswith(".steps")]
            section = steps.split(".")[1]
            module = Path(flags["config"]).stem
            config = importlib.import_module(f"experiments.configs.{module}").get_config()
            # A step of a purifier with its classifier costs twice one of the classifier alone.
            share = 0.5 if part.name == "defense" else 1
            assert int(flags[steps]) == share * config[section].steps
            config_schema.check(config, section)
    shown = [part for part in plan.parts if part.name == "photographs"]
    # Photographs are shown with the model that ships, under the name that this plan publishes it by.
    assert all(f"--model={plan.model}" in part.command for part in shown)
    evaluated = [part for part in plan.parts if not part.is_training and part not in shown]
    classified = [part for part in evaluated if part.name != "denoising"]
    assert all(f"--classifier={plan.classifier}" in part.command for part in classified)
    assert all(
        (f"--score_model={plan.score_model}" in part.command) == (plan.score_model is not None)
        for part in evaluated
    )


def test_a_fine_tuned_defense_is_evaluated_as_it_was_trained():
    config = importlib.import_module("experiments.configs.cifar10_purified").get_config()
    trained = config.classifier.purification.to_dict()
    plan = plans.plan("cifar10_purified", None, tables.ROOT / "runs", "DIR")
    evaluated = [part for part in plan.parts if part.command[0] == "experiments.evaluate"]
    assert len(evaluated) == 7
    for part in evaluated:
        assert [x for x in part.command if x.startswith(("--noise_scale", "--rate"))] == [
            f"--{name}={value}" for name, value in trained.items()
        ]


def test_defenses_share_their_networks():
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
    apart = ("--score_model", "--workdir", "--config.defense.steps")
    without = lambda command: [x for x in command if not x.startswith(apart)]
    assert without(trained[0]["defense"]) == without(trained[1]["control"])


def test_a_training_of_two_networks_ships_both():
    def shipped(suite):
        parts = plans.plan(suite, None, tables.ROOT / "runs" / suite, None).parts
        return [p.shipped for p in parts if p.name == suite.removeprefix("cifar10_")]

    assert shipped("cifar10_defense") == [
        {
            "classifier.safetensors": "cifar10_defense_classifier.safetensors",
            "score_model.safetensors": "cifar10_defense_score_model.safetensors",
        }
    ]
    assert shipped("cifar10_control") == [
        {"classifier.safetensors": "cifar10_classifier_adversarial.safetensors"}
    ]


def test_a_network_is_published_alone(models, tmp_path):
    """What a training part made is stored beside the models that ship, and read back as it was."""
    source, target = tmp_path / "model.safetensors", tmp_path / "shipped.safetensors"
    pj.models.save_model(source, models[1])
    said = publishing.publish_network(source, target)
    assert said["stored_as"] == "float32"
    assert said["sha256"] == pj.pretrained.digest(target)
    assert target.read_bytes() == source.read_bytes()


def test_a_defense_is_published_under_the_names_of_its_networks(models, tmp_path):
    plan = plans.plan("cifar10_defense", None, tmp_path / "cifar10_defense", None)
    for path, model in ((plan.score_model, models[0]), (plan.classifier, models[1])):
        path.parent.mkdir(parents=True, exist_ok=True)
        pj.models.save_model(path, model)
    result = {"command": "python -m x", "commit": "abc"}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "clean.json").write_text(json.dumps(result))
    shipped = tmp_path / "pretrained"
    shipped.mkdir()
    # Of a run in pieces the seconds are of the last; its hours are written down by hand, or not known.
    trained = {"command": "python -m y", "commit": "def", "versions": {"device": "cpu"}}
    networks = tmp_path / "cifar10_networks"
    networks.mkdir(exist_ok=True)
    for name, measured in {
        "classifier": {"seconds": 900.0, "continued": True, "hours": 0.5, "note": "In two pieces."},
        "edm": {"seconds": 900.0, "continued": True},
        "defense": {"seconds": 1800.0},
    }.items():
        (networks / f"{name}.json").write_text(json.dumps({**trained, **measured}))
    made = publishing.publish(plan, tmp_path / "results", shipped)
    names = ("cifar10_defense_score_model.safetensors", "cifar10_defense_classifier.safetensors")
    assert [path.name for path in made] == [*names, "cifar10.json"]
    card = json.loads(made[-1].read_text())
    assert card["limits"] == defenses.DEFENSES["cifar10_defense"].limits
    of = {"command": "python -m y", "commit": "def", "device": "two CPU cores"}
    assert card["training"] == {
        "classifier": {**of, "hours": 0.5, "note": "In two pieces."},
        "edm": {**of, "hours": None},
        "defense": {**of, "hours": 0.5},
    }
    files = card["files"]
    assert tuple(files[role]["name"] for role in ("score_model", "classifier")) == names


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


def test_fewer_images_change_nothing_else():
    full = plans.plan("cifar10_defense", None, tables.ROOT / "runs", None)
    fewer = plans.with_fewer_images(full, 300)
    images = lambda plan: [x for p in plan.parts for x in p.command if x.startswith("--images=")]
    # denoising, clean, paper and honest at Linf, honest in three other balls, corruptions, convergence
    assert images(full) == [f"--images={n}" for n in (512, 10_000, 512, 512, *[128] * 4, 64)]
    assert images(fewer) == [f"--images={n}" for n in (300, 300, 300, 300, *[128] * 4, 64)]
    rest = lambda plan: [
        [x for x in p.command if not x.startswith("--images=")] for p in plan.parts
    ]
    assert rest(full) == rest(fewer)
    assert fewer.note.endswith("At most 300 images.")
    with pytest.raises(InputError, match="images: got 0"):
        plans.with_fewer_images(full, 0)
