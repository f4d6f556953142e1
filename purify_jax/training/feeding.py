"""Which images each dispatch of a training sees, and how they get to the devices."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from purify_jax.data import Dataset, batch_indices
from purify_jax.devices import sharding
from purify_jax.types import Array

_Feed = Generator[tuple[Any, Any, np.ndarray], None, None]

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
    while start < stop:
        count = min(at_once - start % at_once, stop - start)
        steps = range(start, start + count)
        yield np.stack([batch_indices(seed, k, batch_size, size) for k in steps])
        start += count


def feed(
    dataset: Dataset, plan: Iterable[np.ndarray], mesh: Mesh | None, stream: bool | None
) -> _Feed:
    """What ``training.scan_steps`` wants for each dispatch of the plan: (images, labels, indices)."""
    if stream is None:
        plain = type(dataset.images) is np.ndarray
        stream = not plain or dataset.images.nbytes > RESIDENT_BYTES
    return _streamed(dataset, plan, mesh) if stream else _resident(dataset, plan, mesh)


def _resident(dataset: Dataset, plan: Iterable[np.ndarray], mesh: Mesh | None) -> _Feed:
    data = (dataset.images, dataset.labels)
    images, labels = sharding.replicate(mesh, data) if mesh else map(jnp.asarray, data)
    for indices in plan:
        yield images, labels, indices


def _streamed(dataset: Dataset, plan: Iterable[np.ndarray], mesh: Mesh | None) -> _Feed:
    def send(indices: np.ndarray) -> tuple[Array, Array, np.ndarray]:
        def read(source: Any, part: slice) -> np.ndarray:
            chosen = indices[:, part]
            found = np.asarray(source[chosen.ravel()])
            return found.reshape(*chosen.shape, *found.shape[1:])

        images = sharding.own_batches(
            mesh, (*indices.shape, *dataset.image_shape), lambda part: read(dataset.images, part)
        )
        labels = sharding.own_batches(mesh, indices.shape, lambda part: read(dataset.labels, part))
        return images, labels, indices

    # One thread reads and sends while the device works on what came before.
    with ThreadPoolExecutor(1, "feeding") as reader:
        waiting: deque = deque()
        for indices in plan:
            waiting.append(reader.submit(send, indices))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
