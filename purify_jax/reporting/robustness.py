"""The page of a suite: a table of attacks by scorings, their union, the red flags."""

from collections.abc import Sequence
from pathlib import Path

from purify_jax.evaluation import protocol, records
from purify_jax.evaluation.audits.auditing import Audit
from purify_jax.evaluation.probes.sweeps import Curve, Grid
from purify_jax.evaluation.protocol import Summary
from purify_jax.evaluation.suite_runs import SuiteResult
from purify_jax.reporting import audits, plots, verdicts
from purify_jax.reporting.pages import curve_figure, write_results
from purify_jax.reporting.report import Section
from purify_jax.types import Json

QUOTE = (
    "Of each image the attacker keeps the candidate that its own draws prefer; fresh draws judge it. "
    "95% intervals over images."
)
QUOTE_TERMS = (
    ("average", "the share of images that one answer of the model has right: the figure to quote"),
    ("worst of M", "all of M answers are right: what is left when an attacker may submit M times"),
    (
        "backward, forward",
        "what the attacks cost: passes through the purifier for one image (of a model without one, through the classifier)",
    ),
)
ATTACKS = (
    "How far each attack gets by itself, as the accuracy of one answer. An attack that is far above the strongest "
    "adds nothing; a transferred or black-box attack below the exact ones is a warning. In suites that leave "
    "images alone which have fallen, a row counts those as wrong too."
)
ATTACK_TERMS = (
    (
        "union of attacks",
        "right after every attack, with one answer each. It falls with every attack that is added, even a useless one: read it, but quote the average above",
    ),
    (
        "shared keys",
        "an attacker who knows the defense's random numbers: what their secrecy is worth",
    ),
)
OTHERS = (
    "The same attacks, with the answers of all scoring draws counted in other ways. If vote is far above one_draw, the "
    "defense gains by answering many times; if all_draws is far below it, so does an attacker who may resubmit."
)
OTHER_TERMS = (
    ("one_draw", "a single answer"),
    ("mean", "the mean probability of all draws"),
    ("vote", "their majority"),
    ("all_draws", "right only if all draws are"),
)
FLAGS = "Signs that the attacks above were too weak, so that the true accuracy may be lower."
LEFT_OUT = "Attacks of the suite that this defense cannot be attacked by."
SWEEP = {
    "epsilon": "Where an attack may change everything, accuracy must come near 0; else the attack is too weak.",
    "eot": "The curve should be level at its end; else more draws would still find more.",
    "steps": "The curve should be level at its end; else more steps would still find more.",
    "steps_eot": "The curves should meet and be level at their end; else longer attacks would still find more.",
}
SHARED = "PGD, shared keys (deterministic white box)"


def _scorings(found: Sequence[records.Record]) -> tuple[str, ...]:
    # With a single draw all four scorings are one.
    single = all(record.get("draws", 1) == 1 for record in found)
    return records.SCORINGS[:1] if single else records.SCORINGS


def table(result: SuiteResult) -> tuple[list[str], list[list[str]]]:
    """(columns, rows): an attack a row, a scoring of a model a column, the union of attacks last.

    An attack that one model has no row for (the joint attack on a purifier without a score) leaves
    its cells empty.
    """
    columns = [
        (label, scoring) for label, each in result.records.items() for scoring in _scorings(each)
    ]
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
    worst = [str(result.union_accuracy(label, scoring)) for label, scoring in columns]
    body.append(["union of attacks", *worst])
    if result.shared_keys is not None:
        first = columns.index((result.label, "one_draw"))
        blanks = [""] * len(columns)
        body.append([SHARED, *blanks[:first], str(result.shared_keys), *blanks[first + 1 :]])
    return ["attack", *(f"{label} {scoring}" for label, scoring in columns)], body


def quoted(result: SuiteResult) -> tuple[list[str], list[list[str]]]:
    """(columns, rows): the average and the worst of several draws of every model, and the cost."""
    columns = ["model", "average", "worst of 2", "worst of all draws", "backward", "forward"]
    rows = []
    for label in result.records:
        found = result.summary(label)
        two = str(found.worst_of[2]) if found.draws > 1 else ""
        worst = f"{found.all_draws} (of {found.draws})" if found.draws > 1 else ""
        # A defense is counted by its purifier, the bare classifier by itself.
        counted = found.cost[:2] if found.cost.purifier_forward else found.cost[2:]
        passes = [f"{counted[1]:.0f}", f"{counted[0]:.0f}"]
        rows.append([label, str(found.average), two, worst, *passes])
    return columns, rows


def _figure(result: SuiteResult) -> bytes:
    values: dict[str, dict[str, records.Interval]] = {}
    for label, found in result.records.items():
        rows = {row["attack"]: row["one_draw"] for row in records.table(found)}
        values[label] = {**rows, "union of attacks": result.union_accuracy(label)}
    names = list(dict.fromkeys(name for row in values.values() for name in row))
    cell = lambda found: None if found is None else (found.value, found.low, found.high)
    groups = {label: [cell(row.get(name)) for name in names] for label, row in values.items()}
    return plots.ranked(names, groups, "accuracy of one answer")


