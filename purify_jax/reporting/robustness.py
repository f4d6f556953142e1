"""The page of a suite: a table of attacks by scorings, the worst case, the red flags."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from purify_jax.evaluation import records
from purify_jax.evaluation.protocol import Figures
from purify_jax.evaluation.suite_runs import SuiteResult
from purify_jax.reporting import plots
from purify_jax.reporting.pages import curve_figure, write_results
from purify_jax.reporting.report import Section

NOTE = (
    "Accuracy with 95% Wilson intervals. one_draw: a single answer; mean: of the mean "
    "probability of all draws; vote: of their majority; worst: all draws right (an attacker who "
    "may resubmit). In suites that drop fallen images, a row counts those as wrong."
)
QUOTE = (
    "The figures to quote. Of each image the attacker keeps the candidate that its own draws prefer; fresh "
    "draws judge it. Average: the accuracy of one answer. Worst of M: all of M answers are right, for an "
    "attacker who may submit M times. 95% intervals over images. Passes: what the attacks cost per image."
)
SHARED = "PGD, shared keys (deterministic white box)"


def _scorings(label: str) -> tuple[str, ...]:
    # A deterministic model has one scoring; a defense has four.
    return records.SCORINGS[:1] if label == "undefended" else records.SCORINGS


def table(result: SuiteResult) -> tuple[list[str], list[list[str]]]:
    """(columns, rows): an attack a row, a scoring of a model a column, the worst case last.

    An attack that one model has no row for (the joint attack on a purifier without a score) leaves
    its cells empty.
    """
    columns = [(label, scoring) for label in result.records for scoring in _scorings(label)]
    by_name = {
        label: {row["attack"]: row for row in records.table(found)}
        for label, found in result.records.items()
    }
    names = list(dict.fromkeys(name for rows in by_name.values() for name in rows))
    cell = lambda row, scoring: str(row[scoring]) if row else ""
    body = [
        [name, *(cell(by_name[label].get(name), scoring) for label, scoring in columns)]
        for name in names
    ]
    worst = [str(result.worst_case(label, scoring)) for label, scoring in columns]
    body.append(["worst case per image", *worst])
    if result.shared_keys is not None:
        first = columns.index(("defended", "one_draw"))
        blanks = [""] * len(columns)
        body.append([SHARED, *blanks[:first], str(result.shared_keys), *blanks[first + 1 :]])
    return ["attack", *(f"{label} {scoring}" for label, scoring in columns)], body


def quoted(result: SuiteResult) -> tuple[list[str], list[list[str]]]:
    """(columns, rows): the average and the worst of several draws of every model, and the cost."""
    columns = ["model", "average", "worst of 2", "worst of all draws", "backward", "forward"]
    rows = []
    for label in result.records:
        found = result.figures(label)
        two = str(found.worst_of[2]) if found.draws > 1 else ""
        worst = f"{found.worst} (of {found.draws})" if found.draws > 1 else ""
        # A defense is counted by its purifier, the bare classifier by itself.
        counted = found.cost[:2] if found.cost.purifier_forward else found.cost[2:]
        passes = [f"{counted[1]:.0f}", f"{counted[0]:.0f}"]
        rows.append([label, str(found.average), two, worst, *passes])
    return columns, rows


def _figure(result: SuiteResult) -> bytes:
    values: dict[str, dict[str, records.Interval]] = {}
    for label, found in result.records.items():
        rows = {row["attack"]: row["one_draw"] for row in records.table(found)}
        values[label] = {**rows, "worst case per image": result.worst_case(label)}
    names = list(dict.fromkeys(name for row in values.values() for name in row))
    cell = lambda found: None if found is None else (found.value, found.low, found.high)
    groups = {label: [cell(row.get(name)) for name in names] for label, row in values.items()}
    return plots.ranked(names, groups, "accuracy of one answer")


def write_robustness(
    workdir: str | Path, result: SuiteResult, summary: str, settings: Mapping[str, Any], seed: int
) -> Path:
    """Writes the page and ``results.json`` of a suite; returns the page's path."""
    columns, rows = table(result)
    sections = [
        Section("To quote", QUOTE, *quoted(result)),
        Section("Attack by attack", NOTE, columns, rows, figure=_figure(result)),
        Section("Red flags", flags=[str(flag) for flag in result.red_flags]),
    ]
    if result.curve is not None:
        figure = curve_figure(result.curve)
        sections.append(Section(f"Sweep over {result.curve.name}", figure=figure))
    content = {
        "settings": dict(settings),
        "rows": {label: records.table(found) for label, found in result.records.items()},
        "figures": {label: _content(result.figures(label)) for label in result.records},
        "worst_case": {label: result.worst_case(label) for label in result.records},
        "shared_keys": result.shared_keys,
        "red_flags": [flag._asdict() for flag in result.red_flags],
        "probes": result.probes,
        "sweep": None if result.curve is None else result.curve._asdict(),
    }
    return write_results(
        workdir,
        title="Robustness evaluation",
        summary=summary,
        columns=columns,
        rows=rows,
        sections=sections,
        content=content,
        seed=seed,
        notes=[*_notes(result), *(f"RED FLAG: {flag}" for flag in result.red_flags)],
    )


def _content(found: Figures) -> dict[str, Any]:
    return {**found._asdict(), "cost": found.cost._asdict()}


def _notes(result: SuiteResult) -> list[str]:
    notes = []
    for label in result.records:
        found = result.figures(label)
        worst = f", worst of {found.draws} {found.worst}" if found.draws > 1 else ""
        notes.append(f"{label}: average over fresh draws {found.average}{worst}")
    return notes
