"""The site: every public name has a page, every page is in the contents, every link leads somewhere."""

import importlib
import inspect
import re
import subprocess
import sys
import types
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
from conftest import AXE, CHROMIUM, ROOT, environment

import purify_jax as pj

DOCS = ROOT / "docs"
API = sorted(DOCS.glob("api/*.md"))


def public(module=pj, seen=None):
    """Module → names of every package that pj.* reaches; None for a module without ``__all__``."""
    seen = {} if seen is None else seen
    names = getattr(module, "__all__", None)
    seen[module.__name__] = names
    for name in names or ():
        value = getattr(module, name)
        if isinstance(value, types.ModuleType) and value.__name__ not in seen:
            public(value, seen)
    return seen


def listed():
    """(names in the pages' autosummary lists, modules that a page documents with all their members)."""
    names, modules = set(), set()
    for path in API:
        package = ""
        for line in path.read_text().splitlines():
            if found := re.match(r"\.\. (?:current|auto)module:: (\S+)", line):
                package = found[1]
            elif line.strip() == ":members:":
                modules.add(package)
            elif re.fullmatch(r" {3}\w+", line):
                names.add(f"{package}.{line.strip()}")
    return names, modules


def test_every_public_name_has_an_entry():
    names, modules = listed()
    missing = []
    for module, exported in public().items():
        if module == "purify_jax" or module in modules:
            continue
        if exported is None:
            missing.append(module)
        is_module = lambda n, m=module: inspect.ismodule(getattr(importlib.import_module(m), n))
        wanted = [n for n in exported or () if not is_module(n)]
        missing += [f"{module}.{n}" for n in wanted if f"{module}.{n}" not in names]
    assert not missing, f"add to a list in docs/api: {missing}"


def test_every_entry_is_a_public_name_with_a_docstring():
    names, modules = listed()
    for module in modules:
        assert importlib.import_module(module).__doc__, module
    for name in names:
        module, _, last = name.rpartition(".")
        value = getattr(importlib.import_module(module), last)
        if inspect.isfunction(value) or inspect.isclass(value):
            assert inspect.getdoc(value), name


def test_the_face_of_the_package_is_in_the_reference():
    text = (DOCS / "api" / "index.md").read_text()
    for name in pj.__all__:
        value = getattr(pj, name)
        if isinstance(value, types.ModuleType):
            short = value.__name__.removeprefix("purify_jax.")
            assert any(value.__name__ in p.read_text() for p in API), short
            continue
        found = re.search(rf"`pj\.{name} <([\w.]+)>`", text)
        assert found, f"pj.{name} is missing in docs/api/index.md"
        module, _, last = found[1].rpartition(".")
        assert getattr(importlib.import_module(module), last) is value, name


def test_every_page_is_in_the_contents():
    for folder in (DOCS, DOCS / "api"):
        text = (folder / "index.md").read_text()
        inside = "\n".join(re.findall(r"```\{toctree\}(.*?)```", text, re.DOTALL))
        entries = {line.strip() for line in inside.splitlines()}
        missing = {p.stem for p in folder.glob("*.md")} - {"index"} - entries
        assert not missing, folder


def test_readme_is_one_screen_with_one_table():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 120
    assert sum(line.startswith("<!-- headline: ") for line in lines) == 1
    assert not any(line.startswith("<!-- table: ") for line in lines)


def test_what_the_site_is_made_with_is_pinned():
    text = (ROOT / "setup.cfg").read_text()
    extra = re.search(r"\ndocs =\n((?: {4}.+\n)+)", text)[1].split()
    names = [re.split("[<>=]", line)[0] for line in extra]
    assert names
    pinned = (ROOT / "constraints.txt").read_text().lower()
    assert all(f"\n{name}==" in pinned for name in names), names


@pytest.fixture
def extension(monkeypatch):
    pytest.importorskip("sphinx", reason="Sphinx is not installed (make docs)")
    monkeypatch.syspath_prepend(str(DOCS / "extensions"))
    return importlib.import_module


