"""colab/*.ipynb → pages: text, code, and the outputs that the file holds. Nothing is executed here."""

import base64
from pathlib import Path

import nbformat
from sphinx.application import Sphinx

FOLDER = "notebooks"


def page(path: Path, folder: Path) -> str:
    """The notebook as Markdown, after a line that says where it can be run; pictures go into the folder."""
    cells = nbformat.read(path, as_version=4).cells
    where = f"A notebook: open `colab/{path.name}` on Colab or in Jupyter to run it."
    said = [cells[0].source, where]
    pictures = 0
    for cell in cells[1:]:
        code = cell.cell_type == "code"
        said.append(f"```python\n{cell.source}\n```" if code else cell.source)
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                said.append(f"```text\n{output.text.rstrip()}\n```")
            elif png := output.get("data", {}).get("image/png"):
                pictures += 1
                name = f"{path.stem}_{pictures}.png"
                _write(folder / name, base64.b64decode(png))
                said.append(f"![What the cell above draws]({name})")
    return "\n\n".join(said) + "\n"


def _write(target: Path, content: bytes) -> None:
    if not target.exists() or target.read_bytes() != content:  # else Sphinx would read it again
        target.write_bytes(content)


def write_pages(app: Sphinx) -> None:
    """Every notebook of the checkout, into a folder of the sources that git ignores."""
    folder = Path(app.srcdir) / FOLDER
    folder.mkdir(exist_ok=True)
    pages = {f"{p.stem}.md": page(p, folder) for p in Path(app.srcdir).parent.glob("colab/*.ipynb")}
    for old in folder.glob("*.md"):
        if old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        _write(folder / name, text.encode())


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True}
