"""What the files of results/ say of the model that an evaluation judges."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import purify_jax as pj

Result = Mapping[str, Any]


def read(folder: Path) -> dict[str, Result]:
    """Name → content of a suite's files, in order; empty where there are none."""
    return {p.stem: json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))}


def attacked(results: Path) -> Iterator[tuple[Path, Result]]:
    """(file, content) of every evaluation under attacks."""
    for path in sorted(results.glob("*/*.json")):
        part = json.loads(path.read_text())
        if is_evaluation(part) and part["settings"]["suite"] != "clean":
            yield path, part


def is_evaluation(part: Result) -> bool:
    """Whether the result is of ``experiments.evaluate``."""
    return "summary" in part


def hours(record: Result) -> float | None:
    """What a training took; None where its seconds are of the last of several pieces and the whole was not recorded."""
    if "hours" in record:
        return record["hours"]
    return None if record.get("continued") else record["seconds"] / 3600


def judged(labels: Collection[str]) -> str:
    """Which of an evaluation's labels it is about: of a classifier without a purifier, itself."""
    return "defended" if "defended" in labels else "undefended"


def summary(part: Result) -> Mapping[str, Any]:
    """The summary of the model that the evaluation judges."""
    return part["summary"][judged(part["rows"])]


def backward_passes(part: Result) -> float:
    """Backward passes that the attacks took for one image: through the purifier, or through the classifier alone."""
    through = "purifier" if judged(part["rows"]) == "defended" else "classifier"
    return summary(part)["cost"][f"{through}_backward"]


def spent(part: Result, unit: str = " backward passes") -> str:
    """The passes in words, with what was spared."""
    return f"{backward_passes(part):.0f}{unit}{spared(part)}"


def spared(part: Result) -> str:
    """Through how few restarts attacks looked, where a flag said so, and which of the suite were skipped.

    The attack that knows the keys has no part in the summary, skipped or not.
    """
    restarts = part["settings"].get("surrogate_restarts")
    each = "" if restarts is None else f", each through {restarts} restart{'s' * (restarts > 1)}"
    known = pj.evaluation.suite_runs.SHARED_KEYS
    skipped = [name for name in part["settings"].get("skip") or () if name != known]
    return each + (f", without {', '.join(skipped)}" if skipped else "")


def certified(part: Result, radius: float) -> dict[str, Sequence[float]]:
    """Label → certified accuracy at the radius of the curve that is nearest."""
    radii = part["radii"]
    at = min(range(len(radii)), key=lambda i: abs(radii[i] - radius))
    return {label: curve[at] for label, curve in part["certified_accuracy"].items()}


def commits(parts: Collection[Result]) -> str:
    """The commits that made the results, each once."""
    return ", ".join(sorted({part["commit"] for part in parts}))


def percent(share: float) -> str:
    """A share in percent.

    >>> percent(0.4021)
    '40.2'
    """
    return f"{100 * share:.1f}"


def span(share: Sequence[float]) -> str:
    """A share with its interval, in percent.

    >>> span([0.5, 0.4021, 0.5979, 100])
    '50.0 [40.2, 59.8]'
    """
    value, low, high = map(percent, share[:3])
    return f"{value} [{low}, {high}]"


def fraction(epsilon: float) -> str:
    """A radius as RobustBench writes it: "8/255" for a few grey levels, else the number.

    >>> fraction(8 / 255), fraction(0.5)
    ('8/255', '0.5')
    """
    levels = round(epsilon * 255)
    if 0 < levels <= 32 and abs(levels / 255 - epsilon) < 1e-6:
        return f"{levels}/255"
    return f"{epsilon:g}"
