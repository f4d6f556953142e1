"""Rows of the results: rates, and ratios to every PyTorch variant of the same rounds and to the best of them."""

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks import timing
from purify_jax.reporting import text_table

Times = Mapping[str, list[float]]


def rows(
    what: str, times: Times, work: float, unit: str, flops: Mapping[str, float]
) -> list[dict[str, Any]]:
    """One row per code: rate, ratios to PyTorch (above 1: faster than it), FLOP/s.

    Args:
      times: label → seconds of each round.
      work: how many of ``unit`` a round does.
      flops: label → FLOPs of a round, where they are known.
    """
    found = []
    for label, seconds in times.items():
        row = {"what": what, "code": label, **timing.summary(seconds, work, unit)}
        for other in (other for other in times if other.startswith("torch")):
            row[f"ratio to {other}"] = statistics.median(times[other]) / row["seconds"]
        best = fastest_peer(times, bfloat16="bfloat16" in label)
        if best is not None:
            row["ratio_to_best"], row["best"] = row[f"ratio to {best}"], best
        if label in flops:
            row["flops_per_s"] = flops[label] / row["seconds"]
        found.append(row)
    return found


def fastest_peer(times: Times, *, bfloat16: bool) -> str | None:
    """The PyTorch variant with the smallest median among those of one dtype."""
    peers = [label for label in times if label.startswith("torch")]
    same = [label for label in peers if ("bfloat16" in label) == bfloat16]
    return min(same, key=lambda label: statistics.median(times[label]), default=None)


def compiled(labels: Iterable[str]) -> list[str]:
    """The labels of compiled PyTorch variants: the only code that may fail without ending a run."""
    return [label for label in labels if label.startswith("torch, compiled")]


def summary(found: Iterable[Mapping[str, Any]]) -> str:
    """A line for every row of ours that has a peer: its seconds, the best PyTorch variant's, the ratio."""
    return "\n".join(
        f"{row['what']}: {row['code']} {row['seconds']:.3g} s, "
        f"{row['best']} {row['seconds'] * row['ratio_to_best']:.3g} s, "
        f"ratio {row['ratio_to_best']:.2f}"
        for row in found
        if "best" in row and not row["code"].startswith("torch")
    )


def state_shares(result: dict[str, Any]) -> None:
    """Sets the share of the measured float32 peak in every row of float32 work."""
    for row in (row for rows in result["sections"].values() for row in rows):
        if "flops_per_s" in row and "bfloat16" not in row["code"]:
            row["share_of_peak"] = row["flops_per_s"] / result["matmul_peak_flops_per_s"]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text; a column for every key that some row has.

    Ranges and the ratios to each PyTorch variant are left to the JSON.
    """
    hidden = lambda key: key.endswith("_range") or key.startswith("ratio to ")
    columns = list(dict.fromkeys(k for row in rows for k in row if not hidden(k)))
    return text_table(columns, [[_cell(row.get(c)) for c in columns] for row in rows])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return "[" + ", ".join(f"{v:.3g}" for v in value) + "]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
