"""What was recorded: a file of rows, each with the right draws of every image; differences are paired."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from purify_jax.checks import InputError
from purify_jax.evaluation import paired_difference

Json = dict[str, Any]


def read(path: Path, settings: Json | None = None) -> Json:
    """The settings and rows of a file; InputError if it is not one, or one of other settings."""
    try:
        found = json.loads(path.read_text())
        draws, rows = found["settings"]["draws"], found["rows"]
        if not rows or any(max(row["right"]) > draws or row["passes"][1] < 0 for row in rows):
            raise ValueError("its rows are not those of an attack budget")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"recorded: {path} cannot be read: {error}") from error
    if settings is not None and found["settings"] != settings:
        raise InputError(f"recorded: {path} holds {found['settings']}, expected {settings}")
    return found


def written(content: Json) -> str:
    """The text of the file: a line for each row."""
    head = json.dumps({**content, "rows": None}).replace('"rows": null', '"rows": [')[:-1]
    return head + "\n" + ",\n".join(json.dumps(row) for row in content["rows"]) + "\n]}\n"


def find(recorded: Json, name: str, budget: int) -> Json | None:
    """The row of that name and budget, if it was recorded."""
    rows = (r for r in recorded["rows"] if (r["name"], r["budget"]) == (name, budget))
    return next(rows, None)


def difference(recorded: Json, row: Json, other: Json) -> tuple[float, float]:
    """(mean, half of the 95% interval) of ``row``'s accuracy minus ``other``'s, paired over images."""
    draws = recorded["settings"]["draws"]
    share = lambda found: np.array(found["right"]) / draws
    found = paired_difference(share(row), share(other))
    return found.value, found.high - found.value


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
