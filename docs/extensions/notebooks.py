"""colab/*.ipynb → pages: text as it is, code as code. Nothing is executed; the tests do that."""

from pathlib import Path

import nbformat
from sphinx.application import Sphinx

FOLDER = "notebooks"


def page(path: Path) -> str:
    """The notebook as Markdown, after a line that says where it can be run."""
    cells = nbformat.read(path, as_version=4).cells
    said = [
        cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```"
        for cell in cells
    ]
    where = f"A notebook: open `colab/{path.name}` on Colab or in Jupyter to run it."
    title, *rest = said
    return "\n\n".join([title, where, *rest]) + "\n"


def write_pages(app: Sphinx) -> None:
    """Every notebook of the checkout, into a folder of the sources that git ignores."""
    folder = Path(app.srcdir) / FOLDER
    folder.mkdir(exist_ok=True)
    pages = {f"{p.stem}.md": page(p) for p in Path(app.srcdir).parent.glob("colab/*.ipynb")}
    for old in folder.glob("*.md"):
        if old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        target = folder / name
        if not target.exists() or target.read_text() != text:  # else Sphinx would read it again
            target.write_text(text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True}
