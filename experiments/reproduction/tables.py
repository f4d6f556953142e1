"""results/ → the tables between the markers of README.md and docs/results.md, docs/leaderboard.md, pretrained/README.md.

python -m experiments.reproduction.tables            # rewrites them: make tables
python -m experiments.reproduction.tables --check    # fails if one differs from what results/ says

``<!-- table: SUITE -->`` stands for all of a suite, ``<!-- flagship: SUITE -->`` for the few rows that
say it, ``<!-- rows: cifar10 -->`` for the rows of CIFAR-10; all end with ``<!-- end -->``. Another suite's name in
README's one line is another flagship.
"""

import re
from pathlib import Path
from typing import Any

from absl import flags

from experiments.common import cli, locks
from experiments.common.provenance import ROOT
from experiments.reproduction import leaderboard, model_list, row_table
from experiments.reproduction.figures import certified, judged, read, span, spent
from experiments.reproduction.rows import ROWS
from purify_jax.atomic import write_atomically
from purify_jax.checks import InputError

flags.DEFINE_bool("check", False, "Only compare.")
FLAGS = flags.FLAGS

#: Published figures (percent), with their source; REFERENCE: Croce et al. 2022 and the paper.
PUBLISHED = {
    "cifar10_small": "published, ADP with WideResNet-28-10 at Linf 8/255: clean 86.14, BPDA+EOT 70.01 "
    "(Yoon et al. 2021), exact gradients 33.7 ± 0.5 (Croce et al. 2022)",
    "mnist": "published: the paper prints no table for MNIST",
    "digits": "",
}
#: What a flagship's table is of.
TITLES = {
    "digits": "Handwritten digits, 8×8 pixels",
    "digits_best": "Handwritten digits, 8×8 pixels, best settings found",
    "mnist": "MNIST",
    "cifar10_small": "CIFAR-10, small networks",
}


def main(argv: list[str]) -> None:
    """results/ in, the four pages out."""
    del argv
    if not FLAGS.check:
        locks.hold("results", ROOT / "results")
    marked = (ROOT / "README.md", ROOT / "docs" / "results.md")
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
        "flagship": flagship,
        "rows": lambda suite, folder: row_table.table(folder.parent),
    }
    folders = {p.name for p in results.iterdir() if p.is_dir()}
    # The rows have a folder each.
    rows = {"cifar10"} if folders & set(ROWS) else set()
    there = {"table": folders, "flagship": folders, "rows": rows}

    def anew(found: re.Match[str]) -> str:
        start, kind, suite, end = found.groups()
        if suite not in there[kind] or not end:
            raise InputError(
                f"marker: got {start}, expected one of {sorted(there[kind])}, and <!-- end --> after it"
            )
        return f"{start}\n{made[kind](suite, results / suite)}\n{end}"

    inside = r"(?:(?!<!-- (?:table|flagship|rows): ).)*?"
    marker = rf"(<!-- (table|flagship|rows): (\w+) -->)(?:{inside}(<!-- end -->))?"
    return re.sub(marker, anew, text, flags=re.DOTALL)


def flagship(suite: str, folder: Path) -> str:
    """Few rows of one suite: clean, what purification papers report, and what ``honest`` leaves."""
    parts = read(folder)
    of = lambda kind: {
        (p["settings"]["norm"], p["settings"]["epsilon"]): p
        for p in parts.values()
        if "worst_case" in p and p["settings"]["suite"] == kind
    }
    honest, paper = of("honest"), of("paper")
    clean = parts.get("clean") or next(iter(honest.values()))
    lines = [*_HEAD, _evaluation(clean)[0]]
    for ball, part in honest.items():
        if ball in paper:
            published = _evaluation(paper[ball])
            lines += [row for row in published if row.startswith(("| blind", "| BPDA+EOT"))]
        lines += [row for row in _evaluation(part)[1:] if not row.startswith("| shared keys")]
    commits = ", ".join(sorted({p["commit"] for p in [*honest.values(), *paper.values()]}))
    about = f"{TITLES.get(suite, suite)}; from `results/{suite}/`, commit {commits}."
    return "\n".join([about, "", *lines])


