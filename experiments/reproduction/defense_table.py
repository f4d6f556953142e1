"""The defenses of CIFAR-10 as one table, from what results/ has of them.

``<!-- defenses: cifar10 -->`` in docs/results.md, ``<!-- headline: cifar10 -->`` in README.md, up to ``<!-- end -->``.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from experiments.reproduction.defenses import DEFENSES, L2, LINF, Recipe
from experiments.reproduction.parts import evaluation_name
from experiments.reproduction.results import (
    Result,
    backward_passes,
    certified,
    commits,
    fraction,
    judged,
    read,
    span,
    spared,
    summary,
)
from purify_jax.evaluation import paired_difference

_HEAD = (
    "defense", "clean", "`paper`, Linf 8/255", "**average under `honest`, Linf 8/255**", "worst of 10 draws",
    "average under `honest`, L2 0.5", "certified, L2 0.25",
)  # fmt: skip
_PAPER, _HONEST = evaluation_name("paper", *LINF), evaluation_name("honest", *LINF)
#: Steps of `honest` where none are given; fewer are named beside the result.
_FULL_STEPS = 400
_DEFENSE, _CONTROL = "cifar10_defense", "cifar10_control"
Parts = Mapping[str, Result]


def table(results: Path) -> str:
    """The Markdown: a line per defense that has results, then what purifiers changed, on the images that both were attacked on."""
    found = {name: parts for name in DEFENSES if (parts := read(results / name))}
    names = {name: recipe.name for name, recipe in DEFENSES.items()}
    lines = _grid([_HEAD, *(_cells(DEFENSES[name], parts) for name, parts in found.items())])
    missing = [names[name] for name in DEFENSES if name not in found]
    if missing:
        lines += ["", f"Not evaluated yet: {'; '.join(missing)}."]
    lines += ["", "An empty cell was not run."]
    for name, parts in found.items():
        lines += _by_attack(names[name], parts)
    if {_DEFENSE, _CONTROL} <= set(found):
        lines += _differences(found[_DEFENSE], found[_CONTROL])
    made = commits([part for parts in found.values() for part in parts.values()])
    files = ", ".join(f"`results/{name}/`" for name in found)
    lines += ["", f"Images in brackets after each result; {files}; commit {made}."]
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
        "Images",
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
            _percent(summary(parts["clean"])["average"][0]),
            f"**{_percent(value)}** [{_percent(low)}, {_percent(high)}]{bound}",
            _percent(found["all_draws"][0]),
            "–" if paper is None else _percent(summary(paper)["average"][0]) + (bound and "²"),
            str(images),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _is_shortened(part: Result) -> bool:
    """Whether `honest` had fewer steps than its own, or saw some of the restarts: an upper bound."""
    settings = part["settings"]
    steps = settings.get("steps")
    return (steps or _FULL_STEPS) < _FULL_STEPS or settings.get("surrogate_restarts") is not None


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _grid(rows: list[Sequence[str]]) -> list[str]:
    """Lines of Markdown, without the columns that are empty in every row; the first row is the head."""
    columns = [c for c in zip(*rows, strict=True) if any(c[1:]) or len(rows) == 1]
    head, *body = (f"| {' | '.join(cells)} |" for cells in zip(*columns, strict=True))
    return [head, "|---" * len(columns) + "|", *body]


def measured(recipe: Recipe, parts: Parts) -> dict[str, str]:
    """What was measured of a defense: the head of its column → the result."""
    cells = zip(_HEAD[1:], _cells(recipe, parts)[1:], strict=True) if parts else ()
    return {head.replace("*", ""): cell.replace("*", "") for head, cell in cells if cell}


def _cells(recipe: Recipe, parts: Parts) -> list[str]:
    paper, honest = parts.get(_PAPER), parts.get(_HONEST)
    passes = f", {backward_passes(honest):.0f} backward passes" if honest else ""
    return [
        f"**{recipe.name}**: {recipe.about}",
        _clean(parts),
        _cell(paper, "average", more=_effort(paper)),
        _cell(honest, "average", bold=True, more=_effort(honest) + passes),
        _cell(honest, "all_draws"),
        _cell(parts.get(evaluation_name("honest", *L2)), "average"),
        _certified(parts.get("certification")),
    ]


def _effort(part: Result | None) -> str:
    """How long the attacks were; nothing where `honest` took all its steps."""
    settings = part["settings"] if part else {}
    steps, eot = settings.get("steps"), settings.get("eot")
    if part is None or not steps or (settings["suite"] == "honest" and steps == _FULL_STEPS):
        return ""
    draws = judged(part["rows"]) == "defended" and settings["suite"] == "paper"
    return f", {steps} steps" + (f" × {eot} draws" if draws else "")


def _cell(part: Result | None, which: str, bold: bool = False, more: str = "") -> str:
    if part is None:
        return ""
    found = summary(part)
    if which == "all_draws" and found["draws"] == 1:
        return "as the average"
    share = found[which]
    shown = f"**{span(share)}**" if bold else span(share)
    flags = ", **red flags**" if part.get("red_flags") else ""
    return f"{shown} ({share[3]}{more}{spared(part)}){flags}"


def _clean(parts: Parts) -> str:
    """As the defense is attacked, then at other noises."""
    shown = [_cell(parts.get("clean"), "average")]
    for name, part in parts.items():
        if name.startswith("clean_sigma_"):
            settings = part["settings"]
            rate = "" if settings.get("rate") is None else f", λ = {settings['rate']:g}"
            shown.append(f"at σ = {settings['noise_scale']:g}{rate}: {_cell(part, 'average')}")
    return "; ".join(shown)


def _by_attack(name: str, parts: Parts) -> list[str]:
    """What papers report, attack by attack, beside the exact gradient, of a purifier of many calls."""
    claimed, exact = parts.get(_PAPER), parts.get(_HONEST)
    if claimed is None or exact is None or judged(claimed["rows"]) == "undefended":
        return []
    said = [f"{row['attack']} {span(row['mean'])}" for row in claimed["rows"]["defended"]]
    reported, left = (span(summary(part)["average"]) for part in (claimed, exact))
    count, draws = (claimed["settings"][name] for name in ("images", "draws"))
    same = count == exact["settings"]["images"]
    images = "" if same else f", {exact['settings']['images']} images"
    return [
        "",
        f"**{name}**, by attack ({count} images, the mean prediction of {draws} draws): {', '.join(said)}. "
        f"Averages over single draws, after all attacks: `paper` {reported}, `honest` (exact gradients{images}) {left}.",
    ]


def _certified(part: Result | None) -> str:
    if part is None:
        return ""
    shares = certified(part, 0.25)
    return f"{span(shares[judged(shares)])} ({part['settings']['images']})"


def _differences(defense: Parts, control: Parts) -> Iterator[str]:
    """What the purifier changes in every evaluation that both have, on the images that both have: the first of the split."""
    said, means = [], []
    for name, part in defense.items():
        own, other = _shares(part), _shares(control.get(name, {}))
        count = min(len(own), len(other))
        if count < 2:
            continue
        settings = part["settings"]
        threat = f", {settings['norm']} {fraction(settings['epsilon'])}"
        what = f"`{settings['suite']}`{'' if settings['suite'] == 'clean' else threat}"
        own, other = own[:count], other[:count]
        said.append(f"{what} {paired_difference(own, other)} ({count} images)")
        means.append(f"{what} {sum(own) / count:.3f} and {sum(other) / count:.3f}")
    if said:
        yield ""
        yield f"Adversarially trained, one denoising step minus no purifier, paired by image: {'; '.join(said)}."
        yield f"The two on just these images: {'; '.join(means)}."


def _shares(part: Result) -> list[float]:
    """Each image's share of right draws; empty for a result without them."""
    if "per_image" not in part:
        return []
    found = part["per_image"][judged(part["rows"])]
    return [right / found["draws"] for right in found["correct_draws"]]
