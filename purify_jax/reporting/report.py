"""Records and figures → one self-contained HTML file, the figures as PNG, and a text table."""

import base64
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from purify_jax.atomic import write_atomically

_TEMPLATE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 980px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.6em } h2 { font-size: 1.2em; margin-top: 2em }
table { border-collapse: collapse; margin: 1em 0 } th, td { padding: .3em .8em; text-align: right }
th:first-child, td:first-child { text-align: left } th { border-bottom: 2px solid #444 }
td { border-bottom: 1px solid #ddd; font-variant-numeric: tabular-nums }
img { max-width: 100% } .flag { background: #fdecea; border-left: 4px solid #c44e52; padding: .6em 1em; margin: .6em 0 }
.none { background: #eaf5ea; border-left: 4px solid #3a923a; padding: .6em 1em }
footer { color: #777; font-size: .85em; margin-top: 3em }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>{{ summary }}</p>
{% for section in sections %}
<h2>{{ section.title }}</h2>
{% if section.text %}<p>{{ section.text }}</p>{% endif %}
{% if section.columns %}
<table>
<tr>{% for name in section.columns %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in section.rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% endif %}
{% if section.flags is not none %}
{% for flag in section.flags %}<div class="flag">{{ flag }}</div>{% endfor %}
{% if not section.flags %}<div class="none">No red flag.</div>{% endif %}
{% endif %}
{% if section.image %}<img alt="{{ section.title }}" src="data:image/png;base64,{{ section.image }}">{% endif %}
{% endfor %}
<footer>{{ footer }}</footer>
</body>
</html>
"""
)


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a report: a title and any of a text, a table, a figure (PNG), red flags."""

    title: str
    text: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    figure: bytes | None = None
    flags: Sequence[str] | None = None

    @property
    def image(self) -> str:
        """The figure in base64, for the page."""
        return base64.b64encode(self.figure).decode() if self.figure else ""


def write_report(
    path: str | Path, title: str, summary: str, sections: Sequence[Section], footer: str = ""
) -> Path:
    """Writes one HTML file with everything inside it; returns its path."""
    page = _TEMPLATE.render(title=title, summary=summary, sections=sections, footer=footer)
    write_atomically(path, page)
    return Path(path)


def printable(value: Any) -> str:
    """The value on one line of a terminal, which no character of it commands."""
    return "".join(c if c.isprintable() else "?" for c in str(value))


def text_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The table in aligned plain text, first column to the left, the others to the right."""
    cells = [[printable(c) for c in row] for row in (columns, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    line = lambda row: "  ".join(
        cell.ljust(w) if i == 0 else cell.rjust(w)
        for i, (cell, w) in enumerate(zip(row, widths, strict=True))
    )
    return "\n".join([line(cells[0]), "  ".join("-" * w for w in widths), *map(line, cells[1:])])
