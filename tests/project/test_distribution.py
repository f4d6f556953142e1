"""What the wheel holds: the package with its binaries and models, and no other top-level name."""

import ast
import configparser
import os
import re
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT, environment

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
#: Import name → distribution, where they differ.
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "orbax": "orbax-checkpoint",
                 "tensorflow_datasets": "tensorflow-datasets", "absl": "absl-py"}  # fmt: skip
#: Not imported by name: tensorflow-datasets reads with it.
INDIRECT = {"array_record"}


def test_every_folder_is_packaged():
    listed = set(SETUP["options"]["packages"].split())
    mapped = {"experiments": "purify_jax.experiments", "purify_jax": "purify_jax"}
    found = {"purify_jax.shipped"}
    for top, name in mapped.items():
        for path in (ROOT / top).rglob("*.py"):
            inside = path.parent.relative_to(ROOT / top).parts
            found.add(".".join([name, *inside]))
    assert found == listed


def test_files_that_are_read_are_packaged():
    listed = SETUP["options.package_data"]["purify_jax.data"].split()
    folder = ROOT / "purify_jax" / "data"
    found = {p for pattern in listed for p in folder.glob(pattern)}
    assert found == {p for p in (folder / "photographs").iterdir() if p.is_file()}
    assert sum(p.stat().st_size for p in found) < 250_000


def test_declared_dependencies_are_the_imported_ones():
    declared = {
        re.split(r"[<>=\[]", line)[0] for line in SETUP["options"]["install_requires"].split()
    }
    imported = set()
    for top in ("purify_jax", "experiments"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and not node.level:
                    imported.add(node.module.split(".")[0])
                elif isinstance(node, ast.Import):
                    imported |= {alias.name.split(".")[0] for alias in node.names}
    # Each of the optional ones is an extra, and asked for where it is used.
    optional = {"torch", "huggingface_hub", "tensorboardX"}
    assert optional <= {re.split(r"[<>=\[]", p)[0] for e in SETUP["options.extras_require"].values() for p in e.split()}  # fmt: skip
    outside = imported - set(sys.stdlib_module_names) - {"purify_jax", "experiments"} - optional
    assert {DISTRIBUTIONS.get(name, name) for name in outside} == declared - INDIRECT


def _command(*args, cwd=None, **more):
    return subprocess.run(
        [sys.executable, "-m", "purify_jax.command", *map(str, args)],
        cwd=cwd or ROOT, capture_output=True, text=True, env=environment() | more, timeout=400,
    )  # fmt: skip


def test_the_command_lists_what_there_is():
    done = _command()
    assert done.returncode == 0, done.stderr
    binaries = {p.stem for p in (ROOT / "experiments").glob("*.py")} - {"__init__"}
    assert all(re.search(rf"^  {name} +\S", done.stdout, re.MULTILINE) for name in binaries)
    wrong = _command("evalute")
    assert wrong.returncode == 2
    assert "did you mean evaluate" in wrong.stderr
    assert len(wrong.stderr.strip().splitlines()) == 1


@pytest.mark.ci
def test_a_config_that_does_not_exist_is_not_replaced_by_one_that_ships(tmp_path):
    run = lambda config: _command(
        "train_ebm", config, "--config.ebm.steps=0", f"--workdir={tmp_path / 'w'}", cwd=tmp_path,
        PYTHONPATH=str(ROOT),
    )  # fmt: skip
    # The shipped one is read, and its value refused; a path elsewhere is not found.
    for shipped in ("--config=digits", "--config=experiments/configs/digits.py"):
        assert "config.ebm.steps: got 0" in run(shipped).stderr
    wrong = run("--config=/nowhere/digits.py")
    assert wrong.returncode != 0
    assert "config.ebm.steps" not in wrong.stderr
    assert not (tmp_path / "w").exists()


@pytest.mark.ci
def test_a_shipped_model_by_name_needs_no_file(tmp_path):
    done = _command(
        "export",
        "--model=digits",
        f"--output={tmp_path / 'd.npz'}",
        cwd=tmp_path,
        PYTHONPATH=str(ROOT),
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_an_installed_wheel_works_outside_the_checkout(tmp_path):
    source, wheels, site = tmp_path / "source", tmp_path / "wheels", tmp_path / "site"
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in files.stdout.splitlines():
        if not name.startswith(("results/", "tests/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", wheels, source], check=True)
    (wheel,) = wheels.glob("*.whl")
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith("dist-info")} == {"purify_jax"}
    assert {f"purify_jax/data/photographs/cifar10.{kind}" for kind in ("json", "png")} <= set(
        zipfile.ZipFile(wheel).namelist()
    )
    subprocess.run(
        [*pip, "install", "-q", "--no-deps", "--no-index", "--target", site, wheel], check=True
    )
    outside = tmp_path / "outside"
    outside.mkdir()
    code = "import purify_jax, os; print(os.path.dirname(purify_jax.__file__))"
    where = subprocess.run(
        [sys.executable, "-c", code], cwd=outside, env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert where.stdout.strip() == str(site / "purify_jax")
    done = _command(
        "evaluate", "--model=digits", "--suite=clean", "--epsilon=0", "--images=32",
        "--probe_images=0", "--workdir=evaluation", cwd=outside, PYTHONPATH=str(site),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (outside / "evaluation" / "report.html").is_file()
