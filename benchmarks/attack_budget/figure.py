"""What was recorded → paired differences, and the figure of accuracy against backward passes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

Json = dict[str, Any]


def find(recorded: Json, name: str, budget: int) -> Json | None:
    """The row of that name and budget, if it was recorded."""
    rows = (r for r in recorded["rows"] if (r["name"], r["budget"]) == (name, budget))
    return next(rows, None)


def difference(recorded: Json, row: Json, other: Json) -> tuple[float, float]:
    """(mean, half of the 95% interval) of ``row``'s accuracy minus ``other``'s, paired over images."""
    draws = recorded["settings"]["draws"]
    each = (np.array(row["right"]) - np.array(other["right"])) / draws
    half = stats.t.ppf(0.975, len(each) - 1) * each.std(ddof=1) / np.sqrt(len(each))
    return float(each.mean()), float(half)


def line(recorded: Json, row: Json, against: str) -> str:
    """The row as one line of a table; the difference to the largest budget of ``against``."""
    value, low, high = row["average"][:3]
    text = (
        f"{row['name']:58s} {row['passes'][1]:6.0f} backward {row['passes'][0]:6.0f} forward  "
        f"{value:.3f} [{low:.3f}, {high:.3f}]  worst {row['worst'][0]:.3f}"
    )
    others = [r for r in recorded["rows"] if r["name"] == against]
    if others and row not in others:
        other = max(others, key=lambda r: r["budget"])
        mean, half = difference(recorded, row, other)
        text += f"  minus {against} {mean:+.3f} ± {half:.3f}"
    return text


def draw(path: Path) -> bytes:
    """The figure of a recorded run as PNG: a curve for each row that has several budgets."""
    recorded = json.loads(path.read_text())
    raise NotImplementedError(recorded)
