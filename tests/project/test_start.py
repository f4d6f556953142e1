"""What starts without JAX: the package, every command's flags, and the refusal of a bad one."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

import purify_jax as pj
from purify_jax.attacks import suites
from purify_jax.evaluation import sweeps
from purify_jax.models import exporting, torch_weights

#: Each of them takes a tenth of a second to several to import, and is imported when it is used.
HEAVY = (
    "jax",
    "flax",
    "optax",
    "orbax",
    "matplotlib",
    "scipy.stats",
    "sklearn",
    "tensorflow_datasets",
)
#: Defines the flags of each command in turn, and says which heavy libraries that took.
CODE = """
import importlib, sys
from pathlib import Path
from absl import flags
import purify_jax
loaded = lambda: [name for name in {heavy} if name in sys.modules]
print("purify_jax", *loaded())
for path in sorted(Path("experiments").glob("*.py")):
    if path.stem == "__init__":
        continue
    for name in list(flags.FLAGS):
        delattr(flags.FLAGS, name)
    for name in [name for name in sys.modules if name.startswith("experiments")]:
        del sys.modules[name]
    importlib.import_module(f"experiments.{{path.stem}}")
    print(path.stem, *loaded())
"""


def run(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_package_and_all_flags_load_nothing_heavy():
    done = run("-c", CODE.format(heavy=HEAVY))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) >= 15
    assert [line for line in lines if " " in line] == []


def test_a_refused_flag_ends_before_jax_is_loaded():
    done = run(
        "-X", "importtime", "-m", "experiments.evaluate",
        "--workdir=nowhere", "--epsilon=0.1", "--batch_size=0",
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: batch_size: got 0, expected a whole number >= 1"
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "absl.flags" in imported
    assert imported.isdisjoint(HEAVY)


def test_every_public_name_is_there():
    for name in pj.__all__:
        assert getattr(pj, name) is not None, name
    assert {*pj.__all__, "__version__"} <= set(dir(pj))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'purify_jax' has no attribute 'purfy'"):
        _ = pj.purfy
    with pytest.raises(ImportError):
        from purify_jax import purfy  # noqa: F401
    assert not hasattr(pj, "experiments_")


def constants(module):
    """Name → value of a module's tuples; importing it would define its flags here."""
    tree = ast.parse((ROOT / "experiments" / f"{module}.py").read_text())
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    tuples = [node for node in assigned if isinstance(node.value, ast.Tuple)]
    return {node.targets[0].id: ast.literal_eval(node.value) for node in tuples}


def test_names_said_in_flags_are_those_of_the_library():
    said = constants("evaluate")
    assert sorted(suites.SUITES) == list(said["SUITES"])
    assert sorted(sweeps.NAMES) == sorted(said["SWEEPS"])
    said = constants("import_weights")
    assert set(torch_weights.KINDS) == {*said["NETWORKS"], *said["DIFFUSIONS"]}
    said = (ROOT / "experiments" / "export.py").read_text()
    assert f'"Some of {", ".join(exporting.PLATFORMS)}."' in said
