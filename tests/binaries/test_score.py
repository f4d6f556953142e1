"""evaluate --save_adversarial, and score on what it saved and on files of others."""

import json

import numpy as np
import pytest

import purify_jax as pj
from purify_jax.attacks import saved
from purify_jax.checks import InputError
from purify_jax.evaluation import AdversarialFiles, wilson

PURIFIER = ("--model=digits", "--num_steps=1", "--num_restarts=1")


@pytest.mark.ci
def test_saved_by_evaluate_and_scored_by_score(run_binary, tmp_path):
    evaluate = (
        "evaluate", *PURIFIER, "--suite=rand", "--steps=3", "--eot=1", "--draws=4", "--images=10",
        "--batch_size=4", "--epsilon=0.2", "--probe_images=0", "--save_adversarial", "--noprogress",
        f"--workdir={tmp_path}",
    )  # fmt: skip
    run_binary(*evaluate)
    folder = tmp_path / "adversarial" / "defended"
    names = {"APGD_CE_EOT.npz", "APGD_DLR_EOT.npz", "strongest.npz"}
    assert {p.name for p in folder.iterdir()} == names  # and no parts
    test = pj.load_split("digits", "test[:10]")
    _, records = pj.evaluation.read_records(tmp_path / "records_defended.jsonl")
    for attack in ("APGD-CE+EOT", "APGD-DLR+EOT"):
        path = folder / f"{attack.replace('-', '_').replace('+', '_')}.npz"
        found, indices = saved.load(path, (8, 8, 1)), np.load(path)["indices"]
        run = [r for r in records if r["attack"] == attack and "linf" in r]
        assert indices.tolist() == [r["index"] for r in run]
        np.testing.assert_array_equal(found.labels, test.labels[indices])
        np.testing.assert_allclose(
            saved.distances(found, "linf"), [r["linf"] for r in run], atol=2e-6
        )
    worst = saved.load(folder / "strongest.npz")
    assert (len(worst.labels), worst.epsilon, worst.norm) == (10, 0.2, "linf")

    # The same command again computes nothing and loses nothing.
    before = np.load(folder / "strongest.npz")["adversarial"]
    run_binary(*evaluate)
    np.testing.assert_array_equal(np.load(folder / "strongest.npz")["adversarial"], before)

    done = run_binary(
        "score", *PURIFIER, f"--images={folder / 'strongest.npz'}", "--draws=6", "--batch_size=4"
    )
    results = json.loads((folder / "strongest_score" / "results.json").read_text())
    assert (results["images"], results["draws"]) == (10, 6)
    right = np.array(results["correct_draws"])
    assert results["average"][0] == pytest.approx(right.mean() / 6)
    assert results["average"][1] <= results["average"][0] <= results["average"][2]
    assert results["all_draws"] == pytest.approx(list(wilson(int((right == 6).sum()), 10)))
    assert results["worst_of"]["6"] == results["all_draws"]
    assert results["worst_of"]["2"][0] == pytest.approx(np.mean(right * (right - 1) / 30))
    assert results["clean"][0] > results["average"][0] + 0.2  # the attack is still one
    assert results["ball"]["largest"]["linf"] == pytest.approx(0.2, abs=1e-5)
    assert "worst of 6" in done.stdout
    assert "inside the ball of 0.2" in done.stdout


def test_somebodys_own_code_is_scored(run_binary, refusal, tmp_path):
    """A function that answers the class of the brightest quarter; two classes of the ten are in the file."""
    code = tmp_path / "mine.py"
    code.write_text(
        "import jax, jax.numpy as jnp\n"
        "def build():\n"
        "    halves = lambda x: jnp.stack([x[:, :4].sum((1, 2, 3)), x[:, 4:].sum((1, 2, 3))], -1)\n"
        "    coin = lambda key: jnp.where(jax.random.bernoulli(key, 0.25), -1.0, 1.0)\n"
        "    turned = lambda keys, x: jax.vmap(coin)(keys)[:, None] * halves(x)\n"
        "    return lambda keys, x: jax.nn.log_softmax(turned(keys, x))\n"
        "def pair():\n"
        "    same = lambda keys, x: (x[None], {})\n"
        "    return same, lambda x: jnp.stack([x[:, :4].sum((1, 2, 3)), x[:, 4:].sum((1, 2, 3))], -1)\n"
    )
    images = np.zeros((40, 8, 8, 1), np.float32)
    images[:20, :4] = images[20:, 4:] = 1.0
    file = tmp_path / "mine.npz"
    np.savez(file, adversarial=images, labels=np.repeat([0, 1], 20))
    own = ("score", f"--images={file}", f"--workdir={tmp_path / 'out'}")
    run_binary(*own, f"--defense={code}:build", "--draws=50")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    # Right in 3 of 4 draws: 2000 draws, a standard deviation of 0.01.
    assert results["average"][0] == pytest.approx(0.75, abs=0.04)
    assert results["settings"]["defense"] == f"{code}:build"
    run_binary(*own[:2], f"--defense={code}:pair", "--undefended", f"--workdir={tmp_path / 'bare'}")
    bare = json.loads((tmp_path / "bare" / "results.json").read_text())
    assert (bare["average"][0], bare["draws"]) == (1.0, 1)
    line = refusal(*own, f"--defense={code}:build", "--undefended")
    assert "undefended: got it for one function, expected a pair (purifier, classifier)" in line
    line = refusal(*own, f"--defense={code}:build", "--model=digits")
    assert "defense: got --model beside it" in line


