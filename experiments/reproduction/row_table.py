"""The rows of CIFAR-10 as one table, from what results/ has of them.

``<!-- rows: cifar10 -->`` in README.md or docs/results.md, up to ``<!-- end -->``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.reproduction.figures import (
    backward_passes,
    certified,
    fraction,
    judged,
    read,
    span,
    spared,
)
from experiments.reproduction.rows import ROWS
from purify_jax.evaluation import paired_difference

_HEAD = (
    "row", "clean", "`paper`, Linf 8/255", "**average under `honest`, Linf 8/255**", "worst of 10 draws",
    "average under `honest`, L2 0.5", "certified, L2 0.25",
)  # fmt: skip
#: Steps of `honest` where none are given; fewer are named beside the figure.
_FULL_STEPS = 400
_DEFENSE_AND_CONTROL = ("cifar10_defense", "cifar10_control")
Parts = Mapping[str, Any]


def table(results: Path) -> str:
    """The Markdown: a line per row that has results, then what purifiers changed, on the images that both were attacked on."""
    found = {name: parts for name in ROWS if (parts := read(results / name))}
    lines = _grid([_HEAD, *(_cells(ROWS[name].note, parts) for name, parts in found.items())])
    missing = [_letter(row.note) for name, row in ROWS.items() if name not in found]
    if missing:
        lines += ["", f"Not evaluated yet: {', '.join(missing)}."]
    lines += ["", "An empty cell was not run."]
    for name, parts in found.items():
        lines += _by_attack(_letter(ROWS[name].note), parts)
    if set(_DEFENSE_AND_CONTROL) <= set(found):
        names = [_letter(ROWS[name].note) for name in _DEFENSE_AND_CONTROL]
        lines += ["", *_differences(*names, *(found[name] for name in _DEFENSE_AND_CONTROL))]
    commits = sorted({part["commit"] for parts in found.values() for part in parts.values()})
    files = ", ".join(f"`results/{name}/`" for name in found)
    lines += ["", f"Images in brackets after each figure; {files}; commit {', '.join(commits)}."]
    return "\n".join(lines)


def _letter(note: str) -> str:
    return note.split(":")[0].removeprefix("Row ")


def _grid(rows: list[Sequence[str]]) -> list[str]:
    """Lines of Markdown, without the columns that are empty in every row; the first row is the head."""
    columns = [c for c in zip(*rows, strict=True) if any(c[1:]) or len(rows) == 1]
    head, *body = (f"| {' | '.join(cells)} |" for cells in zip(*columns, strict=True))
    return [head, "|---" * len(columns) + "|", *body]


def figures(note: str, parts: Parts) -> dict[str, str]:
    """What was measured of a row: the head of its column → the figure."""
    cells = zip(_HEAD[1:], _cells(note, parts)[1:], strict=True) if parts else ()
    return {head.replace("*", ""): cell.replace("*", "") for head, cell in cells if cell}


def _cells(note: str, parts: Parts) -> list[str]:
    claimed, name = _name("paper", "linf", 8 / 255), _name("honest", "linf", 8 / 255)
    passes = f", {backward_passes(parts[name]):.0f} backward passes" if name in parts else ""
    return [
        f"**{_letter(note)}** {note.split(': ')[1].rstrip('.')}",
        _clean(parts),
        _figure(parts.get(claimed), "average", more=_effort(parts.get(claimed))),
        _figure(parts.get(name), "average", bold=True, more=_effort(parts.get(name)) + passes),
        _figure(parts.get(name), "worst"),
        _figure(parts.get(_name("honest", "l2", 0.5)), "average"),
        _certified(parts.get("certification")),
    ]


def _effort(part: Any) -> str:
    """How long the attacks were; nothing where `honest` took all its steps."""
    settings = {} if part is None else part["settings"]
    steps, eot = settings.get("steps"), settings.get("eot")
    if not steps or (settings["suite"] == "honest" and steps == _FULL_STEPS):
        return ""
    draws = judged(part["rows"]) == "defended" and settings["suite"] == "paper"
    return f", {steps} steps" + (f" × {eot} draws" if draws else "")


def _name(suite: str, norm: str, epsilon: float) -> str:
    return f"{suite}_{norm}_{epsilon:.3g}"


def _figure(part: Any, which: str, bold: bool = False, more: str = "") -> str:
    if part is None:
        return ""
    found = part["figures"][judged(part["rows"])]
    if which == "worst" and found["draws"] == 1:
        return "as the average"
    share = found[which]
    shown = f"**{span(share)}**" if bold else span(share)
    flags = ", **red flags**" if part.get("red_flags") else ""
    return f"{shown} ({share[3]}{more}{spared(part)}){flags}"


def _clean(parts: Parts) -> str:
    """As the row is attacked, then at other noises."""
    shown = [_figure(parts.get("clean"), "average")]
    for name, part in parts.items():
        if name.startswith("clean_sigma_"):
            settings = part["settings"]
            rate = "" if settings.get("rate") is None else f", λ = {settings['rate']:g}"
            shown.append(f"at σ = {settings['noise_scale']:g}{rate}: {_figure(part, 'average')}")
    return "; ".join(shown)


def _by_attack(letter: str, parts: Parts) -> list[str]:
    """What papers report, attack by attack, beside the exact gradient, of a purifier of many calls."""
    claimed = parts.get(_name("paper", "linf", 8 / 255))
    exact = parts.get(_name("honest", "linf", 8 / 255))
    if claimed is None or exact is None or judged(claimed["rows"]) == "undefended":
        return []
    said = [f"{row['attack']} {span(row['mean'])}" for row in claimed["rows"]["defended"]]
    reported, left = (span(part["figures"]["defended"]["average"]) for part in (claimed, exact))
    count, draws = (claimed["settings"][name] for name in ("images", "draws"))
    same = count == exact["settings"]["images"]
    images = "" if same else f", {exact['settings']['images']} images"
    return [
        "",
        f"{letter} by attack ({count} images, the mean prediction of {draws} draws): {', '.join(said)}. "
        f"Averages over single draws, after all attacks: `paper` {reported}, `honest` (exact gradients{images}) {left}.",
    ]


def _certified(part: Any) -> str:
    if part is None:
        return ""
    shares = certified(part, 0.25)
    return f"{span(shares[judged(shares)])} ({part['settings']['images']})"


def _differences(defense: str, control: str, first: Parts, second: Parts) -> list[str]:
    """Defense − control for every evaluation that both have, on the images that both have: the first of the split."""
    said, means = [], []
    for name in first:
        own, other = _shares(first[name]), _shares(second.get(name, {}))
        count = min(len(own), len(other))
        if count < 2:
            continue
        settings = first[name]["settings"]
        ball = f", {settings['norm']} {fraction(settings['epsilon'])}"
        what = f"`{settings['suite']}`{'' if settings['suite'] == 'clean' else ball}"
        own, other = own[:count], other[:count]
        said.append(f"{what} {paired_difference(own, other)} ({count} images)")
        means.append(f"{what} {sum(own) / count:.3f} and {sum(other) / count:.3f}")
    if not said:
        return []
    return [
        f"{defense} − {control}, paired by image: {'; '.join(said)}.",
        f"{defense} and {control} on just these images: {'; '.join(means)}.",
    ]


def _shares(part: Parts) -> list[float]:
    """Of each image the share of its draws that were right; empty where that was not kept."""
    if "per_image" not in part:
        return []
    found = part["per_image"][judged(part["rows"])]
    return [right / found["draws"] for right in found["correct_draws"]]
