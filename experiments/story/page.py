"""What the quickstart and the demo leave behind: results.json, the page, its figures, and a table on the terminal."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import purify_jax as pj
from experiments.story import accuracy
from purify_jax.atomic import write_atomically


def write(
    workdir: Path,
    results: Mapping[str, Any],
    illustrated: Mapping[str, pj.reporting.Section],
    *,
    title: str,
    summary: str,
    verdict: Sequence[str],
) -> None:
    """Writes everything into the work directory and says so.

    results: of :func:`~experiments.story.accuracy.run_attacks`, with the seed, the versions and the seconds.
    illustrated: figure → section, after the table of accuracies.
    """
    columns, rows = accuracy.table(results)
    for name, section in illustrated.items():
        if section.figure:
            write_atomically(workdir / "figures" / f"{name}.png", section.figure)
    write_atomically(workdir / "results.json", json.dumps(results, indent=2) + "\n")
    table = pj.reporting.Section(
        "Accuracy", accuracy.TABLE_NOTE, columns, rows, terms=accuracy.TERMS
    )
    versions = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
    report = pj.reporting.write_report(
        workdir / "report.html",
        title,
        summary,
        [table, *illustrated.values()],
        f"seed {results['seed']}; {versions}; {results['seconds']} s",
        verdict,
    )
    print(pj.reporting.text_table(columns, rows))
    print(" ".join(verdict))
    print(f"report: {report}  ({results['seconds']} s)")
