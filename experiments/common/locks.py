"""One process at a time writes into a folder; a second one ends in one line. The first says what it wrote."""

import atexit
import os
import socket
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

from absl import logging
from filelock import FileLock, Timeout

from purify_jax.atomic import remove_unfinished
from purify_jax.checks import InputError

NAME = ".lock"
#: Beside the lock: which process holds it.
_HOLDER = ".lock-holder"
#: Folder → lock, of the locks of this process: it may ask for one again.
_held: dict[Path, FileLock] = {}
#: Folder as it was named → what was in it: file → (when it was changed, bytes).
_before: dict[Path, dict[Path, tuple[int, int]]] = {}


def hold(name: str, folder: str | Path) -> None:
    """Makes ``folder`` and locks it until this process ends, however it ends.

    The kernel holds the lock (flock), so that a killed process leaves none behind. Then removes what
    a killed process left half-written. Of several processes that work together the first one
    holds it for all. Raises InputError, which says ``name``, if another process holds it, or if the
    folder cannot be written.
    """
    jax = sys.modules.get("jax")  # several processes work together only after it was loaded
    if jax is not None and jax.distributed.is_initialized() and jax.process_index() > 0:
        return
    folder = Path(folder)
    lock = FileLock(folder / NAME, timeout=0, thread_local=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if folder.resolve() in _held:
            return
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"{name}: {folder} cannot be written: permission denied")
        lock.acquire()
        (folder / _HOLDER).write_text(f"process {os.getpid()} on {socket.gethostname()}")
    except Timeout as error:
        raise InputError(
            f"{name}: {folder} is in use by {_holder(folder)}, expected one process at a time; "
            "wait for it, or give another folder"
        ) from error
    except NotImplementedError:
        logging.warning("%s: no locks here; that two runs use one folder is not seen", folder)
    except OSError as error:
        raise InputError(f"{name}: {folder} cannot be written: {error.strerror}") from error
    _held[folder.resolve()] = lock
    remove_unfinished(folder, NAME)
    _before[folder] = _files(folder)


def endings() -> list[str]:
    """A line for every folder that this process holds: what it wrote there."""
    lines = []
    for folder, before in _before.items():
        new = [path for path, state in _files(folder).items() if before.get(path) != state]
        if new:
            lines.append(f"written to {folder}: {_listed(new)}")
        else:
            lines.append(f"nothing new in {folder}: what this command writes was there")
    return lines


def _files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Files inside, by their path from there, without hidden ones."""
    found = {}
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(place) / name for name in names if not name.startswith(".")):
            with suppress(OSError):  # gone meanwhile: an old checkpoint
                about = path.stat()
                found[path.relative_to(folder)] = (about.st_mtime_ns, about.st_size)
    return found


def _listed(paths: list[Path], most: int = 12) -> str:
    """Files by name, and folders with how many of their files."""
    inside = Counter(path.parts[0] for path in paths if len(path.parts) > 1)
    names = [path.name for path in paths if len(path.parts) == 1]
    names += [f"{name}/ ({n} file{'s' * (n > 1)})" for name, n in inside.items()]
    rest = len(names) - most
    return ", ".join(sorted(names)[:most]) + (f" and {rest} more" if rest > 0 else "")


def _holder(folder: Path) -> str:
    with suppress(OSError):
        return (folder / _HOLDER).read_text(errors="replace")[:200] or "another process"
    return "another process"


def release() -> None:
    """Gives back all locks of this process. The file of a lock stays, as waiting processes share it."""
    for folder, lock in _held.items():
        with suppress(OSError):
            (folder / _HOLDER).unlink(missing_ok=True)
        lock.release()
    _held.clear()
    _before.clear()


atexit.register(release)
