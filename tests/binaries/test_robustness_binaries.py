"""detect, certify, corruptions and compare as a user runs them."""

import json

import numpy as np
import pytest
from scipy import stats

import purify_jax as pj
from purify_jax.evaluation import transfer


@pytest.fixture
def run(run_binary, model_files, tmp_path):
    """Runs a binary on the two small models; (completed process, work directory)."""

    def call(name, *args, check=True):
        models = f"--score_model={model_files[0]}", f"--classifier={model_files[1]}"
        flags = ("--noprogress", "--num_steps=2", "--num_restarts=2", f"--workdir={tmp_path}")
        return run_binary(name, *models, *flags, *args, check=check), tmp_path

    return call


@pytest.mark.ci
def test_detect(run):
    done, folder = run(
        "detect", "--epsilon=0.15", "--images=20", "--calibration_images=20", "--batch_size=20",
        "--steps=3", "--eot=2",
    )  # fmt: skip
    found = json.loads((folder / "results.json").read_text())
    assert found["threshold"] > 0
    area, low, high, _ = found["attacks"]["blind"]["score norm, AUROC"]
    assert 0.5 < low <= area <= high <= 1
    # The attack that knows the detector must do better against it than the one that does not.
    assert found["attacks"]["evading, classifier alone"]["score norm, AUROC"][0] < area
    assert (folder / "report.html").read_text().count("data:image/png;base64,") == 5
    assert "AUROC" in done.stdout


@pytest.mark.ci
def test_certify_and_continue(run):
    args = ("--images=6", "--n0=10", "--n=50", "--batch_size=3", "--samples_at_once=25")
    _, folder = run("certify", *args)
    found = json.loads((folder / "results.json").read_text())
    for curve in found["certified_accuracy"].values():
        values = [point[0] for point in curve]
        assert values == sorted(values, reverse=True)
    records = folder / "records_defended.jsonl"
    content = records.read_bytes()
    records.write_bytes(content[:-40])
    run("certify", *args, "--noundefended")
    assert records.read_bytes() == content
    again = json.loads((folder / "results.json").read_text())["certified_accuracy"]
    assert again == {"defended": found["certified_accuracy"]["defended"]}


@pytest.mark.ci
def test_evaluate_the_defense_alone(run_binary, place, tmp_path):
    ball = ("--norm=linf", "--epsilon=0.1", "--suite=honest", "--steps=4", "--eot=1")
    args = (*place.models, *ball, "--images=4", "--draws=2", "--probe_images=2", "--noprogress")
    folder = tmp_path
    run = lambda *more: run_binary("evaluate", *args, *more, f"--workdir={folder}")
    run()
    both = json.loads((folder / "results.json").read_text())
    (folder / "records_defended.jsonl").unlink()
    run("--noundefended")
    alone = json.loads((folder / "results.json").read_text())
    for name in ("rows", "summary", "per_image", "union_accuracy"):
        assert set(both[name]) == {"undefended", "defended"}
        assert alone[name] == {"defended": both[name]["defended"]}, name
    assert alone["red_flags"] == both["red_flags"]
    assert alone["shared_keys"] == both["shared_keys"]


@pytest.mark.slow
def test_somebodys_own_code(run_binary, refusal, tmp_path):
    """Audited, continued, certified; and refused in the same folder once it has changed."""
    code = tmp_path / "mine.py"
    source = (
        "import jax, purify_jax as pj\n"
        "def build():\n"
        "    logits = pj.models.logits_fn(pj.pretrained.load('digits').classifier)\n"
        "    noise = pj.keys.normal_like\n"
        "    return lambda keys, x: jax.nn.log_softmax(logits(x + 0.1 * noise(keys, x)))\n"
    )
    code.write_text(source)
    own = (f"--defense={code}:build", "--dataset=digits", "--images=4", "--noprogress")
    flags = ("--epsilon=0.1", "--suite=rand", "--steps=1", "--draws=2")
    folder = tmp_path / "audit"
    run_binary("evaluate", *own, *flags, f"--workdir={folder}")
    found = json.loads((folder / "results.json").read_text())
    assert found["audit"]["gradient"][0] in ("exact", "of the margin")
    assert found["audit"]["plan"]["images"] == 4
    assert list(found["rows"]) == ["defended"]
    records = (folder / "records_defended.jsonl").read_bytes()
    run_binary("evaluate", *own, *flags, f"--workdir={folder}")
    assert (folder / "records_defended.jsonl").read_bytes() == records
    run_binary("certify", *own, "--n0=5", "--n=20", f"--workdir={tmp_path / 'certified'}")
    code.write_text(source.replace("0.1 *", "0.2 *"))
    line = refusal("evaluate", *own, *flags, f"--workdir={folder}")
    assert "belongs to another config (made_with" in line
    assert "differs" in line


