"""Models as folders in Hugging Face's layout, and by their names on the hub (which is faked here)."""

import json
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from conftest import ROOT, keys_for

import purify_jax as pj
from purify_jax.checks import InputError
from purify_jax.models.cards import readme


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The shipped digits models as a folder."""
    place = tmp_path_factory.mktemp("hub") / "digits"
    pj.pretrained.save(place, pj.pretrained.load("digits"), license="mit")
    return place


def front_matter(folder):
    _, metadata, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(metadata), text


def fake_hub(monkeypatch, answer):
    """A package huggingface_hub whose snapshot_download is ``answer``."""
    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = answer
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_a_folder_holds_the_files_that_ship_and_predicts_as_they_do(folder):
    shipped = json.loads((ROOT / "pretrained/digits.json").read_text())
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md", "classifier.safetensors", "config.json", "model.safetensors",
    ]  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    for role, name in (("score_model", "model"), ("classifier", "classifier")):
        assert config["files"][role]["sha256"] == pj.pretrained.digest(
            folder / f"{name}.safetensors"
        )
        assert config["files"][role]["parameters"] == shipped["files"][role]["parameters"]
    assert config["library_name"] == "purify_jax"
    assert config["image_shape"] == [8, 8, 1]
    assert config["evaluations"] == shipped["evaluations"]
    ready, again = pj.pretrained.load("digits"), pj.pretrained.load(folder)
    images = jnp.full((2, 8, 8, 1), 0.5)
    expected = ready.defense(keys_for(2), images)
    np.testing.assert_array_equal(again.defense(keys_for(2), images), expected)


def test_bfloat16_models_stay_half_as_large_and_lose_nothing(tmp_path):
    ready = pj.pretrained.load("cifar10")
    files = {
        "score_model": "cifar10_defense_score_model",
        "classifier": "cifar10_defense_classifier",
    }
    pj.pretrained.save(tmp_path / "c", ready)
    for role, name in (("score_model", "model"), ("classifier", "classifier")):
        written = tmp_path / "c" / f"{name}.safetensors"
        shipped = ROOT / f"pretrained/{files[role]}.safetensors"
        assert written.stat().st_size < 1.01 * shipped.stat().st_size
        model = getattr(ready, role)
        jax.tree.map(
            np.testing.assert_array_equal, pj.load_model(written).variables, model.variables
        )


def test_the_card_says_what_the_hub_reads(folder):
    metadata, text = front_matter(folder)
    assert metadata["license"] == "mit"
    assert metadata["datasets"] == ["digits"]
    assert metadata["metrics"] == ["accuracy"]
    assert {"jax", "adversarial-purification"} <= set(metadata["tags"])
    (model,) = metadata["model-index"]
    figures = json.loads((folder / "config.json").read_text())["evaluations"]
    honest = figures["honest_linf_0.15"]["union_accuracy"]
    (result,) = [
        r for r in model["results"]
        if "honest_linf_0.15" in r["dataset"]["name"] and "union" in r["metrics"][0]["name"]
    ]  # fmt: skip
    assert [m["value"] for m in result["metrics"]] == [
        honest["defended"][0],
        honest["undefended"][0],
    ]
    cell = lambda found: f"{found[0]:.3f} [{found[1]:.3f}, {found[2]:.3f}]"
    row = [cell(honest["undefended"]), cell(honest["defended"]), str(honest["defended"][3])]
    assert f"| honest_linf_0.15 | union of attacks | {' | '.join(row)} |" in text.splitlines()
    assert 'pj.pretrained.load("THIS_FOLDER")' in text


def test_the_card_says_how_long_training_took_and_what_the_figures_do_not_cover(tmp_path):
    ready = pj.pretrained.load("cifar10")
    pj.pretrained.save(tmp_path / "c", ready)
    text = (tmp_path / "c" / "README.md").read_text()
    assert f"## Limits\n\n{ready.card['limits']}\n" in text
    made = ready.card["training"]["edm"]
    line = f"- edm: {made['hours']} h, two CPU cores, commit {made['commit']}: `{made['command']}`."
    assert line in text.splitlines()
    card = {**ready.card, "image_shape": [32, 32, 3]}
    card["training"]["edm"]["hours"] = None
    assert "- edm: hours not recorded, two CPU cores" in readme(card)


def test_own_models_as_a_folder(tmp_path):
    score_model, classifier = pj.pretrained.load("digits")[2:4]
    pj.pretrained.save(tmp_path / "mine", (score_model, classifier))
    ready = pj.pretrained.load(str(tmp_path / "mine"))
    assert ready.card["data"] == "digits"
    assert ready.card["purification"] == dict(score_model.metadata["purification"])
    assert ready.score_model.metadata == dict(score_model.metadata)
    metadata, _ = front_matter(tmp_path / "mine")
    assert "license" not in metadata
    assert "model-index" not in metadata
    # An earlier version is written over; somebody else's config.json is not.
    pj.pretrained.save(tmp_path / "mine", (score_model, classifier), license="mit")
    assert front_matter(tmp_path / "mine")[0]["license"] == "mit"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="config.json is not of this package"):
        pj.pretrained.save(tmp_path / "other", (score_model, classifier))
    with pytest.raises(InputError, match=r"score_model: made for images \(28, 28, 1\)"):
        pj.pretrained.save(tmp_path / "x", (pj.pretrained.load("mnist").score_model, classifier))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".hidden", "", None, 3]
)
def test_a_config_names_no_file_outside_its_folder(folder, tmp_path, name):
    place = tmp_path / "copy"
    shutil.copytree(folder, place)
    config = json.loads((place / "config.json").read_text())
    config["files"]["score_model"]["name"] = name
    (place / "config.json").write_text(json.dumps(config))
    shutil.copy(folder / "model.safetensors", tmp_path)
    with pytest.raises(InputError, match="expected a name without a folder"):
        pj.pretrained.load(place)


def test_damage_is_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    victim = tmp_path / "copy" / "model.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        pj.pretrained.load(tmp_path / "copy")
    for text in ("{", "[]", '"x"', "[" * 100_000):
        (tmp_path / "copy" / "config.json").write_text(text)
        with pytest.raises(InputError, match=r"the card .*config.json is damaged"):
            pj.pretrained.load(tmp_path / "copy")
    with pytest.raises(InputError, match="a folder with config.json, or hf:OWNER/NAME"):
        pj.pretrained.load(tmp_path)


def test_a_name_on_the_hub(folder, monkeypatch):
    asked = []

    def snapshot_download(repository, **more):
        asked.append((repository, more))
        return str(folder)

    fake_hub(monkeypatch, snapshot_download)
    ready = pj.pretrained.load("hf:some-one/digits.adp@v1.0")
    assert ready.card["data"] == "digits"
    patterns = ["config.json", "README.md", "*.safetensors"]
    assert asked == [("some-one/digits.adp", {"revision": "v1.0", "allow_patterns": patterns})]
    pj.pretrained.load("hf:a/b")
    assert asked[1][1]["revision"] is None


@pytest.mark.parametrize(
    "name", ["hf:", "hf:a", "hf:a/b/c", "hf:../x", "hf:a/..", "hf:a/b..c", "hf:/etc/passwd", "hf:a/b@", "hf:a/b@../x", "hf:a/b\n", "hf:é/b", "hf:a/" + "x" * 97]
)  # fmt: skip
def test_what_is_no_name_of_the_hub_is_not_asked_for(name, monkeypatch):
    fake_hub(monkeypatch, lambda *a, **k: pytest.fail("the hub was asked"))
    with pytest.raises(
        InputError, match=r"^pretrained: got .*, expected hf:OWNER/NAME\[@REVISION\]$"
    ):
        pj.pretrained.load(name)


def test_no_package_no_network_no_model(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"needs the package huggingface_hub \(pip install"):
        pj.pretrained.load("hf:a/b")

    def unreachable(*arguments, **more):
        raise ConnectionError("Cannot reach\nthe host" + "." * 1000)

    fake_hub(monkeypatch, unreachable)
    with pytest.raises(InputError, match=r"^pretrained: hf:a/b cannot be fetched \(ConnectionError: Cannot reach the host[^\n]*$") as found:  # fmt: skip
        pj.pretrained.load("hf:a/b")
    assert len(str(found.value)) < 400
    fake_hub(monkeypatch, lambda *a, **k: str(tmp_path))
    with pytest.raises(InputError, match="hf:a/b has no config.json"):
        pj.pretrained.load("hf:a/b")


@pytest.mark.ci
def test_a_binary_takes_a_folder(folder, run_binary, tmp_path):
    done = run_binary("export", f"--model={folder}", f"--output={tmp_path / 'defense.jax'}")
    assert (tmp_path / "defense.jax").stat().st_size > 1000
    assert "the exported defense" in done.stdout
    done = run_binary("export", "--model=hf:a//b", f"--output={tmp_path / 'x'}", check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "error: pretrained: got 'hf:a//b', expected hf:OWNER/NAME[@REVISION]\n",
    )
