"""Which command and which commit made a file."""

import io
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def commit() -> str:
    """The commit of this checkout, with "+changes" if tracked files differ; "unknown" without git."""
    try:
        # Looking at a checkout must not write into it: a run that dies then would leave git's lock.
        git = lambda *args: subprocess.run(
            ["git", "--no-optional-locks", *args],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        # Results are outputs: writing them does not change what made them.
        inputs = ["--", ".", ":!results", ":!pretrained", ":!README.md", ":!docs"]
        changed = git("status", "--porcelain", "--untracked-files=no", *inputs)
        return git("rev-parse", "HEAD")[:12] + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def shown(command: Sequence[str], data_dir: str | None) -> str:
    """The command as a user would type it, with DIR for the folder of data."""
    text = shlex.join(["python", "-m", *command])
    return (
        text.replace(f"--data_dir={shlex.quote(data_dir)}", "--data_dir=DIR") if data_dir else text
    )


def without_paths(value: Any) -> Any:
    """The value without the settings that name folders of this machine."""
    if isinstance(value, dict):
        local = ("data_dir", "workdir", "corruptions_dir")
        return {k: without_paths(v) for k, v in value.items() if k not in local}
    return value


def mark_png(content: bytes, command: str, commit: str) -> bytes:
    """The PNG with command and commit as text chunks."""
    import PIL.Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("Command", command)
    info.add_itxt("Commit", commit)
    buffer = io.BytesIO()
    with PIL.Image.open(io.BytesIO(content)) as image:
        image.save(buffer, "PNG", pnginfo=info, optimize=True)
    return buffer.getvalue()


def mark_html(page: str, command: str, commit: str) -> str:
    """The report with command and commit in its footer."""
    import html

    return page.replace(
        "</footer>", f"; {html.escape(command)}; commit {html.escape(commit)}</footer>"
    )