_HEAD = (
    "| attack | images | undefended | purified | 95% interval |",
    "|---|---|---|---|---|",
)


def block(suite: str, folder: Path) -> str:
    """The Markdown of one suite: attacks, then detection, corruptions and certification."""
    parts = read(folder)
    lines = _demo(parts["demo"]) if "demo" in parts else []
    evaluations = {n: p for n, p in parts.items() if "worst_case" in p}
    if evaluations:
        lines += _HEAD
        for name, part in evaluations.items():
            rows = _evaluation(part)
            # Clean accuracy on many images says it all; the attacked ones' own is noise.
            lines += rows[1:] if "clean" in evaluations and name != "clean" else rows
        lines.append("")
    lines += _others(parts) + (_comparison(parts["comparison"]) if "comparison" in parts else [])
    any_part = next(iter(parts.values()))
    commits = ", ".join(sorted({p["commit"] for p in parts.values()}))
    versions = any_part["versions"]
    minutes = f"{sum(p['seconds'] for p in parts.values()) / 60:.0f} minutes"
    if any(p.get("continued") for p in parts.values()):
        minutes = f"at least {minutes}"  # of what was stopped, the last piece is counted
    lines.append(
        f"{any_part['budget'].rstrip('. ')}; {minutes} on {versions['device']}, jax {versions['jax']}; "
        f"commit {commits}; files in `results/{suite}/`."
    )
    if PUBLISHED.get(suite):
        lines.append(f"For scale, {PUBLISHED[suite]}.")
    return "\n".join(lines)


def _demo(part: dict[str, Any]) -> list[str]:
    clean = part["clean"]
    rows = [
        "| attack on the defense | images | undefended | purified | 95% interval |",
        "|---|---|---|---|---|",
        _row(
            "none", clean["images"], clean["undefended"], clean["defended"], clean["defended_ci95"]
        ),
    ]
    for a in part["attacks"]:
        eot = f" × {a['eot']}" if a["eot"] > 1 else ""
        name = f"{a['name']}, {a['steps']}{eot}, {a['norm']} {a['epsilon']:g}"
        rows.append(_row(name, a["images"], a["undefended"], a["defended"], a["defended_ci95"]))
    return [*rows, ""]


def _row(name: str, images: int, bare: float | None, value: float | None, interval: Any) -> str:
    """``bare`` is None for an attack that the bare classifier does not have, ``value`` without a purifier."""
    shown = ["" if share is None else f"{share:.3f}" for share in (bare, value)]
    return f"| {name} | {images} | {' | '.join(shown)} | [{interval[0]:.3f}, {interval[1]:.3f}] |"


def _evaluation(part: dict[str, Any]) -> list[str]:
    settings = part["settings"]
    ball = f"{settings['norm']} {settings['epsilon']:.3g}"
    label = judged(part["rows"])
    purified = label == "defended"
    bare = {row["attack"]: row["one_draw"][0] for row in part["rows"].get("undefended", [])}
    # Suites that drop fallen images have running totals in their rows: only the last one counts.
    dropped = settings["suite"] != "paper"
    lines = []
    for d in part["rows"][label][: 1 if dropped else None]:
        name = "none" if d["attack"] == "clean" else f"{d['attack']}, {ball}"
        value, low, high, images = d["one_draw"]
        shown = value if purified else None
        lines.append(_row(name, images, bare.get(d["attack"]), shown, (low, high)))
    if settings["suite"] == "clean":
        return lines
    lines += _quoted(part, ball) if "figures" in part else _union(part, ball)
    if part.get("shared_keys"):
        value, low, high, images = part["shared_keys"]
        lines.append(
            f"| shared keys (not in the worst case), {ball} | {images} | | {value:.3f} | [{low:.3f}, {high:.3f}] |"
        )
    return lines


