"""The rows A to E of CIFAR-10 as one table, from what results/ has of them.

``<!-- rows: cifar10 -->`` in README.md or docs/results.md, up to ``<!-- end -->``.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.reproduction.figures import backward_passes, judged, span
from experiments.reproduction.rows import ROWS
from purify_jax.evaluation import paired_difference

_HEAD = """| row | clean | `paper`, Linf 8/255 | **average under `honest`, Linf 8/255** | worst of 10 draws | average under `honest`, L2 0.5 | certified, L2 0.25 |
|---|---|---|---|---|---|---|"""
Parts = Mapping[str, Any]


def table(results: Path) -> str:
    """The Markdown: a line per row that has results, then C − D on the images that both were attacked on."""
    found = {name: parts for name in ROWS if (parts := _parts(results / name))}
    lines = [_HEAD, *(_line(ROWS[name].note, parts) for name, parts in found.items())]
    missing = [_letter(note) for name, (*_, note, _) in ROWS.items() if name not in found]
    if missing:
        lines += ["", f"Not run yet: {', '.join(missing)}."]
    if {"cifar10_defense", "cifar10_control"} <= set(found):
        lines += ["", *_differences(found["cifar10_defense"], found["cifar10_control"])]
    commits = sorted({part["commit"] for parts in found.values() for part in parts.values()})
    files = ", ".join(f"`results/{name}/`" for name in found)
    lines += ["", f"Images in brackets after each figure; {files}; commit {', '.join(commits)}."]
    return "\n".join(lines)


def _parts(folder: Path) -> dict[str, Any]:
    return {p.stem: json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))}


def _letter(note: str) -> str:
    return note.split(":")[0].removeprefix("Row ")


def _line(note: str, parts: Parts) -> str:
    passes = (
        f", {backward_passes(parts[name]):.0f} backward passes"
        if (name := _name("honest", "linf", 8 / 255)) in parts
        else ""
    )
    cells = [
        f"**{_letter(note)}** {note.split(': ')[1].rstrip('.')}",
        _figure(parts.get("clean"), "average"),
        _figure(parts.get(_name("paper", "linf", 8 / 255)), "average"),
        _figure(parts.get(name), "average", bold=True, more=passes),
        _figure(parts.get(name), "worst"),
        _figure(parts.get(_name("honest", "l2", 0.5)), "average"),
        _certified(parts.get("certification")),
    ]
    return f"| {' | '.join(cells)} |"


def _name(suite: str, norm: str, epsilon: float) -> str:
    return f"{suite}_{norm}_{epsilon:.3g}"


def _figure(part: Any, which: str, bold: bool = False, more: str = "") -> str:
    if part is None:
        return ""
    found = part["figures"][judged(part)]
    if which == "worst" and found["draws"] == 1:
        return "as the average"
    share = found[which]
    shown = f"**{span(share)}**" if bold else span(share)
    flags = ", **red flags**" if part.get("red_flags") else ""
    return f"{shown} ({share[3]}{more}){flags}"


def _certified(part: Any) -> str:
    if part is None:
        return ""
    curve = part["certified_accuracy"][judged({"rows": part["certified_accuracy"]})]
    at = min(range(len(part["radii"])), key=lambda i: abs(part["radii"][i] - 0.25))
    return f"{span(curve[at])} ({part['settings']['images']})"


def _differences(first: Parts, second: Parts) -> list[str]:
    """C − D for every evaluation that both have, image by image."""
    said = []
    for name in first:
        both = [parts.get(name, {}).get("per_image") for parts in (first, second)]
        if not all(both):
            continue
        shares = [
            [k / own["draws"] for k in own["correct_draws"]]
            for parts, images in zip((first, second), both, strict=True)
            for own in [images[judged(parts[name])]]
        ]
        count = min(map(len, shares))
        difference = paired_difference(shares[0][:count], shares[1][:count])
        settings = first[name]["settings"]
        ball = "" if settings["suite"] == "clean" else f", {_ball(settings)}"
        said.append(f"`{settings['suite']}`{ball} {difference} ({count} images)")
    return [f"C − D, paired by image: {'; '.join(said)}."] if said else []


def _ball(settings: Mapping[str, Any]) -> str:
    epsilon = settings["epsilon"]
    pixels = epsilon * 255
    exact = settings["norm"] == "linf" and math.isclose(pixels, round(pixels), abs_tol=1e-3)
    return f"{settings['norm']} {f'{pixels:.0f}/255' if exact else f'{epsilon:g}'}"
