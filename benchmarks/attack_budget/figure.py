"""The figure of accuracy against backward passes, from what was recorded: docs/attack_budget.png.

python -m benchmarks.attack_budget.figure

A curve for each attack that was run at several budgets. Above: the average with its 95% interval over images.
Below: the same minus the suite ``exhaustive`` at its full cost, paired over images, whose intervals are
those that tell attacks apart.
"""

from pathlib import Path

import numpy as np
from absl import flags
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks.attack_budget import recorded, rows
from experiments.common import cli, provenance
from purify_jax.atomic import write_atomically
from purify_jax.checks import InputError
from purify_jax.reporting.plots import png, readable_ticks

HERE = Path(__file__).parent
flags.DEFINE_string(
    "recorded",
    str(HERE.parent / "results" / "attack_budget_digits.json"),
    "A workdir's attack_budget.json.",
)
flags.DEFINE_string("against", "exhaustive", "The row that the lower panel compares with.")
flags.DEFINE_string("figure", str(provenance.ROOT / "docs" / "attack_budget.png"), "The PNG.")
FLAGS = flags.FLAGS

#: The suites first; a shape each too, since colours alone are lost on paper and on some eyes.
COLOURS = (
    "#c44e52", "#1f5fa8", "#dd8452", "#3a923a", "#8172b3", "#937860", "#7f7f7f", "#d48cc0", "#17a2b8",
)  # fmt: skip
SHAPES = "so^vDP*Xd"


def main(argv: list[str]) -> None:
    """Flags in, a PNG with command and commit in its text chunks out."""
    del argv
    content = recorded.read(Path(FLAGS.recorded))
    picture = draw(content, FLAGS.against)
    # The default file is named from the root, wherever the checkout lies.
    source = Path(FLAGS.recorded).resolve()
    inside = source.is_relative_to(provenance.ROOT)
    name = source.relative_to(provenance.ROOT) if inside else source.name
    command = f"python -m benchmarks.attack_budget.figure --recorded={name}"
    marked = provenance.mark_png(picture, command, provenance.commit())
    write_atomically(Path(FLAGS.figure), marked)
    print(f"written: {FLAGS.figure}")


def draw(content: recorded.Json, against: str = "exhaustive") -> bytes:
    """The figure as PNG; InputError unless some attack was run at two budgets and ``against`` at one."""
    curves: dict[str, list[recorded.Json]] = {}
    for row in content["rows"]:
        curves.setdefault(row["name"], []).append(row)
    if against not in curves:
        raise InputError(f"against: got {against!r}, expected one of {sorted(curves)}")
    reference = max(curves[against], key=lambda row: row["budget"])
    # What was tried and taken out again stays in the file, and out of the figure.
    there = rows.table(content["settings"]["epsilon"], content["settings"]["norm"], 400)
    curves = {name: curves[name] for name in there if len(curves.get(name, ())) > 1}
    if not curves:
        raise InputError("recorded: every attack has one budget, expected some with several")
    figure = Figure(figsize=(5.6, 7.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 4))
    for place, (name, points) in enumerate(curves.items()):
        points.sort(key=lambda row: row["passes"][1])
        # Side by side where they would hide each other, by up to 6% of the passes.
        shift = 1.015 ** (place - len(curves) / 2)
        passes = [row["passes"][1] * shift for row in points]
        _bars(above, place, name, passes, [row["average"][:3] for row in points])
        paired = [recorded.difference(content, row, reference) for row in points]
        _bars(below, place, name, passes, [(m, m - half, m + half) for m, half in paired])
    settings = content["settings"]
    above.set_ylabel("average accuracy, 95%")
    below.set_ylabel(f"minus {against} at its full cost, paired")
    below.set_xlabel("backward passes through the purifier, per image (logarithmic)")
    below.axhline(0, color="#999999", linestyle=":")
    every = [row["passes"][1] for points in curves.values() for row in points]
    low, high = min(every) / 1.3, max(every) * 1.3
    ticks = readable_ticks(low, high)
    for axes in (above, below):
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(low, high)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = above.get_legend_handles_labels()
    title = f"{settings['model']}, {settings['images']} images, {settings['norm']} {settings['epsilon']}"
    figure.legend(
        handles, labels, loc="outside upper center", ncols=2, fontsize=8, frameon=False, title=title
    )
    return png(figure)


def _bars(axes: Axes, place: int, name: str, x: list[float], points: list) -> None:
    value, low, high = np.array(points, float).T
    error = np.clip([value - low, high - value], 0, None)
    axes.errorbar(
        x, value, yerr=error, fmt=SHAPES[place % len(SHAPES)] + "-", color=COLOURS[place % len(COLOURS)],
        markersize=4.5, linewidth=1.2, elinewidth=0.8, capsize=2, label=name,
    )  # fmt: skip


if __name__ == "__main__":
    cli.run(main)
