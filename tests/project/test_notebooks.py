"""The notebooks: stored outputs that are theirs, one first cell, and every cell runs."""

import os
import subprocess
import sys

import nbformat
import pytest
from conftest import CACHE, ROOT
from nbclient import NotebookClient

import purify_jax as pj

NAMES = ["quickstart", "cifar10", "train_on_tpu"]


def read(name):
    return nbformat.read(ROOT / "colab" / f"{name}.ipynb", as_version=4)


def run(notebook, monkeypatch, budget):
    """Runs the cells; the text that each has printed."""
    monkeypatch.setenv("PURIFY_BUDGET", str(budget))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(CACHE))
    NotebookClient(
        notebook, timeout=400, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    outputs = [cell.get("outputs", []) for cell in notebook.cells]
    return ["".join(o.text for o in each if o.output_type == "stream") for each in outputs]


def pictures(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def first_cell():
    return read(NAMES[0]).cells[1].source


def test_notebooks_begin_alike():
    assert sorted(p.stem for p in (ROOT / "colab").glob("*.ipynb")) == sorted(NAMES)
    for name in NAMES:
        notebook = read(name)
        assert notebook.cells[1].source == first_cell()
        nbformat.validate(notebook)
    assert len(read("quickstart").cells) == 15
    assert 'REPOSITORY = ""' in first_cell()


@pytest.mark.parametrize(
    ("name", "drawn"), [("quickstart", 4), ("cifar10", 3), ("train_on_tpu", 0)]
)
def test_stored_outputs_are_of_a_whole_run_of_this_version(name, drawn):
    """As docs/execute.py leaves them; train_on_tpu takes days without an accelerator and has none."""
    notebook = read(name)
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert pictures(notebook) == drawn
    if not drawn:
        assert not any(outputs)
        return
    counts = [c.execution_count for c in notebook.cells if c.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert outputs[0][0].text.startswith(f"purify_jax {pj.__version__}, ")
    assert all(
        o.output_type != "error" and o.get("name") != "stderr" for each in outputs for o in each
    )


@pytest.mark.ci
@pytest.mark.parametrize("name", NAMES)
def test_the_first_cells_run(name, monkeypatch):
    notebook = read(name)
    notebook.cells = notebook.cells[:4]
    said = run(notebook, monkeypatch, 0.1)
    assert said[1].startswith("purify_jax ")
    assert "× CPU" in said[1]
    assert pictures(notebook) == 1


@pytest.mark.slow
def test_the_quickstart_notebook_runs(monkeypatch):
    notebook = read("quickstart")
    said = run(notebook, monkeypatch, 0.1)
    assert [line.split()[0] for line in said[-1].splitlines()] == ["clean", "blind", "exact+EOT"]
    assert pictures(notebook) == 4


@pytest.mark.slow
def test_the_photographs_notebook_runs(monkeypatch):
    notebook = read("cifar10")
    said = run(notebook, monkeypatch, 0.25)
    figures = [text.splitlines() for text in said if text.startswith("clean")]
    assert len(figures) >= 3  # the shipped classifier's, linen's, nnx's, and PyTorch's where it is
    for lines in figures:
        attacks = ["BPDA", "exact"] if lines is figures[0] else ["exact"]
        assert [line.split()[0] for line in lines] == ["clean", *attacks]
        assert all(0 <= float(line.split()[1]) <= 1 for line in lines)
    assert len(figures) == 4 or said[15] == "PyTorch is not installed: skipped\n"
    assert "randomness: a draw for each image" in said[-1]
    assert "worst of ten" in said[-1]
    assert pictures(notebook) == 3


@pytest.mark.slow
def test_the_training_notebook_runs_on_four_devices_and_continues(monkeypatch, tmp_path):
    monkeypatch.setenv("PURIFY_FOLDER", str(tmp_path))
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    said = run(read("train_on_tpu"), monkeypatch, 0.1)
    assert "4 × CPU" in said[1]
    assert said[5].endswith("score network: finished\n")
    assert said[7].endswith("classifier: finished\n")
    assert [line.split()[0] for line in said[-1].splitlines()[-3:]] == ["clean", "average", "worst"]
    made = (tmp_path / "score_model.safetensors").read_bytes()
    again = read("train_on_tpu")
    again.cells = again.cells[:6]  # a new runtime: the training is continued, and was finished
    assert run(again, monkeypatch, 0.1)[5].endswith("score network: finished\n")
    assert (tmp_path / "score_model.safetensors").read_bytes() == made


@pytest.mark.parametrize(
    ("there", "repository", "installed"),
    [
        (["purify_jax-9-py3-none-any.whl"], "", "purify_jax-9-py3-none-any.whl"),
        (["purify_jax/__init__.py", "purify_jax-9-py3-none-any.whl"], "", ""),
        ([], "https://HOST/OWNER/purify_jax", "git+https://HOST/OWNER/purify_jax"),
        ([], "", None),
    ],
    ids=["wheel", "checkout", "repository", "nothing"],
)
def test_what_the_first_cell_installs(there, repository, installed, tmp_path):
    """In a Python without purify_jax, which writes down what pip is asked for."""
    for name in there:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise ImportError('a dependency is missing')\n")
    cell = first_cell().replace('REPOSITORY = ""', f"REPOSITORY = {repository!r}")
    spy = (
        "import subprocess, sys\n"
        "subprocess.run = lambda command, check: sys.exit(f'asked for {command[-1]}')\n"
    )
    done = subprocess.run(
        # -S: without site-packages, and so without what is installed here.
        [sys.executable, "-S", "-c", spy + cell],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    if installed is None:
        assert "set REPOSITORY, or put its wheel beside this notebook" in done.stderr
    else:
        wanted = installed if "+" in installed else str(tmp_path / installed).rstrip("/")
        assert done.stderr.strip() == f"asked for {wanted}"
