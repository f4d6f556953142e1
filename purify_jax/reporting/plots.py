"""Figures of a report, as PNG bytes; drawn without a display."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FuncFormatter, MaxNLocator

#: One colour per role, the same in every figure; readable with common colour blindness.
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
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return buffer.getvalue()


def _axes(width: float = 6.0, height: float = 3.6) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


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
                axes.set_title(columns[c], fontsize=9)
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
    """Lines over a common x, with 95% bands where ``intervals`` gives them."""
    figure, axes = _axes()
    for index, (name, values) in enumerate(lines.items()):
        colour = COLOURS.get(name, _CYCLE[index % len(_CYCLE)])
        style = "o-" if markers else "-"
        axes.plot(x, values, style, markersize=4, color=colour, label=name)
        if intervals and name in intervals:
            low, high = np.transpose(intervals[name])
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    if all(float(value).is_integer() for value in x):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if unit_interval:
        axes.set_ylim(-0.02, 1.02)
    axes.legend(frameon=False, fontsize=9)
    return png(figure)


def histograms(samples: Mapping[str, np.ndarray], xlabel: str) -> bytes:
    """Overlaid histograms with common bins, on a logarithmic axis (all values positive)."""
    figure, axes = _axes()
    values = np.concatenate([np.ravel(v) for v in samples.values()])
    low = max(float(values.min()), 1e-6)
    bins = np.geomspace(low, max(float(values.max()), low * 1.01), 40).tolist()
    for index, (name, sample) in enumerate(samples.items()):
        axes.hist(
            np.maximum(np.ravel(sample), low),
            bins=bins,
            alpha=0.55,
            label=name,
            color=_CYCLE[index],
        )
    axes.set_xscale("log")
    axes.set_xlabel(xlabel)
    axes.set_ylabel("images")
    axes.legend(frameon=False, fontsize=9)
    return png(figure)


def bars(
    names: Sequence[str],
    groups: Mapping[str, Sequence[float]],
    intervals: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    ylabel: str = "accuracy",
) -> bytes:
    """A group of bars per name, with 95% intervals as error bars."""
    figure, axes = _axes(width=max(6.0, 1.1 * len(names)))
    width = 0.8 / len(groups)
    positions = np.arange(len(names))
    for index, (group, values) in enumerate(groups.items()):
        error = None
        if intervals and group in intervals:
            low, high = np.transpose(intervals[group])
            error = np.clip([np.asarray(values) - low, high - np.asarray(values)], 0, None)
        colour = COLOURS.get(group, _CYCLE[index % len(_CYCLE)])
        offset = (index - (len(groups) - 1) / 2) * width
        axes.bar(
            positions + offset, values, width, yerr=error, capsize=2, label=group, color=colour
        )
    axes.set_xticks(positions, names, rotation=25, ha="right", fontsize=8)
    axes.set_ylabel(ylabel)
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False, fontsize=9)
    return png(figure)


def parametric(
    lines: Mapping[str, tuple[np.ndarray, np.ndarray]], xlabel: str, ylabel: str
) -> bytes:
    """Curves of shares against shares, each with its own x: ROC curves, with the diagonal."""
    figure, axes = _axes(width=4.6, height=4.2)
    axes.plot([0, 1], [0, 1], ":", color="#999999")
    for index, (name, (x, y)) in enumerate(lines.items()):
        axes.plot(x, y, color=_CYCLE[index % len(_CYCLE)], label=name)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
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


def scatter(
    points: Mapping[str, tuple[float, float]],
    xlabel: str,
    ylabel: str,
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> bytes:
    """Named points, x on a logarithmic axis, with 95% intervals of y where given."""
    figure, axes = _axes(width=7.5, height=4.6)
    for index, (name, (x, y)) in enumerate(points.items()):
        colour = _CYCLE[index % len(_CYCLE)]
        if intervals and name in intervals:
            low, high = intervals[name]
            axes.plot([x, x], [low, high], color=colour, alpha=0.4)
        marker = "osD^v"[index // len(_CYCLE) % 5]
        axes.plot([x], [y], marker, color=colour, label=name)
    axes.set_xscale("log")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.margins(x=0.15)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return png(figure)
