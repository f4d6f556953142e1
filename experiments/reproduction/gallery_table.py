"""The table of docs/gallery.md, from results/gallery/."""

from collections.abc import Sequence
from pathlib import Path

from experiments.reproduction.results import Result, commits, read

#: The folder of the results.
FOLDER = "gallery"
#: Module → what the table calls it, in its order.
DEFENSES = {
    "random_resizing": "random resizing and padding",
    "jpeg_and_tv": "JPEG and total variation",
    "feature_squeezing": "feature squeezing",
    "k_winners": "k-winners-take-all",
    "smoothing_vote": "majority vote of noisy copies",
    "random_ensemble": "ensemble drawn at random",
    "langevin": "Langevin purification, detached",
    "diffpure": "DiffPure",
}

#: Those with a differentiable twin, ``surrogate()``.
SURROGATES = ("jpeg_and_tv", "langevin")


def table(folder: Path) -> str:
    """Claims and audit of each defense that was measured; then what the audit said of it, and what it took."""
    parts = read(folder)
    found = {name: parts[name] for name in DEFENSES if name in parts}
    lines = [
        "| defense | clean | transfer | naive PGD | audited | worst of 10 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, part in found.items():
        shares = [part["claimed"][kind] for kind in ("clean", "transfer", "naive")]
        shares += [part["average"], part["worst_of_10"]]
        cells = [_percent(share) for share in shares]
        if _is_only_a_bound(part):
            cells[3:] = [f"≤ {cell}" for cell in cells[3:]]
        lines.append(f"| {DEFENSES[name]} | {' | '.join(cells)} |")
    lines += ["", "What the audit found:", ""]
    lines += [f"- **{DEFENSES[name]}.** {_said(part)}" for name, part in found.items()]
    claimed = {part["claimed"]["clean"][3] for part in found.values()}
    lines += [
        "",
        f"Claims on {', '.join(map(str, sorted(claimed)))} test images; in percent, with the 95% interval. "
        f"Commit {commits(found.values())}.",
    ]
    return "\n".join(lines)


def _is_only_a_bound(part: Result) -> bool:
    """As ``Audit.only_bounds``: the attacks were too short, or followed something else than the gradient."""
    wrong = any(f["measured"].startswith("not the derivative") for f in part["findings"])
    return not part["converged"] or part["gradient"][0] in ("BPDA", "smoothed") or wrong


def _percent(share: Sequence[float]) -> str:
    value, low, high, _ = share
    return f"{100 * value:.0f} [{100 * low:.0f}, {100 * high:.0f}]"


def _said(part: Result) -> str:
    asks = [f"{f['measured']}. What to do: {f['action']}" for f in part["findings"] if f["action"]]
    gradient, reason = part["gradient"]
    plan = part["plan"]
    said = [
        *asks,
        f"The attacks follow {'the gradient as it is' if gradient == 'exact' else f'{gradient}: {reason}'}",
        f"{plan['images']} images, {plan['steps']} steps, {part['seconds']:.0f} seconds",
    ]
    if not part["converged"]:
        said.append("Not converged")
    if "surrogate" in part["claimed"]:
        left = _percent(part["claimed"]["surrogate"])
        said.append(f"PGD along the gradient of a differentiable twin leaves {left}")
    if part["red_flags"]:
        said.append(f"Red flags: {', '.join(part['red_flags'])}")
    return " ".join(f"{each[0].upper()}{each[1:].rstrip('.')}." for each in said)
