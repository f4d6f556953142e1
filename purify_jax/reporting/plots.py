"""Figures of a report, as PNG bytes; drawn without a display."""

import io
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedFormatter,
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    NullLocator,
)

#: One colour per role, the same in every figure; readable with common colour blindness.
#: Figures are narrow and their letters large, so that a telephone's screen still shows them.
COLOURS = {"undefended": "#c44e52", "defended": "#1f5fa8"}
_CYCLE = ("#1f5fa8", "#dd8452", "#3a923a", "#8172b3", "#937860", "#c44e52", "#7f7f7f")


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes; names are shown as they are, whatever TeX would make of them."""
    for axes in figure.axes:
        legend = axes.get_legend()
        texts = [axes.title, axes.xaxis.label, axes.yaxis.label]
        texts += legend.get_texts() if legend else []
        for axis in (axes.xaxis, axes.yaxis):
            # Numbers of a logarithmic axis are TeX; names given as ticks are not.
            if isinstance(axis.get_major_formatter(), (FixedFormatter, FuncFormatter)):
                texts += axis.get_ticklabels()
        for text in texts:
            text.set_parse_math(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140, bbox_inches="tight")
    return buffer.getvalue()


def _axes(width: float = 5.2, height: float = 3.4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    _quiet(axes)
    return figure, axes


def _quiet(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(axes: Axes) -> None:
    """Above the axes, where it hides no data."""
    handles, labels = axes.get_legend_handles_labels()
    longest = max(map(len, labels))
    columns = 1 if longest > 24 else 2 if longest > 14 else 3
    axes.legend(
        handles, labels, frameon=False, fontsize=9, ncols=columns, loc="lower left",
        bbox_to_anchor=(0, 1), borderaxespad=0.2,
    )  # fmt: skip


def readable_ticks(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic axis from ``low`` to ``high``: 1-2-5, or powers of ten of many.

    >>> readable_ticks(0.8, 30)
    [1.0, 2.0, 5.0, 10.0, 20.0]
    """
    first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
    inside = lambda ticks: [t for t in ticks if low <= t <= high]
    every = inside([float(f"{m}e{e}") for e in range(first, last + 1) for m in (1, 2, 5)])
    if len(every) <= 7:
        return every
    tens = inside([float(f"1e{e}") for e in range(first, last + 1)])
    return tens[:: -(-len(tens) // 7)]


def _logarithmic(axis: Axis, low: float, high: float) -> None:
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})  # type: ignore[attr-defined]
    axis.set_major_locator(FixedLocator(readable_ticks(low, high)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))


def tick(value: float) -> str:
    """A number for an axis: very small and very large ones as powers of ten that stand above the line.

    >>> tick(0.05), tick(1e-6), tick(2e5)
    ('0.05', '10⁻⁶', '2·10⁵')
    """
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:g}"
    factor, exponent = f"{value:.0e}".split("e")
    power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{power}" if factor == "1" else f"{factor}·10{power}"


