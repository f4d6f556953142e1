"""The structure of the code: one import direction, no circles, small files, small folders."""

import ast
import graphlib
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "purify_jax"
#: A package imports only from packages before it (and from itself).
ORDER = [
    "xla", "arrays", "checks", "keys", "types", "pytrees", "atomic",
    "data", "noise", "corruptions", "networks", "diffusions", "energy", "losses",
    "purifiers", "defense", "costs", "bridges", "models", "devices", "attacks", "training", "evaluation", "reporting",
    "command",
]  # fmt: skip
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if "__pycache__" not in p.parts)


def package(path):
    part = path.relative_to(PACKAGE).parts[0]
    return part.removesuffix(".py")


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path):
    """Full names of the package's modules and names that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("purify_jax"):
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("purify_jax."))


def test_every_package_has_a_place():
    packages = {package(p) for p in MODULES} - {"__init__"}
    assert packages <= set(ORDER)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_import_against_the_flow(path):
    own = package(path)
    if own == "__init__":
        return
    for imported in imports(path):
        target = imported.split(".")[1]
        assert ORDER.index(target) <= ORDER.index(own), f"{path.name} imports {imported}"
        assert not imported.startswith("purify_jax.experiments"), imported


def test_no_circles_between_modules():
    known = {name_of(p) for p in MODULES}
    graph = {}
    for path in MODULES:
        found = set()
        for imported in imports(path):
            target = imported if imported in known else imported.rpartition(".")[0]
            found.add(target)
        # A package's face imports its modules; that they import it back would be the circle.
        graph[name_of(path)] = found - {name_of(path)}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def _tracked(*folders):
    for folder in folders:
        yield from (p for p in (ROOT / folder).rglob("*.py") if "__pycache__" not in p.parts)


def test_files_stay_small():
    lines = {
        p: len(p.read_text().splitlines())
        for p in _tracked("purify_jax", "experiments", "tests", "benchmarks")
    }
    assert {str(p.relative_to(ROOT)): n for p, n in lines.items() if n > 300} == {}


def test_folders_stay_small():
    # One file a command, and one a run: what there is to type is not hidden in sub-folders.
    catalogues = {ROOT / "experiments": 16, ROOT / "experiments" / "configs": 16}
    folders: dict[Path, int] = {}
    for path in _tracked("purify_jax", "experiments", "tests", "benchmarks"):
        if path.name != "__init__.py":
            folders[path.parent] = folders.get(path.parent, 0) + 1
    assert {
        str(f.relative_to(ROOT)): n for f, n in folders.items() if n > catalogues.get(f, 12)
    } == {}


def test_the_top_of_experiments_is_binaries():
    binaries = ROOT / "experiments"
    for path in [*binaries.glob("*.py"), *binaries.glob("*/__main__.py")]:
        if path.name != "__init__.py":
            assert "cli.run(main)" in path.read_text(), path.name


def test_no_config_object_in_the_library():
    assert not [
        p for p in MODULES if "ml_collections" in p.read_text() or "absl.flags" in p.read_text()
    ]