def write_robustness(
    workdir: str | Path,
    result: SuiteResult,
    summary: str,
    settings: Json,
    seed: int,
    audit: Audit | None = None,
) -> Path:
    """Writes the page and ``results.json`` of a suite, or of the audit that it was part of; returns the path."""
    columns, rows = table(result)
    flags = [str(flag) for flag in result.red_flags]
    shown = _columns(result.label, columns, rows, "one_draw")
    sections = [
        Section("To quote", QUOTE, *quoted(result), terms=QUOTE_TERMS),
        Section(
            "Attack by attack", ATTACKS, *shown, _figure(result), terms=ATTACK_TERMS,
            alt="A line per attack: accuracy of one answer with its interval; the table has the numbers.",
        ),
        Section("Red flags", FLAGS, flags=flags),
    ]  # fmt: skip
    if len(columns) > len(shown[0]):
        sections.insert(
            2,
            Section(
                "Other ways to count", OTHERS, columns, rows, folded="The table", terms=OTHER_TERMS
            ),
        )
    if result.curve is not None:
        sections.append(_sweep_section(result.curve))
    if audit is not None:
        sections.insert(1, audits.section(audit))
    elif result.left_out:
        rows_left = list(result.left_out.items())
        sections.insert(2, Section("Left out", LEFT_OUT, ["attack", "why"], rows_left))
    content = {
        "settings": dict(settings),
        "rows": {label: records.table(found) for label, found in result.records.items()},
        "summary": {label: _content(result.summary(label)) for label in result.records},
        "per_image": {label: _per_image(found) for label, found in result.records.items()},
        "union_accuracy": {label: result.union_accuracy(label) for label in result.records},
        "shared_keys": result.shared_keys,
        "red_flags": [flag._asdict() for flag in result.red_flags],
        "probes": result.probes,
        "sweep": None if result.curve is None else result.curve._asdict(),
        "left_out": dict(result.left_out),
        **({} if audit is None else {"audit": audits.content(audit)}),
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
        verdict=[*([] if audit is None else audits.verdict(audit)), *_verdict(result)],
    )


def _sweep_section(curve: Curve | Grid) -> Section:
    explained, over = f"Bars: 95% intervals. {SWEEP[curve.name]}", curve.name.replace("_", " and ")
    if isinstance(curve, Grid) and curve.changes:
        changes = ", ".join(f"that of {what} by {change}" for what, change in curve.changes.items())
        explained += f" The last increase changed it, image by image: {changes}."
    rows = [
        [f"{point:g}", *map(str, found)]
        for point, *found in zip(curve.points, *curve.lines.values(), strict=True)
    ]
    return Section(
        f"Sweep over {over}", explained, [curve.varied, *curve.lines], rows, curve_figure(curve),
        alt=f"Line chart: accuracy over {over}; the table has the numbers.", folded="The numbers",
    )  # fmt: skip


def _columns(
    label: str, columns: list[str], rows: list[list[str]], scoring: str
) -> tuple[list[str], list[list[str]]]:
    """The table with the columns of one scoring alone, each named by its model, the defense first."""
    models = [i for i, name in enumerate(columns) if i and name.endswith(f" {scoring}")]
    chosen = [0, *sorted(models, key=lambda i: not columns[i].startswith(f"{label} "))]
    names = [columns[i].removesuffix(f" {scoring}") for i in chosen]
    return names, [[row[i] for i in chosen] for row in rows]


def _verdict(result: SuiteResult) -> list[str]:
    label = result.label
    bare = None if result.bare is None else result.summary(result.bare)
    both = [result.probes.get(name) for name in ("BPDA", "exact")]
    probed = tuple(both) if all(isinstance(each, records.Interval) for each in both) else None
    return verdicts.of_suite(
        result.summary(label),
        attacked=set(records.attack_names(result.records[label])) != {"clean"},
        undefended=None if bare is None else bare.average,
        bpda_and_exact=probed,  # type: ignore[arg-type]
        red_flags=len(result.red_flags),
    )


def _content(found: Summary) -> Json:
    return {**found._asdict(), "cost": found.cost._asdict()}


def _per_image(found: Sequence[records.Record]) -> Json:
    """What the average is the mean of, in the order of the images: for paired comparisons of two runs."""
    kept = protocol.strongest(found)
    return {"draws": kept[0]["draws"], "correct_draws": [r["correct_draws"] for r in kept]}


def _notes(result: SuiteResult) -> list[str]:
    notes = []
    for label in result.records:
        found = result.summary(label)
        worst = f", worst of {found.draws} {found.all_draws}" if found.draws > 1 else ""
        notes.append(f"{label}: average over fresh draws {found.average}{worst}")
    return notes
