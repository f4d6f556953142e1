"""Documents name what exists."""

import re

import pytest
from conftest import ROOT

PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("name", sorted(PAGES))
def test_links_and_modules_exist(name):
    text = (ROOT / name).read_text()
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert ((ROOT / name).parent / target).exists(), target
    for target in re.findall(r'(?:src="|\{figure\} )([^"\s]+)', text):
        assert ((ROOT / name).parent / target).exists(), target
    for module in re.findall(r"python -m (experiments(?:\.\w+)+)", text):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module


def test_every_module_is_in_the_architecture():
    text = (ROOT / "docs" / "architecture.md").read_text()
    for path in (ROOT / "purify_jax").glob("*.py"):
        if path.stem != "__init__":
            assert f"`{path.stem}`" in text, path.stem


def test_the_architecture_figure_is_that_of_the_imports():
    names: dict = {"__file__": str(ROOT / "docs" / "figure.py"), "__name__": "figure"}
    exec((ROOT / "docs" / "figure.py").read_text(), names)
    assert names["figure"]() in (ROOT / "docs" / "architecture.md").read_text()


@pytest.mark.parametrize("path", sorted(p.name for p in (ROOT / "docs").glob("*.md")))
def test_documents_name_files_and_modules_that_exist(path):
    text = (ROOT / "docs" / path).read_text()
    for name in re.findall(r"\b((?:tests|purify_jax|benchmarks|docs)/[\w/]+\.\w+)", text):
        if path != "experiments.md":  # a diary: it names things as they were
            assert (ROOT / name).exists(), name
    for module in re.findall(r"`(purify_jax(?:\.\w+)+)`", text):
        parts = module.split(".")
        folder = ROOT.joinpath(*parts)
        found = folder.is_dir() or folder.with_suffix(".py").is_file()
        holder = ROOT.joinpath(*parts[:-1])
        name = re.compile(rf"\b{parts[-1]}\b")
        files = [holder.with_suffix(".py"), holder / "__init__.py"]
        assert found or any(f.is_file() and name.search(f.read_text()) for f in files), module
