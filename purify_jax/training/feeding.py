"""Which images each dispatch of a training sees, and how they get to the devices."""

import json
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from purify_jax.atomic import write_atomically
from purify_jax.checks import InputError
from purify_jax.data import Batches, Dataset, batch_indices
from purify_jax.devices import progress, sharding
from purify_jax.training.settings import RunSettings
from purify_jax.types import Array


class Dispatch(NamedTuple):
    """What ``training.scan_steps`` wants for one dispatch.

    state: where the caller's iterator is after it; None for a data set. It travels with the batches, because
      the thread that reads ahead is already further.
    """

    images: Array | np.ndarray
    labels: Array | np.ndarray
    indices: np.ndarray
    state: str | None = None


_Feed = Generator[Dispatch, None, None]

#: Images that take more than this are streamed instead of kept on the device.
RESIDENT_BYTES = 2 * 2**30
#: Dispatches that are read ahead.
AHEAD = 2


def dispatches(
    size: int, start: int, stop: int, *, batch_size: int, seed: int, at_once: int
) -> Iterator[np.ndarray]:
    """Indices ``[K, batch]`` of the steps start..stop, K = ``at_once`` but at the ends.

    Dispatches end at multiples of ``at_once``, wherever a run starts, so that a run that was
    interrupted has the same ones as one that was not.
    """
    for steps in _parts(start, stop, at_once):
        yield np.stack([batch_indices(seed, k, batch_size, size) for k in steps])


def _parts(start: int, stop: int, at_once: int) -> Iterator[range]:
    while start < stop:
        count = min(at_once - start % at_once, stop - start)
        yield range(start, start + count)
        start += count


def plan(data: Dataset | Batches, settings: RunSettings, start: int) -> Iterator[np.ndarray]:
    """:func:`dispatches` of a data set; for :class:`Batches`, zeros of the same shapes."""
    stop, at_once, size = settings.num_steps, settings.steps_per_dispatch, settings.batch_size
    if not isinstance(data, Batches):
        seed = settings.seed
        return dispatches(len(data), start, stop, batch_size=size, seed=seed, at_once=at_once)
    if data.batch_size != size:
        raise InputError(
            f"batches: the first has {data.batch_size} images, expected batch_size = {size}"
        )
    return (np.zeros((len(k), size), np.int32) for k in _parts(start, stop, at_once))


#: Beside the checkpoints: where the caller's iterator was at each of the last few saves.
_PLACES, _KEPT = "iterator.json", 8


def begin(data: Dataset | Batches, workdir: str | Path | None, step: int, quiet: bool) -> None:
    """Sets batches that come by themselves to where a run continues; a data set needs nothing."""
    if isinstance(data, Batches):
        state = None if workdir is None else _places(Path(workdir)).get(str(step))
        wrap = lambda steps: progress.bar(steps, desc="batches passed over", disable=quiet)
        data.begin(step, state, wrap)


def remember(workdir: str | Path | None, step: int, state: str | None) -> None:
    """Writes the state of the caller's iterator, if it has one, before the checkpoint of ``step`` is saved."""
    if state is None or workdir is None or jax.process_index() > 0:
        return
    known = {**_places(Path(workdir)), str(step): state}
    last = dict(sorted(known.items(), key=lambda item: int(item[0]))[-_KEPT:])
    write_atomically(Path(workdir) / _PLACES, json.dumps(last))


def _places(workdir: Path) -> dict[str, str]:
    path = workdir / _PLACES
    try:
        return dict(json.loads(path.read_text())) if path.is_file() else {}
    except (ValueError, TypeError) as error:
        raise InputError(
            f"workdir: {path} is damaged ({error}), expected it as written; without it, the batches before "
            "are read and passed over"
        ) from error


def feed(
    dataset: Dataset | Batches, plan: Iterable[np.ndarray], mesh: Mesh | None, stream: bool | None
) -> _Feed:
    """The dispatches of a plan; those of streamed data are read ahead by a thread."""
    if isinstance(dataset, Batches):
        return _ahead(lambda indices: _taken(dataset, indices, mesh), plan)
    if stream is None:
        plain = type(dataset.images) is np.ndarray
        stream = not plain or dataset.images.nbytes > RESIDENT_BYTES
    return _streamed(dataset, plan, mesh) if stream else _resident(dataset, plan, mesh)


def _resident(dataset: Dataset, plan: Iterable[np.ndarray], mesh: Mesh | None) -> _Feed:
    data = (dataset.images, dataset.labels)
    images, labels = sharding.place(mesh, data) if mesh else map(jnp.asarray, data)
    for indices in plan:
        yield Dispatch(images, labels, indices)


def _streamed(dataset: Dataset, plan: Iterable[np.ndarray], mesh: Mesh | None) -> _Feed:
    def send(indices: np.ndarray) -> Dispatch:
        def read(source: np.ndarray, part: slice) -> np.ndarray:
            chosen = indices[:, part]
            found = np.asarray(source[chosen.ravel()])
            return found.reshape(*chosen.shape, *found.shape[1:])

        images = sharding.own_batches(
            mesh, (*indices.shape, *dataset.image_shape), lambda part: read(dataset.images, part)
        )
        labels = sharding.own_batches(mesh, indices.shape, lambda part: read(dataset.labels, part))
        return Dispatch(images, labels, indices)

    return _ahead(send, plan)


def _taken(batches: Batches, indices: np.ndarray, mesh: Mesh | None) -> Dispatch:
    images, labels, state = batches.take(len(indices))
    spread = lambda found: sharding.own_batches(mesh, found.shape, lambda part: found[:, part])
    return Dispatch(spread(images), spread(labels), indices, state)


def _ahead(send: Callable, plan: Iterable[np.ndarray]) -> _Feed:
    """One thread reads and sends while the device works on what came before."""
    with ThreadPoolExecutor(1, "feeding") as reader:
        waiting: deque = deque()
        for indices in plan:
            waiting.append(reader.submit(send, indices))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
