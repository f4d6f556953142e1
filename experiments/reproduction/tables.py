"""results/ → the tables between the markers of README.md and docs/results.md, docs/leaderboard.md, pretrained/README.md.

purify-jax tables            # rewrites them: make tables
purify-jax tables --check    # fails if one differs from what results/ says

``<!-- table: SUITE -->`` stands for all of a suite, ``<!-- attackers: SUITE -->`` for one line for each kind of attacker,
``<!-- defenses: cifar10 -->`` for the defenses of CIFAR-10, ``<!-- headline: cifar10 -->`` for their most important
figures, ``<!-- gallery: gallery -->`` for docs/gallery.md. All end with ``<!-- end -->``.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags

from experiments.common import cli, locks
from experiments.common.provenance import ROOT
from experiments.reproduction import defense_table, gallery_table, leaderboard, model_list
from experiments.reproduction.defenses import DEFENSES
from experiments.reproduction.results import (
    Result,
    backward_passes,
    certified,
    commits,
    is_evaluation,
    judged,
    percent,
    read,
    span,
    spent,
    summary,
)
from purify_jax.atomic import write_atomically
from purify_jax.checks import InputError
from purify_jax.evaluation.statistics import Interval

flags.DEFINE_bool("check", False, "Only compare.")
FLAGS = flags.FLAGS
#: Pages with tables between markers.
MARKED = ("README.md", "docs/results.md", "docs/gallery.md", "docs/why_exact_gradients.md")


def main(argv: list[str]) -> None:
    """results/ in, the pages out."""
    del argv
    if not FLAGS.check:
        locks.hold("results", ROOT / "results")
    marked = [ROOT / name for name in MARKED]
    pages = {path: rewrite(path.read_text(), ROOT / "results") for path in marked}
    pages[ROOT / "docs" / "leaderboard.md"] = leaderboard.page(ROOT / "results")
    shipped = ROOT / "pretrained"
    pages[shipped / "README.md"] = model_list.page(ROOT / "results", shipped)
    for path, after in pages.items():
        name = str(path.relative_to(ROOT))
        if not FLAGS.check:
            write_atomically(path, after)
            print(f"written: {name}")
        elif not path.is_file() or path.read_text() != after:
            raise InputError(f"{name}: differs from results/, expected the output of make tables")
        else:
            print(f"{name} agrees with results/")


def rewrite(text: str, results: Path) -> str:
    """The text with every block between a marker and ``<!-- end -->`` made anew.

    Raises InputError for a marker that names no suite of ``results``, or that nothing ends.
    """
    made = {
        "table": block,
        "attackers": lambda suite, folder: attackers(folder),
        "defenses": lambda suite, folder: defense_table.table(folder.parent),
        "headline": lambda suite, folder: defense_table.headline(folder.parent),
        "gallery": lambda suite, folder: gallery_table.table(folder),
    }
    folders = {p.name for p in results.iterdir() if p.is_dir()}
    # The defenses have a folder each.
    defenses = {"cifar10"} if folders & set(DEFENSES) else set()
    gallery = {gallery_table.FOLDER} & folders
    there = {
        "table": folders, "attackers": folders, "defenses": defenses, "headline": defenses, "gallery": gallery,
    }  # fmt: skip

    def anew(found: re.Match[str]) -> str:
        start, kind, suite, end = found.groups()
        if suite not in there[kind] or not end:
            raise InputError(
                f"marker: got {start}, expected one of {sorted(there[kind])}, and <!-- end --> after it"
            )
        return f"{start}\n{made[kind](suite, results / suite)}\n{end}"

    kinds = "|".join(made)
    inside = rf"(?:(?!<!-- (?:{kinds}): ).)*?"
    marker = rf"(<!-- ({kinds}): (\w+) -->)(?:{inside}(<!-- end -->))?"
    return re.sub(marker, anew, text, flags=re.DOTALL)


_HEAD = (
    "| attack | images | undefended | purified | 95% interval |",
    "|---|---:|---:|---:|---:|",
)


def attackers(folder: Path) -> str:
    """What each attacker of a suite leaves of the defense, from the one who knows least to ``honest``."""
    suites = {p["settings"]["suite"]: p for p in read(folder).values() if is_evaluation(p)}
    found = {row["attack"]: row["one_draw"] for row in suites["paper"]["rows"]["defended"]}
    rows = {
        "none": found["clean"],
        "blind: the classifier alone": found["blind"],
        "BPDA: around the purifier": found["BPDA+EOT"],
        "`honest`: through every step": summary(suites["honest"])["average"],
    }
    lines = [f"| {name} | {span(share)} | {share[3]} |" for name, share in rows.items()]
    return "\n".join(["| attack | accuracy [95%] | images |", "|---|---:|---:|", *lines])


def block(suite: str, folder: Path) -> str:
    """The Markdown of one suite: attacks, then detection, corruptions and certification."""
    parts = read(folder)
    lines = _demo(parts["demo"]) if "demo" in parts else []
    evaluations = {n: p for n, p in parts.items() if is_evaluation(p)}
    if evaluations:
        lines += _HEAD
        for name, part in evaluations.items():
            rows = _evaluation(part)
            # Clean accuracy on many images says it all; the attacked ones' own is noise.
            lines += rows[1:] if "clean" in evaluations and name != "clean" else rows
        lines.append("")
    lines += _others(parts) + (_comparison(parts["comparison"]) if "comparison" in parts else [])
    any_part = next(iter(parts.values()))
    versions = any_part["versions"]
    minutes = f"{sum(p['seconds'] for p in parts.values()) / 60:.0f} minutes"
    if any(p.get("continued") for p in parts.values()):
        minutes = f"at least {minutes}"  # of what was stopped, the last piece is counted
    attacked = [
        p for p in evaluations.values() if p["settings"]["suite"] != "clean" and backward_passes(p)
    ]
    efforts = [f"`{p['settings']['suite']}`: {spent(p)} an image" for p in attacked]
    budget = any_part["budget"].rstrip(". ")
    lines.append(
        f"{'. '.join([*efforts, budget[0].upper() + budget[1:], minutes[0].upper() + minutes[1:]])} on "
        f"{versions['device']}, jax {versions['jax']}; commit {commits(parts.values())}; files in `results/{suite}/`."
    )
    return "\n".join(lines)


def _demo(part: Result) -> list[str]:
    clean = part["clean"]
    row = lambda name, found: _row(
        name, found["images"], found["undefended"], found["defended"], found["defended_ci95"]
    )
    lines = [_HEAD[0].replace("attack", "attack on the defense"), _HEAD[1], row("none", clean)]
    for a in part["attacks"]:
        eot = f" × {a['eot']}" if a["eot"] > 1 else ""
        lines.append(row(f"{a['name']}, {a['steps']}{eot}, {a['norm']} {a['epsilon']:g}", a))
    return [*lines, ""]


def _row(
    name: str, images: int, bare: float | None, value: float | None, interval: Sequence[float]
) -> str:
    """``bare`` is None for an attack that the bare classifier does not have, ``value`` without a purifier."""
    shown = ["–" if share is None else percent(share) for share in (bare, value)]
    low, high = map(percent, interval)
    return f"| {name} | {images} | {' | '.join(shown)} | [{low}, {high}] |"


def _evaluation(part: Result) -> list[str]:
    """A line per attack that met all images, then the average over fresh draws and the worst of them."""
    settings = part["settings"]
    suite, threat = settings["suite"], f"{settings['norm']} {settings['epsilon']:.3g}"
    label = judged(part["rows"])
    purified = label == "defended"
    bare = {row["attack"]: row["one_draw"][0] for row in part["rows"].get("undefended", [])}
    # Suites that drop fallen images have running totals in their rows: only the first one counts.
    lines = []
    for d in part["rows"][label][: None if suite == "paper" else 1]:
        name = "none" if d["attack"] == "clean" else f"{d['attack']}, {threat}"
        value, low, high, images = d["one_draw"]
        shown = value if purified else None
        lines.append(_row(name, images, bare.get(d["attack"]), shown, (low, high)))
    if suite == "clean":
        return lines
    found, alone = summary(part), part["summary"].get("undefended")
    for key, name in (
        ("average", f"**`{suite}`, average**, {threat}"),
        ("all_draws", f"`{suite}`, worst of {found['draws']}, {threat}"),
    ):
        value, low, high, images = found[key]
        shown = value if purified else None
        lines.append(_row(name, images, alone and alone[key][0], shown, (low, high)))
    if part.get("shared_keys"):
        value, low, high, images = part["shared_keys"]
        name = f"`{suite}`, shared keys, {threat}"
        lines.append(_row(name, images, None, value, (low, high)))
    return lines


def _comparison(part: Result) -> list[str]:
    shares = ("clean", "blind", "BPDA+EOT", "exact+EOT")
    setting, purifiers = part["settings"], part["purifiers"]
    half = max((row[s][2] - row[s][1]) / 2 for row in purifiers.values() for s in shares)
    lines = [
        f"Other purifiers with the same score network, {setting['images']} images, {setting['steps']} steps × "
        f"{setting['eot']} draws, 95% intervals of ±{100 * half:.0f} points at most:",
        "",
        f"| purifier | {' | '.join(shares)} | corrupted | passes |",
        "|---|" + "---:|" * (len(shares) + 2),
    ]
    for name, row in purifiers.items():
        cells = [percent(row[s][0]) for s in shares]
        cells += [percent(row["corrupted"]), f"{row['passes']}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def _others(parts: Mapping[str, Result]) -> list[str]:
    lines = []
    if "detection" in parts:
        attacks = parts["detection"]["attacks"]
        blind, evading = (
            attacks[n]["score norm, AUROC"] for n in ("blind", "evading, classifier alone")
        )
        caught = attacks["evading, classifier alone"]["score norm, TPR at 5%"]
        lines.append(
            f"- Detection by the score norm: AUROC {Interval(*blind)} for the blind attack, {Interval(*evading)} for one "
            f"that knows the detector. Caught of those at 5% false positives: {span(caught)}%."
        )
    if "corruptions" in parts:
        mean = parts["corruptions"]["mean_accuracy"]
        lines.append(
            f"- 15 corruptions × 5 severities: mean accuracy {span(mean['undefended'])} undefended, "
            f"{span(mean['defended'])} purified (mCE {parts['corruptions']['mce']['defended']:.2f})."
        )
    if "certification" in parts:
        part = parts["certification"]
        sigma = part["settings"]["sigma"]
        names = {"undefended": "undefended", "defended": "purified"}
        shares = certified(part, sigma)
        said = ", ".join(f"{span(shares[m])} {name}" for m, name in names.items() if m in shares)
        lines.append(f"- Certified within an L2 radius of {sigma:.3g} (σ = {sigma:g}): {said}.")
    if "denoising" in parts:
        rows = [
            f"{r['denoised']:.1f} ({r['noisy']:.1f}, {r['blur']:.1f}) at σ = {r['sigma']:g}"
            for r in parts["denoising"]["psnr"]
        ]
        lines.append(f"- denoised, in decibels (noisy, best blur): {'; '.join(rows)}")
    return [*lines, ""] if lines else []


if __name__ == "__main__":
    cli.run(main)
