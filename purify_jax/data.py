"""Data: images in memory, and batches that depend on the seed and the step alone."""

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from purify_jax.checks import InputError, check_count, check_labels, shown


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Labelled images in memory.

    images: ``[n, h, w, c]`` uint8 in 0-255, or float32 in [0, 1].
    labels: ``[n]`` int32 in ``[0, num_classes)``.
    """

    name: str
    split: str
    images: np.ndarray
    labels: np.ndarray
    num_classes: int

    def __post_init__(self) -> None:
        check_count("num_classes", self.num_classes)
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
        return dataclasses.replace(self, images=self.images[:count], labels=self.labels[:count])


def to_float(images: np.ndarray) -> np.ndarray:
    """uint8 in 0-255 → float32 in [0, 1]; floats as they are."""
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    return images.astype(np.float32)


class Records:
    """Images of a prepared data set that are read when they are asked for, ``[n, h, w, c]``."""

    def __init__(
        self, source: Any, shape: tuple[int, ...], start: int = 0, stop: int | None = None
    ):
        self._source, self._start = source, start
        self.shape = ((len(source) if stop is None else stop) - start, *shape)
        self.dtype = np.dtype(np.uint8)

    def part(self, start: int, stop: int) -> "Records":
        """The images start..stop, still unread."""
        return Records(self._source, self.shape[1:], self._start + start, self._start + stop)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, chosen: Any) -> np.ndarray:
        """The images of an array of indices, or of a slice."""
        indices = (self._start + np.arange(len(self))[chosen]).tolist()
        return np.stack([r["image"] for r in self._source.__getitems__(indices)])


#: A data set of tensorflow-datasets: name, name/config, with or without :version.
_NAME = re.compile(r"\w+(/\w[\w.\-]*)?(:\w[\w.*]*)?", re.ASCII)


def load_split(
    name: str, split: str, data_dir: str | Path | None = None, *, lazy: bool = False
) -> Dataset:
    """Loads a split of a data set into memory.

    Args:
      name: "digits" (built in, scikit-learn's 8×8 handwritten digits; splits train of 1437 and
        test of 360 images), "folder" (``data_dir/<split>/<class>/*.png|jpg``, classes in
        alphabetical order), or the name of any tensorflow-datasets image-classification set
        that is prepared in ``data_dir`` ("mnist", "fashion_mnist", "cifar10", "cifar100", ...).
      split: "train", "test", or a slice such as "train[:80%]", "test[100:200]" or "test[-100:]", read
        as tensorflow-datasets reads it, whatever the data set.
      data_dir: folder of prepared data sets; not needed for "digits".
      lazy: leave the images of a tensorflow-datasets set on disk (:class:`Records`); training
        streams them. The others are loaded.

    Raises InputError for an unknown data set or split, or a missing or empty ``data_dir``.
    """
    if not isinstance(name, str) or len(name) > 100 or not _NAME.fullmatch(name):
        raise InputError(
            f"dataset: got {shown(name)}, expected digits, folder or a name such as mnist"
        )
    match = re.fullmatch(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", split)
    if not match:
        raise InputError(f"split: got {split!r}, expected a name or a slice such as train[:80%]")
    if name == "digits":
        whole = _load_digits(match[1])
    elif name == "folder":
        whole = _load_folder(match[1], _checked_dir(name, data_dir))
    else:
        whole = _load_tfds(name, match[1], _checked_dir(name, data_dir), lazy)
    start, stop = _position(match[2], 0, len(whole)), _position(match[3], len(whole), len(whole))
    chosen = slice(start, max(start, stop))
    if start >= stop:
        raise InputError(f"split: {split!r} of {name} has no images, expected at least one")
    if lazy and isinstance(whole.images, Records):
        part: Any = whole.images.part(start, stop)
        return dataclasses.replace(whole, split=split, images=part, labels=whole.labels[chosen])
    return dataclasses.replace(
        whole, split=split, images=whole.images[chosen], labels=whole.labels[chosen]
    )


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


@functools.lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.RandomState(0).permutation(len(digits.target))
    images = (digits.images / 16).astype(np.float32)[..., None]
    return images[order], digits.target.astype(np.int32)[order]


def _load_digits(split: str) -> Dataset:
    parts = {"train": slice(0, 1437), "test": slice(1437, None)}
    if split not in parts:
        raise InputError(f"split: got {split!r}, expected one of {sorted(parts)} for digits")
    images, labels = _digits()
    return Dataset("digits", split, images[parts[split]], labels[parts[split]], 10)


def _load_tfds(name: str, split: str, data_dir: Path, lazy: bool) -> Dataset:
    import tensorflow_datasets as tfds

    if not (data_dir / name).is_dir():
        prepared = sorted(p.name for p in data_dir.iterdir() if p.is_dir())
        raise InputError(
            f"dataset: {name!r} is not prepared in data_dir {data_dir} (it holds: "
            f"{', '.join(prepared) or 'nothing'}), expected digits, folder, or a set prepared with "
            "tensorflow_datasets.data_source(name, data_dir=...)"
        )
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        known = sorted(builder.info.splits)
        if split not in known:
            raise InputError(f"split: got {split!r}, expected one of {known} for {name}")
        num_classes = builder.info.features["label"].num_classes
        source = builder.as_data_source(split=split)
    except InputError:
        raise
    except Exception as error:  # tfds raises many kinds of error; all mean: not readable
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"dataset: {name!r} in {data_dir} cannot be read: {reason}") from error
    if lazy:
        return _lazy(name, split, builder, source, num_classes)
    records = source.__getitems__(range(len(source)))
    images = np.stack([record["image"] for record in records])
    labels = np.array([record["label"] for record in records], np.int32)
    return Dataset(name, split, images, labels, num_classes)


def _load_folder(split: str, data_dir: Path) -> Dataset:
    root = data_dir / split
    classes = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    if not classes:
        raise InputError(
            f"split: {root} has no class folders, expected {data_dir}/<split>/<class>/*.png"
        )
    images, labels, skipped = [], [], []
    for label, name in enumerate(classes):
        for path in image_files(root / name):
            try:
                images.append(read_image(path))
                labels.append(label)
            except InputError as error:
                logging.warning("%s (skipped)", error)
                skipped.append(path)
    if skipped:
        logging.warning("%s: %d unreadable images skipped", root, len(skipped))
    if not images:
        raise InputError(f"data_dir: no readable images in {root}, expected *.png or *.jpg")
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise InputError(f"data_dir: images in {root} have shapes {sorted(shapes)}, expected one")
    return Dataset("folder", split, np.stack(images), np.array(labels, np.int32), len(classes))


def image_files(folder: Path) -> list[Path]:
    """The PNG and JPEG files of a folder, sorted by name."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg"))


def read_image(path: Path, channels: int | None = None) -> np.ndarray:
    """An image file as uint8 ``[h, w, c]``; grey or RGB as the file is, or as ``channels`` says.

    Raises InputError if the file cannot be read as an image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode in ("I", "I;16") and channels != 3:
                # 16 bits; converting it would clip all above 255 to white.
                array = np.rint(np.asarray(image, np.float64) / 257).astype(np.uint8)
                return array[..., None]
            grey = image.mode in ("1", "L", "LA") if channels is None else channels == 1
            array = np.asarray(image.convert("L" if grey else "RGB"))
    except Exception as error:  # each format's reader has its own; also an image of absurd size
        raise InputError(f"image: {path} cannot be read: {' '.join(str(error).split())}") from error
    return array[..., None] if array.ndim == 2 else array


def _lazy(name: str, split: str, builder: Any, source: Any, num_classes: int) -> Dataset:
    import tensorflow_datasets as tfds

    shape = builder.info.features["image"].shape
    if None in shape:
        raise InputError(f"dataset: images of {name!r} are {shape}, expected one size for all")
    # Labels are small: all of them, without decoding an image.
    skip = {"image": tfds.decode.SkipDecoding()}
    undecoded = builder.as_data_source(split=split, decoders=skip)
    labels = [
        record["label"]
        for start in range(0, len(source), 1000)
        for record in undecoded.__getitems__(range(start, min(start + 1000, len(source))))
    ]
    records: Any = Records(source, shape)
    return Dataset(name, split, records, np.array(labels, np.int32), num_classes)


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(size)


def batch_indices(seed: int, step: int, batch_size: int, size: int) -> np.ndarray:
    """The indices ``[batch_size]`` of the batch at ``step``: a function of its arguments alone.

    Every epoch is a fresh permutation of ``size`` images; a batch may straddle two epochs.
    """
    position = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = position // size
    rows = [_permutation(seed, int(e), size) for e in np.unique(epochs)]
    return np.stack(rows)[epochs - epochs[0], position % size]
