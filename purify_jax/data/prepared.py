"""Data sets that tensorflow-datasets has prepared in a folder: read without TensorFlow, or refused in one line."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from purify_jax.checks import InputError, listed
from purify_jax.data.folders import is_hidden, stacked
from purify_jax.data.images import central_square, decoded, to_bytes

#: Records that are read at once.
_AT_ONCE = 1000


class LazyImages:
    """Images of a prepared data set that are read when they are asked for, ``[n, h, w, c]``."""

    def __init__(
        self,
        source: Any,
        shape: tuple[int, ...],
        indices: range | None = None,
        image_size: int | None = None,
        field: str = "image",
    ):
        self._source, self._image_size, self._field = source, image_size, field
        self._indices = range(len(source)) if indices is None else indices
        self.shape = (len(self._indices), *shape)
        self.dtype = np.dtype(np.uint8)

    def part(self, chosen: slice) -> "LazyImages":
        """Some of the images, still unread."""
        rest = (self._image_size, self._field)
        return LazyImages(self._source, self.shape[1:], self._indices[chosen], *rest)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, chosen: np.ndarray | slice) -> np.ndarray:
        """The images of an array of indices, or of a slice; InputError for a damaged record."""
        indices = np.arange(self._indices.start, self._indices.stop)[chosen]
        records = _records(self._source, indices.tolist())
        chosen_images = (record[self._field] for record in records)
        return np.stack([_image(i, self._image_size, self.shape[-1]) for i in chosen_images])


def load(
    name: str, split: str, data_dir: Path, lazy: bool, image_size: int | None
) -> tuple[Any, np.ndarray, tuple[str, ...], int]:
    """(images, labels ``[n]`` int32, class names, number of classes) of a split.

    Images and labels are the features that the set is supervised by, or those called "image" and "label", or the
    only ones of their kind. 16 bits become 8.

    Raises InputError for what is not prepared, for records that are missing, damaged or in a format without
    random access, and for features that are not images with one class each.
    """
    import tensorflow_datasets as tfds

    _check_prepared(name, data_dir)
    with _in_one_line(name, data_dir):
        builder = tfds.builder(name, data_dir=data_dir)
        known = sorted(builder.info.splits)
        if split not in known:
            raise InputError(f"split: got {split!r}, expected one of {known} for {name}")
        features = builder.info.features
        keys = builder.info.supervised_keys or (None, None)
        image = _field(name, features, keys[0], "image", tfds.features.Image)
        label = _field(name, features, keys[-1], "label", tfds.features.ClassLabel)
        missing = [p.name for p in builder.info.splits[split].filepaths if not p.exists()]
        if missing:
            raise InputError(
                f"dataset: {name!r} in {data_dir} lacks {listed(missing)}, expected all its files: "
                f"{_remedy(name)}"
            )
        # tfds needs OpenCV for 16 bits: these are left as they are stored, and decoded here.
        skip = {image: tfds.decode.SkipDecoding()}
        plain = features[image].np_dtype in (np.uint8, np.float32)
        source = builder.as_data_source(split=split, decoders=None if plain else skip)
        names = getattr(features[label], "names", None) or ()
        images: object
        if lazy:
            images = LazyImages(
                source, _shape(name, features[image].shape, image_size), None, image_size, image
            )
            # Labels are small: all of them, without decoding an image.
            undecoded = builder.as_data_source(split=split, decoders=skip)
            every = [record[label] for record in _all(undecoded)]
        else:
            channels = features[image].shape[-1]
            pairs = [(_image(r[image], image_size, channels), r[label]) for r in _all(source)]
            images = stacked([pixels for pixels, _ in pairs], name)
            every = [one for _, one in pairs]
        labels = np.array(every, np.int32)
    count = getattr(features[label], "num_classes", None) or int(labels.max()) + 1
    return images, labels, tuple(names), count


def _check_prepared(name: str, data_dir: Path) -> None:
    """Raises InputError unless the folder of name[/config] is there, and that of :version."""
    base, _, version = name.partition(":")
    if not (data_dir / base).is_dir():
        prepared = sorted(p.name for p in data_dir.iterdir() if p.is_dir())
        there = [folder for folder in prepared if not is_hidden(folder)]
        raise InputError(
            f"dataset: {name!r} is not prepared in data_dir {data_dir} (it holds: "
            f"{listed(there) or 'nothing'}), expected digits, folder, or a set prepared with "
            "tensorflow_datasets.data_source(name, data_dir=...)"
        )
    if version and "*" not in version and not (data_dir / base / version).is_dir():
        versions = sorted(p.name for p in (data_dir / base).iterdir() if p.is_dir())
        raise InputError(
            f"dataset: got version {version} of {base!r}, expected one that is prepared in {data_dir}: "
            f"{listed(versions) or 'none is'}"
        )


def _remedy(name: str) -> str:
    return f"tensorflow_datasets.data_source({name.partition(':')[0]!r}, data_dir=...) in an empty folder"


@contextlib.contextmanager
def _in_one_line(name: str, data_dir: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # tfds raises many kinds of error; all mean: not readable
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        if isinstance(error, NotImplementedError):
            reason = "its files are in a format without random access, as tfrecord"
        raise InputError(
            f"dataset: {name!r} in {data_dir} cannot be read: {reason}; it is prepared anew by {_remedy(name)}"
        ) from error


def _field(name: str, features: object, given: object, called: str, kind: type) -> str:
    """The feature that holds the images or the labels."""
    known = dict(features.items()) if hasattr(features, "items") else {}
    fit = [n for n, feature in known.items() if isinstance(feature, kind)]
    whole = lambda feature: feature.shape == () and np.issubdtype(feature.np_dtype, np.integer)
    if called == "label" and "label" in known and "label" not in fit and whole(known["label"]):
        return "label"
    for choice in (given, called):
        if isinstance(choice, str) and choice in fit:
            return choice
    if len(fit) == 1:
        logging.warning("dataset: %s has no %r: its %r is read as such", name, called, fit[0])
        return fit[0]
    raise InputError(
        f"dataset: {name!r} has the features {listed(sorted(known))}, expected one {kind.__name__}, or one that is "
        f"called {called!r}"
    )


def _all(source: Any) -> Iterator[Any]:
    for start in range(0, len(source), _AT_ONCE):
        yield from _records(source, range(start, min(start + _AT_ONCE, len(source))))


def _records(source: Any, indices: Sequence[int]) -> Sequence[Any]:
    """The records of some indices; InputError that names the first damaged one."""
    try:
        return source.__getitems__(indices)
    except Exception:  # each decoder has its own; read one by one to name the record
        for index in indices:
            try:
                source.__getitems__([index])
            except Exception as error:
                reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
                raise InputError(
                    f"dataset: record {index} of {len(source)} is damaged ({reason}), expected all as prepared: copy "
                    "the data set again, or prepare it by tensorflow_datasets.data_source(name, data_dir=...)"
                ) from error
        raise


def _image(pixels: np.ndarray | bytes, image_size: int | None, channels: int) -> np.ndarray:
    """An image, decoded or as it is stored; floats stay as they are unless they are resized."""
    if isinstance(pixels, bytes):
        pixels = decoded(io.BytesIO(pixels), channels)
    return central_square(pixels if image_size is None else to_bytes(pixels), image_size)


def _shape(name: str, shape: tuple[Any, ...], image_size: int | None) -> tuple[int, ...]:
    if image_size is not None:
        shape = (image_size, image_size, shape[-1])
    if None in shape:
        raise InputError(
            f"dataset: images of {name!r} are {shape}, expected one size for all (image_size)"
        )
    return shape
