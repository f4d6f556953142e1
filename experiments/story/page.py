"""What the quickstart and the demo leave behind: results.json, the page, its figures, and a table on the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.story import accuracy
from purify_jax.reporting import Section, pages


def write(
    workdir: Path,
    results: Mapping[str, Any],
    illustrated: Mapping[str, Section],
    *,
    title: str,
    summary: str,
    verdict: Sequence[str],
) -> None:
    """Writes everything into the work directory and says so.

    results: of :func:`~experiments.story.accuracy.run_attacks`, with the seed and the seconds.
    illustrated: figure → section, after the table of accuracies.
    """
    columns, rows = accuracy.table(results)
    table = Section("Accuracy", accuracy.TABLE_NOTE, columns, rows, terms=accuracy.TERMS)
    pages.write_results(
        workdir,
        title=title,
        summary=summary,
        columns=columns,
        rows=rows,
        sections=[table, *illustrated.values()],
        content=results,
        seed=results["seed"],
        figures={name: s.figure for name, s in illustrated.items() if s.figure},
        notes=[" ".join(verdict), f"{results['seconds']} s"],
        verdict=verdict,
    )
