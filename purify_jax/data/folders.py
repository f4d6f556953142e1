"""Folders of images with a folder for each class, and the layouts of well-known sets."""

import hashlib
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from absl import logging

from purify_jax.checks import InputError, listed
from purify_jax.data.images import central_square, image_files, read_image

#: (class, image file) of every image.
Files: TypeAlias = Sequence[tuple[str, Path]]

#: Folders that operating systems, network drives and Python make; names are compared in lower case.
_NO_CLASS = {
    "__macosx", "__pycache__", "@eadir", "@tmp", "#recycle", "$recycle.bin", "lost+found",
    "system volume information", "thumbs", "thumbs.db",
}  # fmt: skip
#: Where archives of well-known sets keep their splits.
_INSIDE = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "tiny-imagenet-200")
#: Tiny-ImageNet's labels of val/images/*.JPEG: file, class and a box, separated by tabs.
_ANNOTATIONS = "val_annotations.txt"


def is_hidden(name: str) -> bool:
    """Whether a folder is hidden, or one that an operating system makes: it is no class."""
    return name.startswith(".") or name.lower() in _NO_CLASS


def load(
    split: str, data_dir: Path, image_size: int | None, channels: int | None
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """(images ``[n, h, w, c]`` uint8, labels ``[n]`` int32, class names) of ``data_dir/split``.

    Classes are in alphabetical order. Images are in the order of the SHA-256 of "class/file name", so that a
    slice holds all classes, and a new file moves no other one. Without ``channels``, grey images become
    colour where any image is. An unreadable image is named, skipped and counted.

    Raises InputError for a layout that is not understood, an empty class, and images of different sizes.
    """
    root = data_dir / split
    files = _annotated(root) or _by_class(root)
    images, labels, skipped = [], [], 0
    names = {name: label for label, name in enumerate(sorted({name for name, _ in files}))}
    for name, path in sorted(files, key=_place):
        try:
            images.append(central_square(read_image(path, channels), image_size))
            labels.append(names[name])
        except InputError as error:
            logging.warning("%s (skipped)", error)
            skipped += 1
    if skipped:
        logging.warning("%s: %d of %d images skipped", root, skipped, len(files))
    held = set(labels)
    _check_none_empty(root, [name for name, label in names.items() if label not in held])
    return stacked(_one_colour(images), str(root)), np.array(labels, np.int32), tuple(names)


def _place(item: tuple[str, Path]) -> bytes:
    """Where an image comes; composed letters, as file systems differ in how they store accents."""
    name = unicodedata.normalize("NFC", f"{item[0]}/{item[1].name}")
    return hashlib.sha256(name.encode(errors="surrogateescape")).digest()


def _by_class(root: Path) -> Files:
    """The images of ``root/class/`` or, as in Tiny-ImageNet's train, of ``root/class/images/``."""
    inside = _folders(root)
    if hidden := [name for name in inside if is_hidden(name)]:
        logging.warning("%s: hidden and system folders left out: %s", root, listed(hidden))
    classes = [name for name in inside if not is_hidden(name)]
    if not classes or classes == ["images"]:
        raise InputError(_no_classes(root))
    found: dict[str, list[Path]] = {}
    for name in classes:
        folder = root / name
        deeper = [part for part in _folders(folder) if not is_hidden(part)]
        found[name] = image_files(folder)
        if not found[name] and deeper == ["images"]:
            found[name] = image_files(folder / "images")
        elif found[name] and deeper:
            logging.warning("%s: the folders inside it are not read: %s", folder, listed(deeper))
    _check_none_empty(root, [name for name, files in found.items() if not files])
    return [(name, path) for name, files in found.items() for path in files]


def _annotated(root: Path) -> Files:
    """Tiny-ImageNet's val: one folder of images, and a file that says their classes."""
    table = root / _ANNOTATIONS
    if not table.is_file():
        return []
    rows = [line.split("\t") for line in table.read_text().splitlines() if line.strip()]
    if not rows or any(len(row) < 2 for row in rows):
        raise InputError(f"data_dir: {table} is damaged, expected lines of file, tab, class")
    return [(row[1], root / "images" / row[0]) for row in rows]


def _folders(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []


def _no_classes(root: Path) -> str:
    """What is wrong with a split without class folders, and the remedy where the layout is known."""
    wanted = f"expected {root.parent}/<split>/<class>/*.png"
    if (root / "images").is_dir():
        return f"split: {root} has one folder 'images' and no labels, as Tiny-ImageNet's test, {wanted}"
    flat = image_files(root) if root.is_dir() else []
    if flat and flat[0].name.startswith("ILSVRC2012_"):
        return (
            f"split: {root} holds ImageNet's images without their classes, {wanted}: move each image into "
            "the folder of its WordNet number"
        )
    if flat:
        return f"split: {root} holds {len(flat)} images and no class folders, {wanted}"
    for place in _INSIDE:
        if (root.parent / place / root.name).is_dir():
            return (
                f"data_dir: got {root.parent}, expected the folder inside it, {root.parent / place}"
            )
    there = [name for name in _folders(root.parent) if not is_hidden(name)]
    return f"split: {root} has no class folders, {wanted} (data_dir holds {listed(there) or 'no folder'})"


def _check_none_empty(root: Path, empty: Sequence[str]) -> None:
    if empty:
        raise InputError(
            f"data_dir: no readable images in {root} of {listed(empty)}, expected at least one of each class; "
            "delete a folder that is no class"
        )


def _one_colour(images: list[np.ndarray]) -> list[np.ndarray]:
    """Grey images ``[h, w, 1]`` as colour if any of them is."""
    channels = max(image.shape[-1] for image in images)
    return [np.repeat(i, channels, -1) if i.shape[-1] < channels else i for i in images]


def stacked(images: Sequence[np.ndarray], where: str) -> np.ndarray:
    """Images of one shape as an array ``[n, h, w, c]``; InputError that lists their shapes."""
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        shown = sorted(shapes)
        few = f"{shown[:3]} and {len(shown) - 3} more" if len(shown) > 3 else str(shown)
        raise InputError(
            f"images: those of {where} have shapes {few}, expected one (image_size makes them equal)"
        )
    return np.stack(images)
