"""Images that need no folder: scikit-learn's digits, and photographs inside the package."""

import functools
import importlib.util
import json
from importlib import resources
from pathlib import Path

import numpy as np

from purify_jax.checks import InputError
from purify_jax.data.images import read_image

#: Data set → its splits.
BUILT_IN = {"digits": ("train", "test"), "cifar10_photos": ("test",)}
_SIDE = 32
_FOLDER = resources.files(__package__) / "photographs"


def load(name: str, split: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """(images ``[n, h, w, c]``, labels ``[n]`` int32, class names) of a name in :data:`BUILT_IN`."""
    if split not in BUILT_IN[name]:
        raise InputError(
            f"split: got {split!r}, expected one of {sorted(BUILT_IN[name])} for {name}"
        )
    if name == "cifar10_photos":
        return _photographs()
    images, labels = _digits()
    part = slice(0, 1437) if split == "train" else slice(1437, None)
    return images[part], labels[part], tuple(map(str, range(10)))


@functools.lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = _digits_table()
    order = np.random.RandomState(0).permutation(len(labels))
    images = (pixels.reshape(-1, 8, 8) / 16).astype(np.float32)[..., None]
    return images[order], labels.astype(np.int32)[order]


def _digits_table() -> tuple[np.ndarray, np.ndarray]:
    """(pixels [1797, 64], labels [1797]) of scikit-learn's file: importing scikit-learn takes a second."""
    package = importlib.util.find_spec("sklearn")
    if package is not None and package.origin is not None:
        file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            table = np.loadtxt(file, delimiter=",")
            return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits  # another version may keep it elsewhere

    return load_digits(return_X_y=True)


def _photographs() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """The sheet's squares, row by row; cifar10.json beside it says where they come from."""
    with resources.as_file(_FOLDER / "cifar10.png") as path:
        sheet = read_image(path, channels=3)
    card = _card()
    rows, columns = (size // _SIDE for size in sheet.shape[:2])
    squares = sheet.reshape(rows, _SIDE, columns, _SIDE, 3).swapaxes(1, 2)
    labels = np.array(card["labels"], np.int32)
    return squares.reshape(-1, _SIDE, _SIDE, 3), labels, photograph_classes()


def photograph_classes() -> tuple[str, ...]:
    """The names of CIFAR-10's classes."""
    return tuple(_card()["class_names"])


@functools.lru_cache(maxsize=1)
def _card() -> dict:
    return json.loads((_FOLDER / "cifar10.json").read_text(encoding="utf-8"))