@pytest.mark.ci
def test_fewer_attacks_through_one_of_two_restarts(run):
    """A backward pass through the purifier is then one through the classifier, and not two."""
    ball = ("--norm=linf", "--epsilon=0.05", "--suite=honest", "--steps=4", "--eot=1")
    args = (*ball, "--images=4", "--draws=2", "--probe_images=0", "--noundefended")
    skip = "--skip=Square,shared keys"
    _, folder = run("evaluate", *args, "--surrogate_restarts=1", skip)
    found = json.loads((folder / "results.json").read_text())
    assert found["settings"]["surrogate_restarts"] == 1
    assert found["settings"]["skip"] == ["Square", "shared keys"]
    assert [row["attack"] for row in found["rows"]["defended"]] == [
        "clean", "transfer", "momentum PGD", "momentum PGD, smooth error",
    ]  # fmt: skip
    assert found["shared_keys"] is None
    page = (folder / "report.html").read_text()
    assert (
        "Left out: Square, shared keys. Restarts in the surrogate that attacks optimise on: 1."
        in page
    )
    (row,) = [r for r in found["rows"]["defended"] if r["attack"] == "momentum PGD"]
    _, backward, _, classifier_backward = row["passes"]
    assert backward == classifier_backward == 4
    # Attack restarts or not, the whole defense answers: the clean row has both restarts.
    clean = found["rows"]["defended"][0]["passes"]
    assert clean[2] == 2 * clean[0] > 0


def test_corruptions_with_a_contact_sheet(run):
    done, folder = run("corruptions", "--images=24", "--corruptions=fog,gaussian_noise,spatter")
    found = json.loads((folder / "results.json").read_text())
    assert found["mce"]["undefended"] == 1.0
    cells = [
        i[0] for n in ("fog", "gaussian_noise") for i in found["accuracy"]["defended"][n].values()
    ]
    value, low, high, images = found["mean_accuracy"]["defended"]
    assert value == pytest.approx(np.mean(cells))
    assert images == 24
    each = found["per_image"]["defended"]
    assert each["draws"] == len(cells) == 10
    shares = np.array(each["correct_draws"]) / each["draws"]
    half = stats.t.ppf(0.975, 23) * shares.std(ddof=1) / np.sqrt(24)
    assert (low, high) == pytest.approx((value - half, min(value + half, 1.0)))
    assert (folder / "figures" / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "report.html").read_text().count("data:image/png;base64,") == 2
    assert "mCE" in done.stdout


def _transfer_is_right(folder, rows):
    """The attack on the bare classifier, scored on it once more: no draw is involved."""
    found = json.loads((folder / "results.json").read_text())["transfer"]
    assert found["made_on_scored_on"]["none"]["none"][0] == rows["none"]["exact+EOT"][0]
    assert sum(found["times_strongest"].values()) == 2
    data = pj.load_split("digits", "test").take(8)
    for name in rows:
        images = np.load(folder / "adversarial" / f"{name}.npz")["images"]
        assert 0.1 < np.abs(images - data.images).max() <= 0.15 + 1e-6


def test_transfer_finds_whose_images_are_strongest():
    """Eight images, four draws: A's attack leaves itself everything, B's images leave A nothing."""
    right = {
        "A": {"A": [4] * 20, "B": [3] * 20},
        "B": {"A": [0] * 19 + [4], "B": [1] * 20},
    }
    matrix = transfer.Matrix(["A", "B"], right, {"A": 4, "B": 4})
    assert matrix.strongest("A")[0] == "B"
    assert matrix.share("B", "A").value == pytest.approx(0.05)
    assert matrix.strongest("B")[0] == "B"
    (flag,) = transfer.red_flags(matrix)
    assert flag.cause == "A: images made for B beat its own exact gradient"
    assert transfer.content(matrix, [flag])["times_strongest"] == {"A": 0, "B": 2}
    # As strong as its own: nothing to say, and its own is named.
    even = transfer.Matrix(["A", "B"], {**right, "B": right["A"]}, {"A": 4, "B": 4})
    assert even.strongest("A")[0] == "A"
    assert transfer.red_flags(even) == []


@pytest.mark.ci
def test_compare_names_every_purifier_and_continues(run):
    args = (
        "--epsilon=0.15", "--images=8", "--batch_size=8", "--steps=2", "--eot=2", "--draws=1",
        "--only=none,annealed",
    )  # fmt: skip
    _, folder = run("compare", *args)
    found = json.loads((folder / "results.json").read_text())["purifiers"]
    assert list(found) == ["none", "annealed"]
    for row in found.values():
        assert row["milliseconds"] > 0
        assert 0 <= row["exact+EOT"][1] <= row["exact+EOT"][0] <= row["exact+EOT"][2] <= 1
    _transfer_is_right(folder, found)
    before = (folder / "annealed.json").stat().st_mtime_ns
    run("compare", *args)
    assert (folder / "annealed.json").stat().st_mtime_ns == before
    done, _ = run("compare", *args[:-1], "--only=magic", check=False)
    assert done.returncode == 1
    assert "gradual noise" in done.stderr