def _quoted(part: dict[str, Any], ball: str) -> list[str]:
    """The average over fresh draws and the worst of them; see purify_jax/evaluation/protocol.py."""
    suite, label = part["settings"]["suite"], judged(part["rows"])
    found, bare = part["figures"][label], part["figures"].get("undefended")
    rows = (("average", f"**average under `{suite}`, {ball}** ({spent(part)})"),
            ("worst", f"worst of {found['draws']} draws, {ball}"))  # fmt: skip
    return [
        _row(
            name,
            found[key][3],
            bare and bare[key][0],
            found[key][0] if label == "defended" else None,
            found[key][1:3],
        )
        for key, name in rows
    ]


def _union(part: dict[str, Any], ball: str) -> list[str]:
    """Of results up to 0.2: one draw per attack, in union."""
    value, low, high, images = part["worst_case"]["defended"]
    name = f"**worst case of `{part['settings']['suite']}`, {ball}** (union, protocol 1)"
    return [_row(name, images, part["worst_case"]["undefended"][0], value, (low, high))]


def _comparison(part: dict[str, Any]) -> list[str]:
    shares = ("clean", "blind", "BPDA+EOT", "exact+EOT")
    setting = part["settings"]
    lines = [
        f"Other purifiers with the same score network, {setting['images']} images, {setting['steps']} steps × "
        f"{setting['eot']} draws, 95% intervals of ±{_half(part, shares):.2f} at most:",
        "",
        f"| purifier | {' | '.join(shares)} | corrupted | passes | ms per image |",
        "|---" * (len(shares) + 4) + "|",
    ]
    for name, row in part["purifiers"].items():
        cells = " | ".join(f"{row[s][0]:.3f}" for s in shares)
        passes = row.get("passes", "")  # results of 0.1 did not count them
        lines.append(
            f"| {name} | {cells} | {row['corrupted']:.3f} | {passes} | {row['milliseconds']:.3f} |"
        )
    return [*lines, ""]


def _half(part: dict[str, Any], shares: tuple[str, ...]) -> float:
    return max((row[s][2] - row[s][1]) / 2 for row in part["purifiers"].values() for s in shares)


def _others(parts: dict[str, Any]) -> list[str]:
    lines = []
    if "detection" in parts:
        attacks = parts["detection"]["attacks"]
        blind, evading = (
            attacks[n]["score norm, AUROC"] for n in ("blind", "evading, classifier alone")
        )
        caught = attacks["evading, classifier alone"]["score norm, TPR at 5%"]
        lines.append(
            f"- detection by the score norm: AUROC {span(blind)} for the blind attack, {span(evading)} for one "
            f"that knows the detector, of which {span(caught)} are caught at 5% false positives"
        )
    if "corruptions" in parts:
        mean = parts["corruptions"]["mean_accuracy"]
        lines.append(
            f"- 15 corruptions × 5 severities: mean accuracy {mean['undefended']:.3f} undefended, "
            f"{mean['defended']:.3f} purified (mCE {parts['corruptions']['mce']['defended']:.2f})"
        )
    if "certification" in parts:
        part = parts["certification"]
        sigma = part["settings"]["sigma"]
        names = {"undefended": "undefended", "defended": "purified"}
        shares = certified(part, sigma)
        said = ", ".join(f"{span(shares[m])} {name}" for m, name in names.items() if m in shares)
        lines.append(f"- certified within an L2 radius of {sigma:.3g} (σ = {sigma:g}): {said}")
    if "denoising" in parts:
        rows = [
            f"{r['denoised']:.1f} ({r['noisy']:.1f}, {r['blur']:.1f}) at σ = {r['sigma']:g}"
            for r in parts["denoising"]["psnr"]
        ]
        lines.append(f"- denoised, in decibels (noisy, best blur): {'; '.join(rows)}")
    return [*lines, ""] if lines else []


if __name__ == "__main__":
    cli.run(main)
