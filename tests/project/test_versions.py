"""The versions that CI tries are those that setup.cfg states, at both ends."""

import configparser
import re

import yaml
from conftest import ROOT
from packaging.version import Version

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
BOUNDS = dict(
    re.match(r"([\w.-]+)>=([\d.]+)", line).groups()
    for line in SETUP["options"]["install_requires"].split()
)


def pins(path):
    lines = [line for line in (ROOT / path).read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("==") for line in lines if line)


def test_the_oldest_versions_are_the_lower_bounds():
    oldest = pins(".ci/oldest.txt")
    # What goes with them is no bound.
    assert set(BOUNDS) <= set(oldest) <= {*BOUNDS, "jaxlib", "flatbuffers", "jupyter_client"}
    assert oldest["jaxlib"] == oldest["jax"]
    for name, bound in BOUNDS.items():
        release = Version(bound).release
        assert Version(oldest[name]).release[: len(release)] == release, name


def test_the_pinned_versions_are_admitted():
    pinned = pins("constraints.txt")
    lower = {name.lower().replace("-", "_"): Version(v) for name, v in pinned.items()}
    for name, bound in BOUNDS.items():
        assert lower[name.lower().replace("-", "_")] >= Version(bound), name


def test_ci_runs_every_python_and_both_ends():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    job = workflow["jobs"]["test"]
    matrix = job["strategy"]["matrix"]["include"]
    claimed = re.findall(r"Python :: (3\.\d+)", SETUP["metadata"]["classifiers"])
    assert {row["python"] for row in matrix} == set(claimed)
    assert {row["constraints"] for row in matrix} == {
        "constraints.txt",
        ".ci/oldest.txt",
        ".ci/newest.txt",
    }
    assert all((ROOT / row["constraints"]).is_file() for row in matrix)
    assert job["steps"][-1] == {"run": ".ci/run"}
    assert (ROOT / ".ci/run").stat().st_mode & 0o111
    oldest = Version(SETUP["options"]["python_requires"].removeprefix(">="))
    assert min(Version(row["python"]) for row in matrix) == oldest