def image_grid(
    rows: Sequence[Sequence[np.ndarray]],
    columns: Sequence[str],
    captions: Sequence[Sequence[str]] | None = None,
    row_labels: Sequence[str] | None = None,
) -> bytes:
    """Images ``[h, w, c]`` in [0, 1] in rows, with a title per column, and a caption per image or
    a label per row if given."""
    height, width = len(rows), len(columns)
    figure = Figure(figsize=(1.15 * width, 1.4 * height), layout="constrained")
    grid = figure.subplots(height, width, squeeze=False)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            axes = grid[r][c]
            axes.imshow(np.squeeze(np.clip(image, 0, 1)), cmap="gray", vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
            if r == 0:
                # Wrapped, as they must not run into each other.
                axes.set_title(textwrap.fill(columns[c], 13), fontsize=9)
            if captions is not None and captions[r][c]:
                axes.set_xlabel(captions[r][c], fontsize=8)
            if c == 0 and row_labels is not None:
                axes.set_ylabel(row_labels[r], fontsize=8, rotation=0, ha="right", va="center")
    return png(figure)


def curves(
    x: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    xlabel: str,
    ylabel: str,
    intervals: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    unit_interval: bool = False,
    markers: bool = True,
) -> bytes:
    """Lines over a common x, with 95% intervals where they are given: bars at marked points, which stand
    beside each other so that none hides another, or bands around lines without markers."""
    figure, axes = _axes()
    _lines(axes, x, lines, intervals, markers)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if unit_interval:
        axes.set_ylim(-0.02, 1.02)
    _legend(axes)
    return png(figure)


def panels(
    x: Sequence[float], quantities: Mapping[str, Mapping[str, Sequence[float]]], xlabel: str
) -> bytes:
    """Quantity → lines over a common x: a panel and an axis for each quantity, from 0 on."""
    figure = Figure(figsize=(5.2, 0.4 + 2.2 * len(quantities)), layout="constrained")
    rows = figure.subplots(len(quantities), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (ylabel, lines) in zip(rows, quantities.items(), strict=True):
        _quiet(axes)
        _lines(axes, x, lines)
        axes.set_ylabel(ylabel)
        axes.set_ylim(bottom=0)
    rows[-1].set_xlabel(xlabel)
    _legend(rows[0])
    return png(figure)


def _lines(
    axes: Axes,
    x: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    intervals: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    markers: bool = True,
) -> None:
    for index, (name, values) in enumerate(lines.items()):
        colour = COLOURS.get(name, _CYCLE[index % len(_CYCLE)])
        # Shapes differ too: colours alone are lost on paper and on some eyes.
        style = "osD^v"[index % 5] + "-" if markers else ("-", "--", "-.", ":")[index % 4]
        known = np.transpose(intervals[name]) if intervals and name in intervals else None
        if markers and known is not None:
            aside = 0.012 * (max(x) - min(x)) * (index - (len(lines) - 1) / 2)
            error = np.clip([np.asarray(values) - known[0], known[1] - np.asarray(values)], 0, None)
            axes.errorbar(
                np.asarray(x) + aside, values, yerr=error, fmt=style, color=colour, markersize=4,
                linewidth=1.2, elinewidth=1, capsize=2, label=name,
            )  # fmt: skip
            continue
        axes.plot(x, values, style, markersize=4, color=colour, label=name)
        if known is not None:
            axes.fill_between(x, *known, color=colour, alpha=0.15, linewidth=0)
    if all(float(value).is_integer() for value in x):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def histograms(samples: Mapping[str, np.ndarray], xlabel: str) -> bytes:
    """Histograms with common bins; on a logarithmic axis if the values are positive and span a decade.

    Up to three lie over each other; more have a row each, below one another, on one axis.
    """
    rows = len(samples) if len(samples) > 3 else 1
    figure = Figure(figsize=(5.2, 3.4 if rows == 1 else 0.9 + 0.95 * rows), layout="constrained")
    panels = figure.subplots(rows, 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    values = np.concatenate([np.ravel(v) for v in samples.values()])
    low, high = float(values.min()), float(values.max())
    logarithmic = low > 0 and high >= 10 * low
    bins = (np.geomspace if logarithmic else np.linspace)(low, max(high, low + 1e-6), 41)
    for index, (name, sample) in enumerate(samples.items()):
        axes = panels[index % rows]
        colour, sample = _CYCLE[index % len(_CYCLE)], np.ravel(sample)
        axes.hist(sample, bins=bins.tolist(), alpha=0.35, color=colour, label=name)
        axes.hist(sample, bins=bins.tolist(), histtype="step", color=colour)
    for axes in panels:
        _quiet(axes)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=3 if rows > 1 else "auto", integer=True))
        _legend(axes)
    if logarithmic:
        _logarithmic(panels[-1].xaxis, low, high)
        xlabel += " (logarithmic)"
    panels[-1].set_xlabel(xlabel)
    panels[len(panels) // 2].set_ylabel("images")
    return png(figure)


def ranked(
    names: Sequence[str],
    groups: Mapping[str, Sequence[tuple[float, float, float] | None]],
    xlabel: str = "accuracy",
    beside: tuple[str, Sequence[float]] | None = None,
) -> bytes:
    """A line per name, so that no two labels meet: (value, low, high) of every group as a dot with its
    interval, None for none. beside: a second panel's (label, positive values), on a logarithmic axis."""
    width = (3, 2) if beside else (1,)
    figure = Figure(figsize=(5.2, 1.1 + 0.3 * len(names)), layout="constrained")
    row = figure.subplots(1, len(width), sharey=True, squeeze=False, width_ratios=width)[0]
    positions = np.arange(len(names), dtype=float)
    for index, (group, cells) in enumerate(groups.items()):
        colour = COLOURS.get(group, _CYCLE[index % len(_CYCLE)])
        there = [i for i, cell in enumerate(cells) if cell is not None]
        offset = 0.22 * (index - (len(groups) - 1) / 2)
        value, low, high = np.array([cells[i] for i in there], float).reshape(-1, 3).T
        error = np.clip([value - low, high - value], 0, None)
        row[0].errorbar(
            value, positions[there] + offset, xerr=error, fmt="osD^v"[index % 5], color=colour,
            markersize=5, capsize=2, label=group,
        )  # fmt: skip
    row[0].set_xlim(-0.02, 1.02)
    row[0].set_xlabel(xlabel)
    row[0].set_yticks(positions, names, fontsize=9)
    row[0].set_ylim(len(names) - 0.5, -0.5)
    if len(groups) > 1:
        _legend(row[0])
    if beside:
        label, values = beside
        row[1].plot(values, positions, "s", color=_CYCLE[1], markersize=5)
        least, most = min(values) / 2, max(values) * 2
        row[1].set_xlim(least, most)
        _logarithmic(row[1].xaxis, least, most)
        row[1].set_xlabel(f"{label}\n(logarithmic)")
    for axes in row:
        _quiet(axes)
    return png(figure)


def parametric(
    lines: Mapping[str, tuple[np.ndarray, np.ndarray]], xlabel: str, ylabel: str
) -> bytes:
    """Curves of shares against shares, each with its own x: ROC curves, with the diagonal."""
    figure, axes = _axes(width=5.2, height=4.6)
    axes.plot([0, 1], [0, 1], ":", color="#999999")
    for index, (name, (x, y)) in enumerate(lines.items()):
        style = ("-", "--", "-.", ":")[index % 4]
        axes.plot(x, y, style, color=_CYCLE[index % len(_CYCLE)], label=name)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    _legend(axes)
    return png(figure)


def heat_map(
    rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]]
) -> bytes:
    """Shares in [0, 1] as colours with their numbers."""
    figure = Figure(figsize=(0.62 * len(columns) + 2, 0.3 * len(rows) + 1), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(values, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    for r, row in enumerate(values):
        for c, value in enumerate(row):
            colour = "white" if value < 0.6 else "black"
            axes.text(c, r, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(picture, label="accuracy")
    return png(figure)
