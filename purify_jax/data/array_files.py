"""Files of arrays (.npy, .npz): read, or refused in one line."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from purify_jax.checks import InputError


def load_npy(path: Path, name: str) -> np.ndarray:
    """The array of an .npy file, left on disk; InputError, which begins with ``name``, if there is none."""
    found = _opened(path, name, ".npy")
    if isinstance(found, np.lib.npyio.NpzFile):
        found.close()
        raise InputError(f"{name}: {path} is an archive of arrays, expected a single one (.npy)")
    return found


def load_npz(
    path: Path, name: str, fields: Sequence[str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """(those of ``fields`` that an .npz file holds, the names of all its arrays); InputError as :func:`load_npy`."""
    archive = _opened(path, name, ".npz")
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise InputError(f"{name}: {path} is a single array, expected an .npz with names")
    try:
        with archive:
            return {f: archive[f] for f in fields if f in archive.files}, sorted(archive.files)
    except Exception as error:  # zipfile, zlib and numpy have their own
        raise _unreadable(path, name, ".npz", error) from error


def _opened(path: Path, name: str, suffix: str) -> np.ndarray | np.lib.npyio.NpzFile:
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(
            f"{name}: {path} is empty (0 bytes), expected an {suffix}: download or write it again"
        )
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy's own, those of zipfile, and of a header that is no Python
        raise _unreadable(path, name, suffix, error) from error


def _unreadable(path: Path, name: str, suffix: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return InputError(f"{name}: {path} is not a readable {suffix}: {reason}")


def as_labels(labels: np.ndarray, name: str) -> np.ndarray:
    """Labels ``[n]`` int32 of integers or whole floats, ``[n]`` or ``[n, 1]``, or of one-hot rows ``[n, classes]``.

    Raises InputError for others.
    """
    found = np.asarray(labels)
    number = found.dtype.kind in "biuf"
    if number and found.ndim == 2 and found.shape[1] > 1:
        if not (np.isin(found, (0, 1)).all() and (found.sum(axis=1) == 1).all()):
            raise InputError(
                f"{name}: rows of {found.shape[1]} that are not one-hot, expected classes [n]"
            )
        found = found.argmax(axis=1)
    elif number and found.ndim == 2:
        found = found[:, 0]
    if not number or found.ndim != 1 or (found.size and (found != np.rint(found)).any()):
        raise InputError(
            f"{name}: got {found.dtype} of shape {found.shape}, expected whole numbers, one for each image"
        )
    return found.astype(np.int32)
