"""Draws the figure of docs/architecture.md from the package's imports: python docs/figure.py"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "purify_jax"
PAGE = ROOT / "docs" / "architecture.md"
#: What every package uses; drawn, it would hide the rest.
BASE = {"arrays", "atomic", "checks", "keys", "pytrees", "types"}


def arrows() -> set[tuple[str, str]]:
    """(package, package that imports it), without the base modules and `__init__`."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        package = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("purify_jax"):
                named = [f"{node.module}.{alias.name}" for alias in node.names]
                found |= {(name.split(".")[1], package) for name in named}
    packages = BASE | {"__init__"}
    return {(a, b) for a, b in found if a != b and a not in packages and b not in packages}


def reduced(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The arrows that no chain of other arrows implies."""
    following: dict[str, set[str]] = {}
    for a, b in edges:
        following.setdefault(a, set()).add(b)

    def reaches(start: str, end: str) -> bool:
        return any(n == end or reaches(n, end) for n in following.get(start, ()))

    implied = lambda a, b: any(reaches(n, b) for n in following[a] - {b})
    return {(a, b) for a, b in edges if not implied(a, b)}


def figure() -> str:
    """The figure as a mermaid block."""
    lines = [f"  {a} --> {b}" for a, b in sorted(reduced(arrows()))]
    return "\n".join(["```mermaid", "flowchart LR", *lines, "```"])


if __name__ == "__main__":
    text = re.sub(r"```mermaid.*?```", lambda _: figure(), PAGE.read_text(), flags=re.DOTALL)
    PAGE.write_text(text)
