"""What every evaluating binary leaves behind: figures, a page, a JSON file, and a table on the terminal."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from purify_jax.atomic import write_atomically
from purify_jax.checks import check_file_name
from purify_jax.evaluation.probes.sweeps import Curve, Grid
from purify_jax.models.versions import versions
from purify_jax.reporting import plots
from purify_jax.reporting.report import Section, text_table, write_report
from purify_jax.types import Json


def write_results(
    workdir: str | Path,
    *,
    title: str,
    summary: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    sections: Sequence[Section],
    content: Json,
    seed: int,
    figures: Mapping[str, bytes] | None = None,
    notes: Sequence[str] = (),
    verdict: Sequence[str] = (),
) -> Path:
    """Writes ``figures/*.png``, ``report.html`` and ``results.json``, and prints the table.

    Args:
      title, summary, sections: of the page.
      columns, rows: the table for the terminal.
      content: of ``results.json``, beside the versions.
      seed: of the run, for the page's footer.
      figures: name → PNG; InputError for one that names no file.
      notes: lines for the terminal after the table.
      verdict: what to conclude, in sentences, at the top of the page.

    Returns the page's path.
    """
    workdir = Path(workdir)
    for name in figures or {}:
        check_file_name("figures", name)
    for name, png in (figures or {}).items():
        write_atomically(workdir / "figures" / f"{name}.png", png)
    found = versions()
    footer = "; ".join([f"seed {seed}", ", ".join(f"{k} {v}" for k, v in found.items())])
    page = write_report(workdir / "report.html", title, summary, sections, footer, verdict)
    everything = {"versions": found, **content}
    write_atomically(workdir / "results.json", as_json(everything))
    print(text_table(columns, rows))
    for note in notes:
        print(note)
    print(f"report: {page}")
    return page


def as_json(content: object) -> str:
    """Indented JSON with a final newline, in which a list of numbers takes one line.

    >>> print(as_json({"average": [0.5, 0.25], "names": ["a"]}), end="")
    {
      "average": [0.5, 0.25],
      "names": [
        "a"
      ]
    }
    """
    text = json.dumps(content, indent=2)
    # Line breaks within a string are escaped: these can only be the indentation's.
    numbers = re.compile(r"\[\n\s+([-\d.eE+]+(?:,\n\s+[-\d.eE+]+)*)\n\s+\]")
    return numbers.sub(lambda found: "[" + re.sub(r",\s+", ", ", found[1]) + "]", text) + "\n"


def curve_figure(curve: Curve | Grid) -> bytes:
    """A sweep's curve, or a grid's over the steps for each number of samples, as a figure (PNG)."""
    lines = {label: [a.value for a in line] for label, line in curve.lines.items()}
    bands = {label: [(a.low, a.high) for a in line] for label, line in curve.lines.items()}
    return plots.curves(curve.points, lines, curve.varied, "accuracy", bands, unit_interval=True)
