"""The defenses of CIFAR-10 as one table, from what results/ has of them.

``<!-- defenses: cifar10 -->`` in docs/results.md, ``<!-- headline: cifar10 -->`` in README.md, up to ``<!-- end -->``.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.reproduction.defenses import DEFENSES, L2, LINF, UNSEEN
from experiments.reproduction.parts import evaluation_name
from experiments.reproduction.results import (
    Result,
    backward_passes,
    certified,
    commits,
    fraction,
    judged,
    percent,
    read,
    span,
    spared,
    summary,
)
from purify_jax.attacks.suites import SUITES
from purify_jax.evaluation import paired_difference

_HEAD = (
    "defense",
    "clean",
    "`paper`",
    "**`honest`**",
    "worst of 10",
    "`honest`, L2",
    "certified, L2",
)
_PAPER, _HONEST = evaluation_name("paper", *LINF), evaluation_name("honest", *LINF)
#: Steps of `honest` where none are given; another number is named beside the result.
_FULL_STEPS = SUITES["honest"].steps
_DEFENSE, _CONTROL = "cifar10_defense", "cifar10_control"
Parts = Mapping[str, Result]


def table(results: Path) -> str:
    """The Markdown: a line per defense that has results, what was measured how, and what purifiers changed."""
    found = {name: parts for name in DEFENSES if (parts := read(results / name))}
    rows = [[f"**{DEFENSES[n].name}**", *_cells(parts)] for n, parts in found.items()]
    lines = [*_grid([_HEAD, *rows]), ""]
    for name, parts in found.items():
        lines.append(f"- **{DEFENSES[name].name}**: {DEFENSES[name].about}. {_conditions(parts)}")
        lines += _by_attack(parts)
    missing = [recipe.name for name, recipe in DEFENSES.items() if name not in found]
    if missing:
        lines += ["", f"Not evaluated yet: {'; '.join(missing)}."]
    lines += _threats(found)
    if {_DEFENSE, _CONTROL} <= set(found):
        lines += _differences(found[_DEFENSE], found[_CONTROL])
    made = commits([part for parts in found.values() for part in parts.values()])
    files = ", ".join(f"`results/{name}/`" for name in found)
    lines += ["", f"Files: {files}; commit {made}."]
    return "\n".join(lines)


def headline(results: Path) -> str:
    """The Markdown: what a visitor asks first, in percent, of the defenses that were attacked by `honest`."""
    head = (
        "Purifier",
        "Classifier",
        "Clean",
        "Robust [95%]",
        "Worst of 10",
        "Weak attacks¹",
        "Attacked images",
    )
    lines = [f"| {' | '.join(head)} |", "|---|---|---:|---:|---:|---:|---:|"]
    for name, recipe in DEFENSES.items():
        parts = read(results / name)
        if recipe.parts is None or _HONEST not in parts:
            continue
        honest, paper = parts[_HONEST], parts.get(_PAPER)
        found = summary(honest)
        value, low, high, images = found["average"]
        bound = "²" if _is_shortened(honest) else ""
        cells = [
            *recipe.parts,
            percent(summary(parts["clean"])["average"][0]),
            f"**{percent(value)}** [{percent(low)}, {percent(high)}]{bound}",
            percent(found["all_draws"][0]),
            "–" if paper is None else percent(summary(paper)["average"][0]) + (bound and "²"),
            str(images),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _is_shortened(part: Result) -> bool:
    """Whether `honest` had fewer steps than its own, or saw some of the restarts: an upper bound."""
    settings = part["settings"]
    steps = settings.get("steps")
    return (steps or _FULL_STEPS) < _FULL_STEPS or settings.get("surrogate_restarts") is not None


def _grid(rows: list[Sequence[str]]) -> list[str]:
    """Lines of Markdown, without the columns that are empty in every row; the first row is the head."""
    columns = [c for c in zip(*rows, strict=True) if any(c[1:]) or len(rows) == 1]
    cells = [[cell or "–" for cell in row] for row in zip(*columns, strict=True)]
    head, *body = (f"| {' | '.join(row)} |" for row in cells)
    return [head, "|---|" + "---:|" * (len(columns) - 1), *body]


def measured(parts: Parts) -> str:
    """What was measured of a defense, in a line; empty without results."""
    cells = zip(_HEAD[1:], _cells(parts), strict=True) if parts else ()
    return ", ".join(f"{head} {cell}".replace("*", "") for head, cell in cells if cell)


def _cells(parts: Parts) -> list[str]:
    honest = parts.get(_HONEST)
    return [
        _cell(parts.get("clean"), "average"),
        _cell(parts.get(_PAPER), "average"),
        f"**{_cell(honest, 'average')}**" if honest else "",
        _cell(honest, "all_draws"),
        _cell(parts.get(evaluation_name("honest", *L2)), "average"),
        _certified(parts.get("certification")),
    ]


def _conditions(parts: Parts) -> str:
    """Of each evaluation its images, and how long and through what its attacks were."""
    said = []
    for name, part in parts.items():
        settings = part.get("settings", {})
        if name == "clean":
            said.append(f"clean: {_images(part)}")
        elif name == "certification":
            said.append(f"certified: {settings['images']} images")
        elif name == "corruptions":
            said.append(f"15 corruptions × 5 severities: {settings['images']} images")
        elif "suite" in settings:
            passes = (
                f", {backward_passes(part):.0f} backward passes"
                if settings["suite"] == "honest"
                else ""
            )
            flags = ", **red flags**" if part.get("red_flags") else ""
            threat = "" if settings["norm"] == LINF[0] else f" {_ball(settings)}"
            said.append(
                f"`{settings['suite']}`{threat}: {_images(part)}"
                f"{_effort(part)}{passes}{spared(part)}{flags}"
            )
    conditions = "; ".join(said)
    return f"{conditions[:1].upper()}{conditions[1:]}."


def _ball(settings: Mapping[str, Any]) -> str:
    return f"{settings['norm']} {fraction(settings['epsilon'])}"


def _images(part: Result) -> str:
    return f"{summary(part)['average'][3]} images"


def _effort(part: Result) -> str:
    """How long the attacks were; nothing where `honest` took all its steps."""
    settings = part["settings"]
    steps, eot = settings.get("steps"), settings.get("eot")
    if not steps or (settings["suite"] == "honest" and steps == _FULL_STEPS):
        return ""
    draws = judged(part["rows"]) == "defended" and settings["suite"] == "paper"
    return f", {steps} steps" + (f" × {eot} draws" if draws else "")


def _cell(part: Result | None, which: str) -> str:
    return span(summary(part)[which]) if part is not None else ""


def _by_attack(parts: Parts) -> list[str]:
    """What papers report, attack by attack, of a purifier; a classifier alone has no such list."""
    claimed = parts.get(_PAPER)
    if claimed is None or judged(claimed["rows"]) == "undefended":
        return []
    said = [f"{row['attack']} {span(row['mean'])}" for row in claimed["rows"]["defended"]]
    draws = claimed["settings"]["draws"]
    return [f"  `paper` by attack, the mean prediction of {draws} draws: {', '.join(said)}."]


def _certified(part: Result | None) -> str:
    if part is None:
        return ""
    shares = certified(part, 0.25)
    return span(shares[judged(shares)])


def _threats(found: Mapping[str, Parts]) -> Iterator[str]:
    """`honest` inside every ball, and common corruptions, of the defenses that met more than one of them."""
    names = {f"{b[0]} {fraction(b[1])}": evaluation_name("honest", *b) for b in (LINF, *UNSEEN)}
    names["corruptions"] = "corruptions"
    met = {n: parts for n, parts in found.items() if len(set(names.values()) & set(parts)) > 1}
    rows = [
        [threat, *(_faced(parts.get(name)) for parts in met.values())]
        for threat, name in names.items()
        if any(name in parts for parts in met.values())
    ]
    if rows:
        yield ""
        yield "The same defenses under threats for which no network here was trained, but for the first:"
        yield ""
        yield from _grid([["threat", *(DEFENSES[name].name for name in met)], *rows])


def _faced(part: Result | None) -> str:
    if part is None or "mean_accuracy" not in part:
        return _cell(part, "average")
    return span(part["mean_accuracy"][judged(part["mean_accuracy"])])


def _differences(defense: Parts, control: Parts) -> Iterator[str]:
    """What the purifier changes in every evaluation that both have, on the images that both have: the first of the split."""
    rows = []
    for name, part in defense.items():
        own, other = _shares(part), _shares(control.get(name, {}))
        count = min(len(own), len(other))
        if count < 2:
            continue
        settings = part["settings"]
        suite = settings.get("suite")
        threat = "" if suite == "clean" else f", {_ball(settings)}"
        what = f"`{suite}`{threat}" if suite else name
        own, other = own[:count], other[:count]
        d = paired_difference(own, other)
        means = (percent(sum(own) / count), percent(sum(other) / count))
        gain = f"{100 * d.value:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
        rows.append(f"| {what} | {' | '.join(means)} | {gain} | {count} |")
    if rows:
        yield ""
        yield "Adversarially trained, with and without the denoising step, paired by image:"
        yield ""
        yield "| suite | with | without | difference in points | images |"
        yield "|---|---:|---:|---:|---:|"
        yield from rows


def _shares(part: Result) -> list[float]:
    """Each image's share of right draws; empty for a result without them."""
    if "per_image" not in part:
        return []
    found = part["per_image"][judged(part["per_image"])]
    return [right / found["draws"] for right in found["correct_draws"]]
