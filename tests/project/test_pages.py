"""The pages' Python runs: every block of a page in order, with what the demo would have left behind."""

import inspect
import re

import matplotlib
import numpy as np
import pytest
from conftest import ROOT

import purify_jax as pj

matplotlib.use("Agg")
#: Page → what makes it small enough for a test. Its blocks are one program.
WHOLE = {
    "README.md": {},
    "docs/start.md": {},
    "docs/certify.md": {},
    "docs/detect.md": {},
    "docs/share_model.md": {},
    "docs/train.md": {"num_steps=300": "num_steps=100", "batch_size=256": "batch_size=16"},
    "docs/evaluation.md": {"epsilon=0.15)": "epsilon=0.15, steps=4)", "take(128)": "take(8)"},
    "docs/own_data.md": {},
    "docs/scale_out.md": {},
}
#: Pages of the reference, whose examples print what the page shows.
REFERENCE = [
    pytest.param(f"docs/api/{name}.md", marks=[pytest.mark.slow] if slow else [])
    for name, slow in (
        ("attacks", True), ("evaluation", True), ("purifiers", True), ("training", True),
        ("data", False), ("defense", False), ("energies", False), ("foundations", False),
        ("models", False), ("networks", False), ("reporting", False),
    )
]  # fmt: skip
#: Pages whose blocks are alternatives, or need files and libraries: their own tests run each of them.
ELSEWHERE = {
    "docs/own_model.md", "docs/own_defense.md", "docs/diffusion.md", "docs/attack_from_pytorch.md",
}  # fmt: skip


def accuracies(text):
    """The second word of each line."""
    return [float(line.split()[1]) for line in text.splitlines()]


def check_shown(page, printed):
    """The outputs below a page's blocks are what they print, but for rounding on another processor."""
    shown = "".join(re.findall(r"```text\n(.*?)```", (ROOT / page).read_text(), re.DOTALL))
    ours, theirs = shown.splitlines(), printed.splitlines()[: len(shown.splitlines())]
    words = lambda lines: [re.sub(r"\d+\.\d+", "#", line) for line in lines]
    assert words(ours) == words(theirs)
    numbers = lambda lines: [float(n) for line in lines for n in re.findall(r"\d+\.\d+", line)]
    assert numbers(ours) == pytest.approx(numbers(theirs), abs=0.06, rel=0.02)


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a page in an empty folder; the names that it leaves."""
    monkeypatch.chdir(tmp_path)

    def run(page):
        source = "\n".join(blocks(page))
        for old, new in WHOLE.get(page, {}).items():
            assert old in source, (page, old)
            source = source.replace(old, new)
        names: dict = {}
        exec(compile(source, page, "exec"), names)
        return names

    return run


def test_the_readme_prints_accuracies_with_intervals(run, capsys):
    run("README.md")
    printed = capsys.readouterr().out
    clean, attacked = accuracies(printed)
    assert 0.9 < clean <= 1
    assert attacked < clean
    check_shown("README.md", printed)


@pytest.mark.ci
def test_start(run, model_files, tmp_path, capsys):
    folder = tmp_path / "runs" / "quickstart"
    folder.mkdir(parents=True)
    for path in model_files:
        (folder / path.name).write_bytes(path.read_bytes())
    run("docs/start.md")
    printed = capsys.readouterr().out
    check_shown("docs/start.md", printed)
    assert 0 <= float(printed.splitlines()[2].split()[0]) <= 1


@pytest.mark.ci
@pytest.mark.parametrize("page", ["docs/certify.md", "docs/detect.md"])
def test_pages_that_show_their_output(run, page, capsys):
    run(page)
    check_shown(page, capsys.readouterr().out)


@pytest.mark.parametrize("page", REFERENCE)
def test_examples_of_the_reference(run, page, capsys):
    if "import torch" in "".join(blocks(page)):
        pytest.importorskip("torch")
    run(page)
    check_shown(page, capsys.readouterr().out)


@pytest.mark.ci
def test_share_model(run, tmp_path):
    names = run("docs/share_model.md")
    assert (names["answers"] == names["labels"]).mean() > 0.9
    files = ["README.md", "classifier.safetensors", "config.json", "model.safetensors"]
    assert sorted(p.name for p in (tmp_path / "my_digits").iterdir()) == files


@pytest.mark.ci
def test_train(run):
    names = run("docs/train.md")
    assert names["trained"].finished
    # What was trained on 1600 images is far better than chance, and its file says how to use it.
    assert (names["answers"] == names["labels"]).mean() > 0.3
    assert names["purifier"].num_steps == 5


@pytest.mark.ci
def test_own_data(run):
    names = run("docs/own_data.md")
    assert names["trained"].finished
    assert len(names["own"]) == len(names["digits"])


@pytest.mark.ci
def test_suites_and_protocol(run):
    names = run("docs/evaluation.md")
    found = names["found"]
    assert sum(found.by.values()) == found.average.images == 8
    assert found.all_draws.value <= found.average.value
    assert set(names["attacks"]) == {r["attack"] for r in names["records"]} - {"clean"}


def test_scale_out(run):
    names = run("docs/scale_out.md")
    np.testing.assert_allclose(np.exp(names["log_probs"]).sum(-1), 1, rtol=1e-5)
    assert (names["log_probs"].argmax(-1) == names["labels"]).mean() > 0.9
    assert names["execution"].batch_size == 16


def test_no_page_has_python_that_nothing_runs():
    pages = {str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md")}
    pages = {p for p in pages if "/notebooks/" not in p and "/generated/" not in p}
    tested = WHOLE.keys() | ELSEWHERE | {param.values[0] for param in REFERENCE}
    assert {p for p in {"README.md", *pages} if blocks(p)} == tested


#: Public names that need no example of their own: what calls return, what other classes derive from, and parts
#: that a call with an example makes.
WITHOUT = {
    "evaluation": {"Difference", "Examination", "Finding", "Interval", "Summary"},
    "models": {"Model", "Pretrained"},
    "training": {"FitResult", "TrainState", "Trained", "TrainedDefense"},
    "bases": {
        "AdversarialImages", "ClippedPurifier", "Curvature", "Diffusion", "DiffusionPurifier", "LadderPurifier",
        "NetworkFn", "Purifier", "StepRule", "SteppedPurifier", "VPPurifier",
    },
    "parts": {
        "BoundNetwork", "DefenseLoss", "IdentityBackward", "LazyImages", "RecordFile", "TorchDefense", "TorchLogits",
        "TorchPurifier", "TrainingCheckpoints", "Traits", "PublishedPixelScaling", "built", "cost", "random_crop",
    },
}  # fmt: skip


def test_every_public_function_has_an_example():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "colab").glob("*.ipynb")]
    code = "".join(
        "".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
        if page.suffix == ".md"
        else page.read_text()
        for page in pages
        if "generated" not in page.parts
    )
    public = {name: thing for name, thing in everything_public(pj)}
    shown = {
        n
        for n, thing in public.items()
        if re.search(rf"\b{n}\b", code) or ">>>" in (thing.__doc__ or "")
    }
    assert public.keys() - shown == set().union(*WITHOUT.values())


def everything_public(package, seen=None):
    """(name, thing) of every function and class that a package and its packages name in ``__all__``."""
    seen = set() if seen is None else seen
    for name in package.__all__:
        thing = getattr(package, name)
        if inspect.ismodule(thing):
            if hasattr(thing, "__all__") and thing not in seen:
                seen.add(thing)
                yield from everything_public(thing, seen)
        elif callable(thing) and not (isinstance(thing, type) and issubclass(thing, Exception)):
            yield name, thing
