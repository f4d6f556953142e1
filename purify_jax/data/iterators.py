"""Batches from an iterator (grain, PyTorch, a generator): checked, and continued after a stop."""

import base64
import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from purify_jax.checks import InputError, check_images, check_labels, shown
from purify_jax.data.datasets import Dataset
from purify_jax.data.images import to_float

#: An iterable of batches, or a function of the step at which training begins that makes one.
Source = Iterable[object] | Callable[[int], Iterable[object]]


class Batches:
    """Training data that come as batches, in the order in which an iterator yields them.

    A batch is ``{"image": ..., "label": ...}`` or ``(images, labels)``: images uint8 or floats in [0, 1],
    ``[batch, h, w, c]``, labels integers ``[batch]``; without ``labeled``, a batch may also be images alone.
    Every batch is checked when it is used. A source that can be iterated over again (a grain or PyTorch
    DataLoader, a list) starts anew when it ends; an iterator that ends too soon is an error.

    A training that continues at step k sees what it would have seen: an iterator with ``get_state`` and
    ``set_state`` (grain's) is set to where it was; a function gets k and makes an iterator from there; any other
    source is read from its beginning, and the first k batches are passed over.
    """

    _num_classes: int | None = None

    def __init__(self, source: Source, labeled: bool = True):
        self._source, self._labeled = source, labeled
        self._read = 0
        self._iterator = iter(self._made(0))
        self._unused: list[tuple[np.ndarray, np.ndarray]] = [self._next()]
        self.images, self.labels = self._unused[0]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(height, width, channels)``, of the first batch."""
        return self.images.shape[1:]

    @property
    def batch_size(self) -> int:
        """Images in a batch."""
        return len(self.images)

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images as float32 in [0, 1] and labels of some places of the first batch."""
        return to_float(self.images[indices]), self.labels[indices]

    def check_classes(self, num_classes: int) -> None:
        """From now on InputError for a label that is no class; of the first batch at once."""
        self._num_classes = num_classes
        check_labels(self.labels, num_classes, "batches: labels of batch 0")

    def begin(self, step: int, state: str | None, passing: Callable[[range], Iterable]) -> None:
        """Goes to where the batch of ``step`` is next; ``passing`` wraps the steps that are passed over."""
        self._read = step
        if step == 0:
            return
        self._unused = []
        if state is not None and hasattr(self._iterator, "set_state"):
            try:
                self._iterator.set_state(_from_text(state))
            except Exception as error:  # each library's iterator raises its own
                raise InputError(
                    f"batches: the iterator does not take back where it was at step {step} "
                    f"({type(error).__name__}: {' '.join(str(error).split())[:400]}), expected the same "
                    "source as before; without iterator.json, the batches before are passed over"
                ) from error
        elif _is_function(self._source):
            self._iterator = iter(self._made(step))
        else:
            self._read, self._unused = 1, []
            for _ in passing(range(step - 1)):
                self._raw()
                self._read += 1

    def take(self, count: int) -> tuple[np.ndarray, np.ndarray, str | None]:
        """The next batches, images ``[count, batch, h, w, c]`` and labels ``[count, batch]``, and the state after.

        The state is where the iterator is now, for :meth:`begin`; None if it has no ``get_state``.
        """
        taken = []
        for _ in range(count):
            taken.append(self._unused.pop() if self._unused else self._next())
            self._read += 1
        state = None
        if hasattr(self._iterator, "get_state"):
            state = _as_text(self._iterator.get_state())
        images, labels = zip(*taken, strict=True)
        return np.stack(images), np.stack(labels), state

    def _made(self, step: int) -> Iterable[object]:
        made: object = self._source(step) if _is_function(self._source) else self._source  # type: ignore[operator]
        if not hasattr(made, "__iter__"):
            raise InputError(f"batches: got {shown(made)}, expected an iterable of batches")
        return made

    def _raw(self) -> object:
        found = next(self._iterator, _END)
        if found is _END and self._read:
            again: Iterator[object] = iter(self._made(self._read))
            if again is not self._iterator:
                self._iterator = again
                found = next(again, _END)
        if found is _END:
            raise InputError(
                f"batches: ended after {self._read}, expected one for every step (an iterator that repeats)"
            )
        return found

    def _next(self) -> tuple[np.ndarray, np.ndarray]:
        where = f"batch {self._read}"
        images, labels = _parts(self._raw(), self._labeled, where)
        first = self.images if hasattr(self, "images") else images
        _check_layout(images, where)
        if images.dtype != np.uint8:
            images = images.astype(np.float32)
            check_images(images, f"batches: images of {where}")
        if images.shape != first.shape or images.dtype != first.dtype:
            raise InputError(
                f"batches: images of {where} are {images.dtype} {images.shape}, expected the first batch's "
                f"{first.dtype} {first.shape} (leave out an epoch's rest: drop_remainder, drop_last)"
            )
        if len(labels) != len(images):
            raise InputError(
                f"batches: {where} has {len(labels)} labels for {len(images)} images, expected as many"
            )
        most = self._num_classes or np.iinfo(np.int32).max
        check_labels(labels, most, f"batches: labels of {where}")
        return images, labels.astype(np.int32)


_END = object()


def as_training_data(data: object, labeled: bool) -> Dataset | Batches:
    """A data set as it is, and anything that yields batches as :class:`Batches`.

    Raises InputError for anything else, and for what the first batch has wrong.
    """
    if isinstance(data, Dataset | Batches):
        return data
    if callable(data) or isinstance(data, Iterable):
        return Batches(data, labeled)
    raise InputError(
        f"dataset: got {shown(data)}, expected a Dataset, or batches (images, labels) from an iterator"
    )


def _is_function(source: object) -> bool:
    return callable(source) and not hasattr(source, "__iter__")


def _parts(batch: object, labeled: bool, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one batch; zeros for labels that are not needed."""
    images = labels = None
    if isinstance(batch, Mapping):
        images, labels = batch.get("image"), batch.get("label")
    elif isinstance(batch, tuple | list) and len(batch) == 2:
        images, labels = batch
    elif not labeled and hasattr(batch, "shape"):
        images = batch
    if images is None or (labeled and labels is None):
        named = (
            f"the names {sorted(map(str, batch))}" if isinstance(batch, Mapping) else _kind(batch)
        )
        raise InputError(
            f'batches: {where} is {named}, expected {{"image": ..., "label": ...}} or (images, labels)'
        )
    images = np.asarray(images)
    if not labeled:
        return images, np.zeros(images.shape[:1], np.int32)
    return images, np.asarray(labels)


def _kind(batch: object) -> str:
    sized = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
    return f"a {type(batch).__name__}{sized}"


def _check_layout(images: np.ndarray, where: str) -> None:
    wanted = "[batch, height, width, channels]"
    if images.ndim != 4 or not images.size:
        raise InputError(
            f"batches: images of {where} have the shape {images.shape}, expected {wanted}"
        )
    if images.shape[1] in (1, 3) and images.shape[-1] > 4:
        raise InputError(
            f"batches: images of {where} have the shape {images.shape}, expected {wanted}, channels last"
        )
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise InputError(
            f"batches: images of {where} are {images.dtype}, expected uint8 or floats in [0, 1]"
        )


def _as_text(state: object) -> str:
    if isinstance(state, bytes):
        return json.dumps({"bytes": base64.b64encode(state).decode()})
    return json.dumps({"value": state})


def _from_text(text: str) -> object:
    found = json.loads(text)
    return base64.b64decode(found["bytes"]) if "bytes" in found else copy.deepcopy(found["value"])
