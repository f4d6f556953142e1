"""Files that are written whole or not at all."""

import glob
import os
import re
from pathlib import Path

from purify_jax.checks import InputError


class SaveError(RuntimeError):
    """A checkpoint could not be written (a full disk, say); earlier ones are as they were."""


def check_output(name: str, path: str | Path, folder: bool = False) -> None:
    """Raises InputError unless a file (or folder) can be written there: before the work, not after."""
    path = Path(path)
    if path.exists() and path.is_dir() != folder:
        raise InputError(
            f"{name}: {path} is a {'file' if folder else 'folder'}, expected a "
            f"{'folder' if folder else 'file'} to write"
        )
    place = next(p for p in (path, *path.absolute().parents) if p.exists())
    if path.exists() and not folder:
        place = path.absolute().parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{name}: {path} cannot be written ({place} is no folder to write into)")


#: What :func:`write_atomically` writes into until it is complete: .NAME.PROCESS.tmp.
_UNFINISHED = re.compile(r"\..+\.\d+\.tmp")


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Writes a file beside its final name and renames it, so that a reader never sees half of it.

    What a process that died meanwhile left of the same file is removed.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"output: {path} is a folder, expected a file to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if _UNFINISHED.fullmatch(left.name) and not _is_alive(int(left.suffixes[-2][1:])):
            left.unlink(missing_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's process
        return True
    return True


def remove_unfinished(folder: str | Path, lock: str) -> None:
    """Removes what processes left in ``folder`` that died while they wrote a file.

    For the one process that may write there; folders within that have a file ``lock`` are another's.
    """
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not (Path(place) / name / lock).exists()]
        for name in filter(_UNFINISHED.fullmatch, files):
            (Path(place) / name).unlink(missing_ok=True)
