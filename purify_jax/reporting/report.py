"""Records and figures → one self-contained HTML file, the figures as PNG, and a text table."""

import base64
import dataclasses
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import jinja2

from purify_jax.atomic import write_atomically
from purify_jax.reporting.gallery import Gallery

_ASSETS = resources.files(__package__) / "assets"


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


_TEMPLATE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    _asset("page.html")
)


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a report: a title and any of a text, a figure, a table, explained words, red flags.

    figure: a PNG; alt: what it shows, for who cannot see it (the title by default).
    pictures: the figure holds images, whose colours a dark page leaves as they are.
    folded: the table is folded away under these words.
    terms: (word, meaning), say of the table's columns.
    gallery: an image browser; a page has one at most.
    """

    title: str
    text: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()
    figure: bytes | None = None
    flags: Sequence[str] | None = None
    alt: str = ""
    pictures: bool = False
    folded: str = ""
    terms: Sequence[tuple[str, str]] = ()
    gallery: Gallery | None = None

    @property
    def image(self) -> str:
        """The figure in base64, for the page."""
        return base64.b64encode(self.figure).decode() if self.figure else ""


def write_report(
    path: str | Path,
    title: str,
    summary: str,
    sections: Sequence[Section],
    footer: str = "",
    verdict: Sequence[str] = (),
) -> Path:
    """Writes one HTML file with everything inside it; returns its path.

    verdict: what to conclude, in sentences; they stand at the top, the first of them large.
    """
    with_gallery = any(section.gallery for section in sections)
    script = _asset("tables.js") + (_asset("gallery.js") if with_gallery else "")
    style = _asset("page.css")
    page = _TEMPLATE.render(
        title=title,
        summary=summary,
        sections=sections,
        footer=footer,
        verdict=verdict,
        script=script,
        style=style,
        policy=_policy(script, style),
    )
    write_atomically(path, page)
    return Path(path)


def _policy(script: str, style: str) -> str:
    """What the page may do: show the images and run the script that it carries, and nothing else."""
    parts = {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": _digest(style),
        "script-src": _digest(script),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in parts.items())


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def printable(value: object) -> str:
    """The value on one line of a terminal, which no character of it commands."""
    return "".join(c if c.isprintable() else "?" for c in str(value))


def text_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """The table in aligned plain text, first column to the left, the others to the right."""
    cells = [[printable(c) for c in row] for row in (columns, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    line = lambda row: "  ".join(
        cell.ljust(w) if i == 0 else cell.rjust(w)
        for i, (cell, w) in enumerate(zip(row, widths, strict=True))
    )
    return "\n".join([line(cells[0]), "  ".join("-" * w for w in widths), *map(line, cells[1:])])