def test_lists_of_fields_and_constants(extension):
    docstrings = extension("docstrings")
    text = ["How.", "", "a: one", "  more", "b, c: two", "", "Note: no field.", "more: yes"]
    made = docstrings.listed(text)
    assert made == ["How.", "", "- **a**: one", "  more", "- **b, c**: two", *text[5:]]
    lines = ["dict() -> new empty dictionary"]
    docstrings.rewrite(None, "data", "purify_jax.models.METHODS", pj.models.METHODS, None, lines)
    assert lines[0].startswith("Every method by name. What each setting means")
    said = ["Called with (images, condition): see below."]
    docstrings.rewrite(None, "attribute", "purify_jax.networks.ADM.takes", True, None, said)
    assert said == ["..", "", "Called with (images, condition): see below."]


def test_boxes_stand_right_of_what_leads_to_them(extension):
    flowchart = extension("flowchart")
    arrows = [("a", "c"), ("b", "c"), ("c", "d"), ("b", "e")]
    assert flowchart.placed(arrows) == {"a": (0, 0), "b": (0, 1), "c": (1, 0), "e": (1, 1), "d": (2, 0)}  # fmt: skip
    drawn = flowchart.svg(["flowchart LR", *(f"  {a} --> {b}" for a, b in arrows)])
    assert drawn.count("<rect") == 5
    assert "Arrows: a to c; b to c; c to d; b to e" in drawn


def test_notebooks_become_pages(extension, tmp_path):
    page = extension("notebooks").page(ROOT / "colab" / "quickstart.ipynb", tmp_path)
    assert page.startswith("# Adversarial purification in fifteen cells")
    assert "```python\ntrain, test = (pj.load_split" in page
    assert page.count("```") % 2 == 0
    # With what the cells printed and drew.
    assert f"```text\npurify_jax {pj.__version__}, " in page
    drawn = sorted(tmp_path.glob("*.png"))
    assert [p.name for p in drawn] == [f"quickstart_{i}.png" for i in (1, 2, 3, 4)]
    assert all(p.read_bytes().startswith(b"\x89PNG") and f"({p.name})" in page for p in drawn)


class _Page(HTMLParser):
    """The ids of a page and where it links to, pictures included."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.targets = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids |= {found[k] for k in ("id", "name") if found.get(k)}
        self.targets += [found[k] for k in ("href", "src") if found.get(k)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site; a warning of Sphinx is an error."""
    pytest.importorskip("furo", reason="the docs extra is not installed (make docs)")
    tmp_path = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-n",
        "-q",
        "-d",
        tmp_path / "d",
    ]
    done = subprocess.run(
        [*command, DOCS, tmp_path / "site"], capture_output=True, text=True, cwd=ROOT,
        env=environment(), timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    return tmp_path / "site"


@pytest.mark.slow
def test_the_sites_links_lead_somewhere(site):
    pages = {p: _Page(p.read_text()) for p in site.rglob("*.html")}
    assert len(pages) > 150
    wrong = []
    for path, page in pages.items():
        for target in page.targets:
            if re.match(r"[a-z]+:|//", target):
                continue
            place, _, anchor = unquote(target).partition("#")
            to = (path.parent / place.partition("?")[0]).resolve() if place else path
            # A page of source code links back to the page of a name, which knows it by its public module.
            checked = to in pages and "_modules" not in path.parts
            if not to.exists() or (anchor and checked and anchor not in pages[to].ids):
                wrong.append(f"{path.name}: {target}")
    assert not wrong, wrong[:20]
    for name in pj.__all__:
        if not isinstance(getattr(pj, name), types.ModuleType):
            assert f"pj.{name}" in (site / "api" / "index.html").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed (CONTRIBUTING.md)")
@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1400, "dark")])
def test_the_sites_pages_pass_axes_rules_and_fit(site, width, scheme):
    playwright = pytest.importorskip("playwright.sync_api")
    pages = [*sorted(site.glob("*.html")), *sorted((site / "api").glob("*.html"))]
    wrong = {}
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(
            viewport={"width": width, "height": 1000}, color_scheme=scheme
        ).new_page()
        for path in pages:
            page.goto(path.as_uri())
            page.add_script_tag(content=AXE.read_text(encoding="utf-8"))
            found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
            serious = [v for v in found["violations"] if v["impact"] in ("serious", "critical")]
            beyond = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            if serious or beyond > 0:
                wrong[path.name] = beyond, [v["nodes"][0]["html"][:200] for v in serious]
    assert len(pages) > 30
    assert wrong == {}
