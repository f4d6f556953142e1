"""Runs the notebooks of colab/ and stores what they print and draw: python docs/execute.py [NAME ...].

Progress bars and warnings (the standard error) are left out, and so is what differs from run to run in the
metadata, so that a notebook changes in git only where its cells or their outputs do.
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]


def execute(path: Path) -> None:
    """One notebook, in place; an error of a cell is raised and nothing is written."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(ROOT)}}
    NotebookClient(notebook, timeout=3600, kernel_name="python3", resources=resources).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    notebook.metadata["language_info"] = {"name": "python"}  # its version would differ
    nbformat.validate(notebook)
    whole = nbformat.writes(notebook) + "\n"
    if any(str(place) in whole for place in (ROOT, Path.home()) if len(place.parts) > 1):
        raise SystemExit(f"{path.name}: its outputs name a folder of this machine")
    path.write_text(whole)


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.pop("PURIFY_BUDGET", None)  # whole runs
    os.chdir(ROOT)
    for name in sys.argv[1:] or ("quickstart", "cifar10"):  # train_on_tpu takes days on a CPU
        print(f"{name} ...", flush=True)
        execute(ROOT / "colab" / f"{name}.ipynb")
