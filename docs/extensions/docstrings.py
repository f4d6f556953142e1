"""How this code writes docstrings → reStructuredText: lists of fields, and constants with their comments.

"name: what it is" lines become a list. A constant that a package exports is described by the ``#:``
comment where it is written, in another module; Sphinx looks only where it was imported.
"""

import importlib
import pkgutil
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

FIELD = re.compile(r"([a-z_]\w*(?:, [a-z_]\w*)*): (?=\S)")


def listed(lines: list[str]) -> list[str]:
    """The lines with every paragraph of "name: text" entries as a bullet list.

    >>> listed(["How.", "", "a: one", "  more", "b, c: two"])
    ['How.', '', '- **a**: one', '  more', '- **b, c**: two']
    """
    made: list[str] = []
    for paragraph in "\n".join(lines).split("\n\n"):
        rows = paragraph.split("\n")
        heads = [row for row in rows if row and not row.startswith(" ")]
        if heads and rows[0] == heads[0] and all(FIELD.match(row) for row in heads):
            rows = [FIELD.sub(r"- **\1**: ", row, count=1) if row in heads else row for row in rows]
        made += [*rows, ""]
    return made[:-1]


@cache
def constants(package: str) -> dict[int, list[str]]:
    """id of an object → the ``#:`` comment of the module-level name that holds it."""
    found: dict[int, list[str]] = {}
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        comments = ModuleAnalyzer.for_module(module.name).find_attr_docs()
        for (owner, name), text in comments.items():
            if not owner:
                found[id(getattr(importlib.import_module(module.name), name))] = text
    return found


def held(value: Any) -> list[str]:
    """What a constant holds, as lines: settings with their values, of other mappings the names.

    >>> held({"steps": 10, "rate": 0.05}), held({"adp": print}), held((0.0, 1.0))
    (['', '- ``steps``: 10', '- ``rate``: 0.05'], ['', 'Names: ``adp``.'], ['', 'Value: ``(0.0, 1.0)``.'])
    """
    if isinstance(value, (int, float, str, tuple)):
        return ["", f"Value: ``{value!r}``."]
    if not isinstance(value, Mapping):
        return []
    if all(isinstance(item, (int, float, str)) for item in value.values()):
        return ["", *(f"- ``{key}``: {item}" for key, item in value.items())]
    return ["", f"Names: {', '.join(f'``{key}``' for key in value)}."]


def rewrite(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Sphinx's event, before its own reading of Google's style."""
    if what == "data" and id(value) in constants(name.split(".")[0]):
        lines[:] = constants(name.split(".")[0])[id(value)]
    if what == "data":
        while lines and not lines[-1]:
            lines.pop()
        lines += held(value)
    lines[:] = listed(lines)
    if what in ("attribute", "data", "property") and ":" in "".join(lines[:1]):
        lines[:0] = [
            "..",
            "",
        ]  # else napoleon reads "words: more words" as a type and its description


def skip(app: Sphinx, what: str, name: str, value: Any, skipped: bool, options: Any) -> bool | None:
    """True for a field of a named tuple ("Alias for field number 0"): the class says what it is."""
    return True if type(value).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", rewrite, priority=400)
    return {"parallel_read_safe": True}
