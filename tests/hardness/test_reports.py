"""Names are shown, never obeyed: not by a page, a figure, a terminal or a folder."""

import base64
import hashlib
import html.parser
import io
import json
import re
import shutil

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import purify_jax as pj
from experiments.common import provenance
from purify_jax import checks
from purify_jax.attacks.suites import Options
from purify_jax.checks import InputError
from purify_jax.evaluation import corruption
from purify_jax.evaluation.suite_runs import evaluate_suite
from purify_jax.reporting import pages, plots, report

EVIL = "<img src=x onerror=alert(1)>\"'&</title></style></footer>"
PATHS = [
    "../x",
    "/etc/passwd",
    "a/b",
    "a\\b",
    ".hidden",
    "..",
    "",
    "a\nb",
    "a\0b",
    "x" * 200,
    None,
    3,
]


class _Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.text = [], []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def parsed(page):
    tags = _Tags()
    tags.feed(page)
    return tags


def page_of(tmp_path, name):
    figure = plots.curves([0, 1], {name: [0.5, 0.7]}, name, name)
    sections = [
        report.Section(name, name, [name], [[name]], figure),
        report.Section(name, flags=[name]),
    ]
    return report.write_report(tmp_path / "r.html", name, name, sections, name).read_text()


def test_a_page_holds_names_as_text_alone(tmp_path):
    tags = [tag for tag, _ in parsed(page_of(tmp_path, "fine")).found]
    evil = parsed(provenance.mark_html(page_of(tmp_path, EVIL), EVIL, EVIL))
    assert [tag for tag, _ in evil.found] == tags
    assert not [attrs for _, attrs in evil.found if any(k.startswith("on") for k in attrs)]
    assert sum(EVIL in text for text in evil.text) >= 9
    assert [attrs["alt"] for tag, attrs in evil.found if tag == "img"] == [EVIL]


def test_a_page_loads_nothing_and_runs_its_own_script_alone(tmp_path):
    page = page_of(tmp_path, EVIL)
    tags = parsed(page).found
    (policy,) = [
        a["content"] for tag, a in tags if a.get("http-equiv") == "Content-Security-Policy"
    ]
    inside = lambda tag: re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    digest = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    (script,), (style,) = inside("script"), inside("style")
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest(style)}'; "
        f"script-src 'sha256-{digest(script)}'; base-uri 'none'; form-action 'none'"
    )
    names = [tag for tag, _ in tags]
    # It stands before whatever it is to govern.
    assert names.index("style") > [a.get("http-equiv") for _, a in tags].index(
        "Content-Security-Policy"
    )
    assert all(a["src"].startswith("data:") for _, a in tags if "src" in a)
    assert not [a for tag, a in tags if tag == "script" and "src" in a]
    assert not [a for _, a in tags if "style" in a]


@pytest.mark.parametrize("name", ["$\\frac{$", "$x^2$", "100% {", "\\alpha_"])
def test_a_figure_shows_names_as_they_are(name):
    lines = {name: [0.1, 0.9]}
    content = [
        plots.curves([1, 2], lines, name, name),
        plots.ranked([name], {name: [(0.1, 0.0, 0.2)]}, name, beside=(name, [1.0])),
        plots.panels([1, 2], {name: lines}, name),
        plots.histograms({name: np.arange(1.0, 9.0)}, name),
        plots.image_grid([[np.zeros((2, 2, 1))]], [name], row_labels=[name]),
    ]
    for png in content:
        assert Image.open(io.BytesIO(png)).size[0] > 50


def test_a_table_on_the_terminal_commands_nothing():
    table = report.text_table(["a\x1b[31m", "b"], [["x\ny", "\r1"]])
    assert table.splitlines() == ["a?[31m   b", "------  --", "x?y     ?1"]


@pytest.mark.parametrize("name", PATHS, ids=repr)
def test_names_are_no_paths(name, tmp_path, digits_test):
    calls = [
        lambda: checks.check_file_name("x", name),
        lambda: pj.pretrained.load(name),
        lambda: pj.data.load_split(name if name != "a/b" else "a/../b", "test", tmp_path),
        lambda: corruption.load_folder(tmp_path, name, 1),
        lambda: evaluate_suite(
            None, digits_test, Options(), label=name, execution=pj.Execution(workdir=tmp_path / "w")
        ),
        lambda: pages.write_results(
            tmp_path / "w", title="", summary="", columns=[], rows=[], sections=[], content={},
            seed=0, figures={name: b""},
        ),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(InputError, match="^[^\n]*: got .*expected"):
            call()
    assert not list(tmp_path.iterdir())


def test_names_of_data_sets():
    for fine in ("mnist", "cifar10_1/v4", "imagenet_v2/matched-frequency", "mnist:3.0.1"):
        with pytest.raises(InputError, match="data_dir: not given"):
            pj.data.load_split(fine, "test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card["files"]["score_model"].update(name="../digits_score_model.safetensors"), "without a folder"),
        (lambda card: card["files"].pop("score_model"), "is damaged .KeyError: 'score_model'"),
        (lambda card: card.update(files=3), "is damaged .TypeError"),
        (
            lambda card: card["files"].update(score_model=card["files"]["classifier"]),
            "is a classifier, expected energy or score",
        ),
    ],
)  # fmt: skip
def test_a_card_is_checked(tmp_path, monkeypatch, change, message):
    folder = tmp_path / "pretrained"
    folder.mkdir()
    for path in (ROOT / "pretrained").glob("digits*"):
        shutil.copy(path, folder)
    card = json.loads((folder / "digits.json").read_text())
    change(card)
    (folder / "digits.json").write_text(json.dumps(card))
    monkeypatch.setattr(pj.pretrained, "folders", lambda: [folder])
    with pytest.raises(InputError, match=message):
        pj.pretrained.load("digits")
    (folder / "digits.json").write_text("{")
    with pytest.raises(InputError, match="the card .* is damaged"):
        pj.pretrained.load("digits")
