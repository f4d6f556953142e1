"""Labelled images: in memory, or left on disk until they are asked for."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from purify_jax.checks import InputError, check_count, check_labels, listed, shown
from purify_jax.data import built_in, folders, prepared
from purify_jax.data.built_in import BUILT_IN
from purify_jax.data.images import to_float
from purify_jax.data.prepared import LazyImages


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Labelled images in memory.

    images: ``[n, h, w, c]`` uint8 in 0-255, or float32 in [0, 1].
    labels: ``[n]`` int32 in ``[0, num_classes)``.
    class_names: what the classes are called; empty where they have numbers only.
    """

    name: str
    split: str
    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_count("num_classes", self.num_classes)
        if self.class_names and len(self.class_names) != self.num_classes:
            raise InputError(
                f"class_names of {self.name}: got {len(self.class_names)}, expected one for each of the "
                f"{self.num_classes} classes"
            )
        check_labels(self.labels, self.num_classes, f"labels of {self.name}")
        if len(self.images) != len(self.labels):
            raise InputError(
                f"labels of {self.name}: got {len(self.labels)}, expected one for each of the "
                f"{len(self.images)} images"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(height, width, channels)``."""
        return self.images.shape[1:]

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Float32 images in [0, 1] and labels of the given indices."""
        return to_float(self.images[indices]), self.labels[indices]

    def take(self, count: int) -> "Dataset":
        """The first ``count`` images; InputError if there are not as many."""
        check_count("images", count)
        if count > len(self):
            raise InputError(
                f"images: got {count}, expected 1 to {len(self)} ({self.name} {self.split})"
            )
        return self.part(slice(0, count), f"the first {count}")

    def part(self, chosen: slice, called: str) -> "Dataset":
        """Some of the images; a line says which classes they lack, where the data lie in folders or by class."""
        kept: Any = self.images
        kept = kept.part(chosen) if isinstance(kept, LazyImages) else kept[chosen]
        found = dataclasses.replace(self, images=kept, labels=self.labels[chosen])
        lacking = np.setdiff1d(self.labels, found.labels)
        if len(lacking) and (self.name == "folder" or (np.diff(self.labels) >= 0).all()):
            names = self.class_names or [str(i) for i in range(self.num_classes)]
            logging.warning(
                "%s %s: no images of %s in %s", self.name, self.split,
                listed([names[i] for i in lacking]), called,
            )  # fmt: skip
        return found


#: A data set of tensorflow-datasets: name, name/config, with or without :version.
_NAME = re.compile(r"\w+(/\w[\w.\-]*)?(:\w[\w.*]*)?", re.ASCII)


def load_split(
    name: str,
    split: str,
    data_dir: str | Path | None = None,
    *,
    lazy: bool = False,
    image_size: int | None = None,
    channels: int | None = None,
) -> Dataset:
    """Loads a split of a data set into memory.

    Args:
      name: "digits" (built in, scikit-learn's 8×8 handwritten digits; splits train of 1437 and
        test of 360 images), "cifar10_photos" (built in, 64 of CIFAR-10's test images, in the order: the
        first of every class, the second of every class, ...; split test), "folder" (``data_dir/<split>/<class>/*``,
        every format that Pillow reads, and Tiny-ImageNet's layout), or the name of any tensorflow-datasets
        image-classification set that is prepared in ``data_dir`` ("mnist", "fashion_mnist", "cifar10",
        "cifar100", ..., with or without /config and :version).
      split: "train", "test", or a slice such as "train[:80%]", "test[100:200]" or "test[-100:]", read
        as tensorflow-datasets reads it, for every data set.
      data_dir: folder of prepared data sets; not needed for what is built in.
      lazy: leave the images of a tensorflow-datasets set on disk (:class:`LazyImages`); training
        streams them. The others are loaded.
      image_size: resize every image so that its shorter side has so many pixels, and cut out the square
        in the centre (:func:`central_square`); the images may then differ in size. None leaves them as they are.
      channels: of a folder's images, 1 or 3. None: 3 if any image is in colour, else 1.

    The classes of a folder are in alphabetical order. Its images are in the order of the SHA-256 of
    "class/file name", whatever the order on the disk, so that a slice is a sample of all classes. A line says
    which classes a slice lacks.

    Raises InputError for an unknown data set or split, a missing or empty ``data_dir``, and a class without
    images.
    """
    if not isinstance(name, str) or len(name) > 100 or not _NAME.fullmatch(name):
        raise InputError(
            f"dataset: got {shown(name)}, expected digits, folder or a name such as mnist"
        )
    match = re.fullmatch(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", split)
    if not match:
        raise InputError(f"split: got {split!r}, expected a name or a slice such as train[:80%]")
    if image_size is not None:
        check_count("image_size", image_size)
        if name in BUILT_IN:
            raise InputError(f"image_size: the images of {name} have one size, expected no other")
    if name in BUILT_IN:
        images, labels, class_names = built_in.load(name, match[1])
        whole = Dataset(name, match[1], images, labels, len(class_names), class_names)
    elif name == "folder":
        images, labels, class_names = folders.load(
            match[1], _checked_dir(name, data_dir), image_size, channels
        )
        whole = Dataset(name, match[1], images, labels, len(class_names), class_names)
    else:
        whole = _load_tfds(name, match[1], _checked_dir(name, data_dir), lazy, image_size)
    start, stop = _position(match[2], 0, len(whole)), _position(match[3], len(whole), len(whole))
    if start >= stop:
        raise InputError(f"split: {split!r} of {name} has no images, expected at least one")
    return dataclasses.replace(whole.part(slice(start, stop), split), split=split)


def _position(text: str | None, default: int, size: int) -> int:
    """Where a slice begins or ends, as tensorflow-datasets has it: percentages are rounded to the
    closest image, negative positions count from the end, and none lies outside the split."""
    if not text:
        return default
    position = round(size * int(text[:-1]) / 100) if text.endswith("%") else int(text)
    return min(max(position + size, 0) if position < 0 else position, size)


def _checked_dir(name: str, data_dir: str | Path | None) -> Path:
    if data_dir is None:
        raise InputError(f"data_dir: not given, expected a folder that holds {name}")
    path = Path(data_dir)
    if not path.is_dir():
        raise InputError(f"data_dir: {path} is not a folder, expected one that holds {name}")
    if not any(path.iterdir()):
        raise InputError(f"data_dir: {path} is empty, expected a folder that holds {name}")
    return path


def _load_tfds(
    name: str, split: str, data_dir: Path, lazy: bool, image_size: int | None
) -> Dataset:
    images, labels, class_names, count = prepared.load(name, split, data_dir, lazy, image_size)
    return Dataset(name, split, images, labels, count, class_names)
