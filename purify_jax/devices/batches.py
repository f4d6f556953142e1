"""The one loop over images: padded batches, a key for each image, split over the devices.

Evaluation, certification, detection, corruptions, sweeps and purification all go through here, so
that none of them depends on the batch size, the padding or the number of devices, and each
compiles once.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from purify_jax.checks import InputError, check_count
from purify_jax.devices import memory, progress, sharding
from purify_jax.devices.execution import Execution
from purify_jax.keys import image_keys
from purify_jax.types import Array

Unit = TypeVar("Unit")


def completed(execution: Execution, batch_size: int) -> Execution:
    """The execution with this batch size and all devices, where it leaves them open."""
    return dataclasses.replace(
        execution,
        batch_size=execution.batch_size or batch_size,
        mesh=execution.mesh or sharding.default_mesh(),
    )


def padded_size(batch_size: int, count: int, mesh: Mesh | None) -> int:
    """The batch size that is used for ``count`` images: no larger than them, even on the devices.

    Raises InputError for a batch size below 1, or no images at all.
    """
    if count < 1:
        raise InputError("images: got none, expected at least one")
    check_count("batch_size", batch_size)
    return sharding.round_up(min(batch_size, count), mesh)


def batches(
    indices: Sequence[int] | np.ndarray, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(indices of a batch, the same filled up to ``size`` by repetition), one batch after the other."""
    indices = np.asarray(indices, np.int64)
    for start in range(0, len(indices), size):
        chosen = indices[start : start + size]
        yield chosen, np.resize(chosen, size)


def of_shard(units: Sequence[Unit], shard: tuple[int, int], described: str) -> list[Unit]:
    """Units i, i + n, i + 2n, ... of shard (i, n): the share of one of n processes.

    Raises InputError for a shard that would have none; ``described`` says in its line what they are.
    """
    index, shards = shard
    check_count("shards", shards)
    check_count("shard", index, 0)
    count = len(units)
    if index >= shards or shards > count:
        raise InputError(
            f"shard: got {index}/{shards}, expected one of 0/{count} to {count - 1}/{count} at most: {described}"
        )
    return list(units[index::shards])


def map_images(
    function: Callable,
    key: Array,
    *arrays: np.ndarray,
    execution: Execution = Execution(),
    first: int = 0,
    batch_axis: int = 0,
    task: str = "images",
) -> Any:
    """``function(keys, *arrays)`` of all images, in batches; the results as numpy arrays.

    Args:
      function: (keys ``[batch]``, a batch of each array) → arrays with a batch axis; treats every
        image by itself.
      key: image i's key is ``key`` folded with ``first + i``.
      arrays: numpy arrays whose first axis are the images.
      execution: how it is executed; 128 images side by side by default.
      first: the global index of the first image.
      batch_axis: the results' batch axis.
      task: the name on the progress bar.

    Raises InputError for no images, and arrays of different lengths.
    """
    execution = completed(execution, 128)
    count = len(arrays[0])
    if any(len(array) != count for array in arrays):
        raise InputError(
            f"arrays: got {[len(array) for array in arrays]} rows, expected as many in each"
        )
    size = padded_size(execution.batch_size or 128, count, execution.mesh)
    run = memory.divided(function, execution.mesh, batch_axis, execution.shard_parameters)
    found = []
    with progress.bar(total=count, desc=task, unit="image", disable=not execution.progress) as bar:
        for chosen, padded in batches(np.arange(count), size):
            result = run(image_keys(key, first + padded), *(array[padded] for array in arrays))
            kept = np.arange(len(chosen))
            take = lambda x, kept=kept: np.take(np.asarray(x), kept, axis=batch_axis)
            found.append(jax.tree.map(take, result))
            bar.update(len(chosen))
    return jax.tree.map(lambda *parts: np.concatenate(parts, batch_axis), *found)
