"""```mermaid flowchart LR``` blocks as SVG, drawn while the site is built: no script, no network.

It knows lines ``a --> b`` only. A box stands right of all that lead to it, and as near as that allows to
what it leads to; boxes of a column stand in the order of what leads to them.
"""

from html import escape

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

WIDTH, HEIGHT, ACROSS, DOWN = 96, 30, 140, 48


def placed(arrows: list[tuple[str, str]]) -> dict[str, tuple[int, int]]:
    """Box → (column, row)."""
    before: dict[str, list[str]] = {}
    after: dict[str, list[str]] = {}
    for start, end in arrows:
        before.setdefault(start, [])
        before.setdefault(end, []).append(start)
        after.setdefault(start, []).append(end)

    def first(name: str) -> int:
        return max((first(b) + 1 for b in before[name]), default=0)

    def column(name: str) -> int:
        return min((column(a) - 1 for a in after.get(name, ())), default=first(name))

    columns: dict[int, list[str]] = {}
    for name in before:
        columns.setdefault(column(name), []).append(name)
    found: dict[str, tuple[int, int]] = {}
    for number in sorted(columns):
        rows = {
            name: [found[b][1] for b in before[name]] or [len(columns[number])]
            for name in columns[number]
        }
        order = sorted(rows, key=lambda name: (sum(rows[name]) / len(rows[name]), name))
        found |= {name: (number, row) for row, name in enumerate(order)}
    return found


def svg(lines: list[str]) -> str:
    """The picture of ``a --> b`` lines, in the page's own colours."""
    arrows = [(a.strip(), b.strip()) for a, b in (x.split("-->") for x in lines if "-->" in x)]
    boxes = placed(arrows)
    wide = (max(c for c, _ in boxes.values()) + 1) * ACROSS
    high = (max(r for _, r in boxes.values()) + 1) * DOWN
    drawn = []
    for start, end in arrows:
        (c0, r0), (c1, r1) = boxes[start], boxes[end]
        x0, y0 = c0 * ACROSS + WIDTH, r0 * DOWN + HEIGHT / 2 + 5
        x1, y1 = c1 * ACROSS - 2, r1 * DOWN + HEIGHT / 2 + 5
        bend = (ACROSS - WIDTH) * 0.9
        drawn.append(
            f'<path d="M{x0},{y0} C{x0 + bend},{y0} {x1 - bend},{y1} {x1},{y1}" fill="none" '
            'stroke="currentColor" stroke-opacity="0.55" marker-end="url(#tip)"/>'
        )
    for name, (c, r) in boxes.items():
        x, y = c * ACROSS, r * DOWN + 5
        drawn.append(
            f'<rect x="{x + 1}" y="{y}" width="{WIDTH - 2}" height="{HEIGHT}" rx="5" '
            'fill="var(--color-background-secondary)" stroke="currentColor"/>'
            f'<text x="{x + WIDTH / 2}" y="{y + 20}" text-anchor="middle" font-size="13" '
            f'fill="currentColor">{escape(name)}</text>'
        )
    tip = (
        '<defs><marker id="tip" viewBox="0 0 6 6" refX="5" refY="3" markerWidth="6" '
        'markerHeight="6" orient="auto"><path d="M0,0 L6,3 L0,6 z" fill="currentColor"/></marker></defs>'
    )
    said = escape("; ".join(f"{a} to {b}" for a, b in arrows))
    return (
        f'<div style="overflow-x:auto" tabindex="0"><svg viewBox="0 0 {wide} {high + 10}" style="min-width:{wide * 0.7:.0f}px;'
        f'width:100%;max-width:{wide}px" role="img" aria-label="Arrows: {said}">{tip}{"".join(drawn)}</svg></div>'
    )


class Flowchart(SphinxDirective):
    """A mermaid block of a page."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """One raw node; other builders than HTML show nothing."""
        return [nodes.raw("", svg(list(self.content)), format="html")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("mermaid", Flowchart)
    return {"parallel_read_safe": True}
