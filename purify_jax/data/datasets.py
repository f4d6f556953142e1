"""Labelled images: in memory, or left on disk until they are asked for."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from purify_jax.checks import InputError, check_count, check_labels, shown
from purify_jax.data import built_in
from purify_jax.data.built_in import BUILT_IN
from purify_jax.data.images import central_square, image_files, read_image, to_float


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
        return dataclasses.replace(self, images=self.images[:count], labels=self.labels[:count])


class LazyImages:
    """Images of a prepared data set that are read when they are asked for, ``[n, h, w, c]``."""

    def __init__(
        self,
        source: Any,
        shape: tuple[int, ...],
        indices: range | None = None,
        image_size: int | None = None,
    ):
        self._source, self._image_size = source, image_size
        self._indices = range(len(source)) if indices is None else indices
        self.shape = (len(self._indices), *shape)
        self.dtype = np.dtype(np.uint8)

    def part(self, chosen: slice) -> "LazyImages":
        """Some of the images, still unread."""
        return LazyImages(self._source, self.shape[1:], self._indices[chosen], self._image_size)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, chosen: np.ndarray | slice) -> np.ndarray:
        """The images of an array of indices, or of a slice."""
        indices = np.arange(self._indices.start, self._indices.stop)[chosen]
        records = self._source.__getitems__(indices.tolist())
        return np.stack([central_square(r["image"], self._image_size) for r in records])


#: A data set of tensorflow-datasets: name, name/config, with or without :version.
_NAME = re.compile(r"\w+(/\w[\w.\-]*)?(:\w[\w.*]*)?", re.ASCII)


def load_split(
    name: str,
    split: str,
    data_dir: str | Path | None = None,
    *,
    lazy: bool = False,
    image_size: int | None = None,
) -> Dataset:
    """Loads a split of a data set into memory.

    Args:
      name: "digits" (built in, scikit-learn's 8×8 handwritten digits; splits train of 1437 and
        test of 360 images), "cifar10_photos" (built in, 64 of CIFAR-10's test images, in the order: the
        first of every class, the second of every class, ...; split test), "folder" (``data_dir/<split>/<class>/*.png|jpg``, classes in
        alphabetical order), or the name of any tensorflow-datasets image-classification set
        that is prepared in ``data_dir`` ("mnist", "fashion_mnist", "cifar10", "cifar100", ...).
      split: "train", "test", or a slice such as "train[:80%]", "test[100:200]" or "test[-100:]", read
        as tensorflow-datasets reads it, for every data set.
      data_dir: folder of prepared data sets; not needed for what is built in.
      lazy: leave the images of a tensorflow-datasets set on disk (:class:`LazyImages`); training
        streams them. The others are loaded.
      image_size: resize every image so that its shorter side has so many pixels, and cut out the square
        in the centre (:func:`central_square`); the images may then differ in size. None leaves them as they are.

    Raises InputError for an unknown data set or split, or a missing or empty ``data_dir``.
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
        whole = _load_folder(match[1], _checked_dir(name, data_dir), image_size)
    else:
        whole = _load_tfds(name, match[1], _checked_dir(name, data_dir), lazy, image_size)
    start, stop = _position(match[2], 0, len(whole)), _position(match[3], len(whole), len(whole))
    chosen = slice(start, stop)
    if start >= stop:
        raise InputError(f"split: {split!r} of {name} has no images, expected at least one")
    kept: Any = whole.images
    kept = kept.part(chosen) if isinstance(kept, LazyImages) else kept[chosen]
    return dataclasses.replace(whole, split=split, images=kept, labels=whole.labels[chosen])


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
        class_names = tuple(builder.info.features["label"].names)
        source = builder.as_data_source(split=split)
    except InputError:
        raise
    except Exception as error:  # tfds raises many kinds of error; all mean: not readable
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"dataset: {name!r} in {data_dir} cannot be read: {reason}") from error
    images: Any
    if lazy:
        images, labels = _lazy(name, split, builder, source, image_size)
    else:
        records = source.__getitems__(range(len(source)))
        images = _stacked([central_square(record["image"], image_size) for record in records], name)
        labels = [record["label"] for record in records]
    return Dataset(name, split, images, np.array(labels, np.int32), len(class_names), class_names)


def _stacked(images: list[np.ndarray], where: str) -> np.ndarray:
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        shown = sorted(shapes)
        few = f"{shown[:3]} and {len(shown) - 3} more" if len(shown) > 3 else str(shown)
        raise InputError(
            f"images: those of {where} have shapes {few}, expected one (image_size makes them equal)"
        )
    return np.stack(images)


def _load_folder(split: str, data_dir: Path, image_size: int | None) -> Dataset:
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
                images.append(central_square(read_image(path), image_size))
                labels.append(label)
            except InputError as error:
                logging.warning("%s (skipped)", error)
                skipped.append(path)
    if skipped:
        logging.warning("%s: %d unreadable images skipped", root, len(skipped))
    if not images:
        raise InputError(f"data_dir: no readable images in {root}, expected *.png or *.jpg")
    whole, names = _stacked(images, str(root)), tuple(classes)
    return Dataset("folder", split, whole, np.array(labels, np.int32), len(names), names)


def _lazy(
    name: str, split: str, builder: Any, source: Any, image_size: int | None
) -> tuple[LazyImages, list[int]]:
    import tensorflow_datasets as tfds

    shape = builder.info.features["image"].shape
    if image_size is not None:
        shape = (image_size, image_size, shape[-1])
    if None in shape:
        raise InputError(
            f"dataset: images of {name!r} are {shape}, expected one size for all (image_size)"
        )
    # Labels are small: all of them, without decoding an image.
    skip = {"image": tfds.decode.SkipDecoding()}
    undecoded = builder.as_data_source(split=split, decoders=skip)
    labels = [
        record["label"]
        for start in range(0, len(source), 1000)
        for record in undecoded.__getitems__(range(start, min(start + 1000, len(source))))
    ]
    return LazyImages(source, shape, image_size=image_size), labels
