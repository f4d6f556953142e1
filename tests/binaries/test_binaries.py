"""The binaries as a user runs them: files out, one clear line for bad input."""

import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

import purify_jax as pj

QUICK = (
    "--config.ebm.steps=300", "--config.classifier.steps=200", "--images=16", "--steps=2",
    "--eot=2", "--noprogress",
)  # fmt: skip


@pytest.fixture(scope="module")
def digit_images(tmp_path_factory):
    """A folder with three digits, one broken file and one of another size."""
    from purify_jax.data import load_split

    folder = tmp_path_factory.mktemp("digits")
    images = load_split("digits", "test").images[:3, ..., 0]
    for index, image in enumerate(images):
        Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(folder / f"{index}.png")
    (folder / "broken.png").write_bytes(b"nothing")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder / "large.png")
    return folder


@pytest.mark.ci
def test_quickstart_writes_results_and_report(run_binary, tmp_path):
    done = run_binary("quickstart", f"--workdir={tmp_path}", *QUICK)
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results) == {"dataset", "seed", "versions", "clean", "attacks", "seconds"}
    assert [a["name"] for a in results["attacks"]] == ["blind PGD", "BPDA+EOT", "exact+EOT"]
    for row in results["attacks"]:
        assert {"name", "norm", "epsilon", "steps", "eot", "undefended", "defended"} <= set(row)
        low, high = row["defended_ci95"]
        assert 0 <= low <= row["defended"] <= high <= 1
        assert (row["images"], row["epsilon"], row["norm"]) == (16, 0.15, "linf")
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "http" not in page.split("<body>")[1]
    names = {"purification", "steps", "energy", "accuracy_against_epsilon"}
    assert {p.stem for p in (tmp_path / "figures").iterdir()} == names
    assert "exact+EOT" in done.stdout
    assert str(tmp_path / "report.html") in done.stdout


def test_purify_skips_and_counts_unreadable_images(run_binary, model_files, digit_images, tmp_path):
    done = run_binary(
        "purify",
        f"--score_model={model_files[0]}",
        f"--input={digit_images}",
        f"--workdir={tmp_path}",
    )
    assert "3 images purified, 2 skipped" in done.stdout
    assert "broken.png cannot be read" in done.stdout
    assert "large.png is (9, 9, 1), expected (8, 8, 1)" in done.stdout
    assert sorted(p.name for p in (tmp_path / "purified").iterdir()) == ["0.png", "1.png", "2.png"]
    with Image.open(tmp_path / "purified" / "0.png") as image:
        assert image.size == (8, 8)
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")


def test_purify_with_settings_of_its_own(run_binary, model_files, digit_images, tmp_path):
    flags = ("--noise_scale=0", "--num_steps=3", "--num_restarts=1", "--rate=0.05")
    given = f"--score_model={model_files[0]}", f"--input={digit_images}", f"--workdir={tmp_path}"
    run_binary("purify", *given, *flags)
    settings = {"noise_scale": 0.0, "num_steps": 3, "num_restarts": 1}
    with Image.open(digit_images / "0.png") as image:
        before = np.asarray(image, np.float32)[None, ..., None] / 255
    with Image.open(tmp_path / "purified" / "0.png") as image:
        purified = np.asarray(image) / 255
    keys = pj.image_keys(jax.random.key(0), range(1))
    by = lambda rate: pj.models.model_purifier(pj.load_model(model_files[0]), rate=rate, **settings)
    found = {rate: np.asarray(by(rate)(keys, before)[0][0, 0, ..., 0]) for rate in (0.05, 0.3)}
    np.testing.assert_allclose(purified, found[0.05], atol=1 / 255)
    assert np.abs(purified - found[0.3]).max() > 4 / 255


@pytest.mark.ci
def test_evaluate_paper_suite_and_resume(run_binary, model_files, tmp_path):
    command = (
        "evaluate", f"--score_model={model_files[0]}", f"--classifier={model_files[1]}", "--suite=paper",
        "--epsilon=0.15", "--images=8", "--steps=2", "--eot=2", "--draws=2", "--probe_images=0",
        "--save_images", "--noprogress", f"--workdir={tmp_path}",
    )  # fmt: skip
    done = run_binary(*command)
    results = json.loads((tmp_path / "results.json").read_text())
    names = [row["attack"] for row in results["rows"]["defended"]]
    assert names == ["clean", "blind", "BPDA+EOT", "joint (score)", "joint (full)", "SPSA"]
    for label, found in results["per_image"].items():
        share = np.mean(found["correct_draws"]) / found["draws"]
        # A bare classifier always says the same.
        assert (len(found["correct_draws"]), found["draws"]) == (8, 2 if label == "defended" else 1)
        assert share == pytest.approx(results["summary"][label]["average"][0])
    assert "union of attacks" in done.stdout
    # Each attack and the strongest images; a bare classifier has no score for joint (score).
    assert done.stdout.count("after rounding to 8 bits") == 6 + 5
    saved = np.load(tmp_path / "adversarial" / "defended" / "blind.npz")
    assert saved["adversarial"].shape == (8, 8, 8, 1)
    pixels = pj.data.read_image(tmp_path / "images" / "defended" / "blind" / "000007.png")
    np.testing.assert_allclose(pixels / 255, saved["adversarial"][7], atol=0.51 / 255)
    records = tmp_path / "records_defended.jsonl"
    content = records.read_bytes()
    records.write_bytes(content[: len(content) // 2])
    run_binary(*command)
    assert records.read_bytes() == content


@pytest.mark.parametrize("columns", ["80", "120"])
def test_help_is_readable(run_binary, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    for binary in ("quickstart", "train_ebm", "train_classifier", "evaluate", "purify"):
        done = run_binary(binary, "--help", check=False, fresh=True)
        assert done.returncode == 0
        assert done.stdout.startswith(f"usage: purify-jax {binary} ")
        assert "--workdir" in done.stdout
        assert "absl" not in done.stdout.replace("the flags of absl", "")
        assert len(done.stdout.splitlines()) < 70
        assert max(map(len, done.stdout.splitlines())) <= 110


def test_help_says_values_and_defaults(run_binary):
    said = run_binary("evaluate", "--help", fresh=True).stdout
    assert re.search(r"\n  --norm=linf\|l2\|l1 +Norm of the perturbation. \(linf\)\n", said)
    assert re.search(r"\n  --draws=N +Scoring draws. \(10\)\n", said)
    assert said.index("Flags:") < said.index("What is evaluated:") < said.index("Any command:")
    assert (
        "evaluate --score_model=runs/quickstart/score_model.safetensors \\\n    --classifier="
        in said
    )
    version = run_binary("evaluate", "--version", fresh=True).stdout
    assert version.startswith(f"purify-jax {pj.__version__}, jax ")