def test_a_plain_file_and_the_bare_classifier(run_binary, tmp_path):
    """Two arrays are enough, and clean digits are classified right."""
    test = pj.load_split("digits", "test[:30]")
    np.savez(tmp_path / "mine.npz", adversarial=test.images, labels=test.labels)
    done = run_binary(
        "score", "--model=digits", "--undefended", f"--images={tmp_path / 'mine.npz'}",
        f"--workdir={tmp_path / 'out'}",
    )  # fmt: skip
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    logits = pj.pretrained.load("digits").logits_fn(test.images)
    right = np.asarray(logits).argmax(-1) == test.labels
    assert results["correct_draws"] == right.astype(int).tolist()
    assert (results["draws"], results["ball"], results["clean"]) == (1, None, None)
    assert "no ball is known" in done.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clean": np.zeros((3, 8, 8, 1), "f")}, "3 of 3 images lie outside the ball, the farthest "
         "(number 0) at a distance linf of 0.5, expected at most 0.1"),
        ({"adversarial": np.zeros((3, 1, 8, 8), "f")}, "got (1, 8, 8) per image, expected (8, 8, 1) ("),
        ({"labels": np.array([0, 1, 10])}, "labels: values lie in [0, 10], expected [0, 9]"),
    ],
)  # fmt: skip
def test_bad_files_end_in_one_line(refusal, tmp_path, change, message):
    grey = np.full((3, 8, 8, 1), 0.5, np.float32)
    arrays = {"adversarial": grey, "labels": np.arange(3), "clean": grey, "epsilon": 0.1}
    np.savez(tmp_path / "a.npz", **{**arrays, "norm": "linf", **change})
    assert message in refusal("score", "--model=digits", f"--images={tmp_path / 'a.npz'}")


def _record(attack, index, right, loss=1.0):
    return {"attack": attack, "index": index, "own_correct": right, "own_loss": loss}


def test_the_strongest_images_and_a_killed_run(tmp_path):
    """Parts outlive the process; each image takes the attack that hurt it most."""
    images = np.full((4, 2, 2, 1), 0.5, np.float32)
    data = pj.data.Dataset("grey", "test", images, np.zeros(4, np.int32), 2)
    moved = lambda indices, by: images[indices] + np.float32(by)
    first = AdversarialFiles(tmp_path, data, "linf", 0.1)
    first.add("clean", np.arange(4), images)
    first.add("A", np.array([0, 1]), moved([0, 1], 0.01))
    # Killed here; another process continues.
    second = AdversarialFiles(tmp_path, data, "linf", 0.1)
    second.add("A", np.array([2]), moved([2], 0.02))
    second.add("B (x)", np.array([1, 2]), moved([1, 2], 0.03))
    records = [_record("clean", i, 5 if i < 3 else 0) for i in range(4)]
    records += [_record("A", 0, 2), _record("A", 1, 2), _record("A", 2, 2)]
    records += [_record("A", 3, 0) | {"skipped": True}]
    records += [_record("B (x)", 1, 1), _record("B (x)", 2, 2, loss=0.5)]
    written = second.finish(records)
    assert [p.name for p in written.values()] == ["A.npz", "B_x.npz", "strongest.npz"]
    with np.load(written["strongest"]) as archive:
        assert archive["attack"].tolist() == ["A", "B (x)", "A", "clean"]
        np.testing.assert_allclose(
            archive["adversarial"][:, 0, 0, 0], [0.51, 0.53, 0.52, 0.5], rtol=1e-6
        )
    assert {p.name for p in tmp_path.iterdir()} == {"A.npz", "B_x.npz", "strongest.npz"}
    begun_without = AdversarialFiles(tmp_path / "other", data, "linf", 0.1)
    with pytest.raises(
        InputError, match="save_adversarial: 3 images of A were attacked without it"
    ):
        begun_without.finish(records)
