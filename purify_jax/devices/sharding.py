"""Devices: one mesh with a data axis, images split over it, parameters on every device.

Evaluation, attacks, certification and purification work on
each image by itself, so they run under ``shard_map`` without any communication; a training step is
partitioned by XLA, which adds up the gradients.
"""

import atexit
import functools
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from chex import ArrayTree
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from purify_jax.checks import InputError, check_count
from purify_jax.pytrees import Jitted, as_pytree, call, jit
from purify_jax.types import Array

AXIS = "data"
Tree = TypeVar("Tree")
#: Seconds after which JAX ends the processes of a run, one of which sends no heartbeat. A killed process 0,
#: which counts them, is noticed within a second, another one after 8.6 s where this is 10. JAX's default is 100.
HEARTBEAT = 30


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices of all hosts (or those given) with one axis, "data"."""
    chosen = jax.devices() if devices is None else list(devices)
    if not chosen:
        raise InputError("devices: got none, expected at least one")
    return Mesh(np.asarray(chosen), (AXIS,))


def default_mesh() -> Mesh | None:
    """:func:`data_mesh` where there are several devices, None where there is one."""
    return data_mesh() if jax.device_count() > 1 else None


def initialize(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the processes of several hosts; call it before anything else of JAX.

    ``coordinator`` is ``host:port`` of process 0. On a TPU pod or a cluster that JAX knows, all
    three may be None. Raises InputError for one without the others, and where no cluster is found.

    When a process dies, JAX ends all others after :data:`HEARTBEAT` seconds, with a message ("another task
    died") and a trace, by SIGABRT. Start all again with the same flags to continue from the last checkpoint.
    """
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if any(given) and not all(given):
        raise InputError(
            "coordinator, num_processes, process_id: got some of them, expected all three or none"
        )
    for name, value, least in (("num_processes", num_processes, 1), ("process_id", process_id, 0)):
        if value is not None:
            check_count(name, value, least)
    if coordinator is not None and not _is_address(coordinator):
        raise InputError(f"coordinator: got {coordinator!r}, expected host:port")
    if num_processes is not None and not 0 <= (process_id or 0) < num_processes:
        raise InputError(f"process_id: got {process_id}, expected 0 to {num_processes - 1}")
    known = inspect.signature(jax.distributed.initialize).parameters
    # Older versions of JAX have no such argument, and wait for 100 s.
    patience: dict[str, Any] = {n: HEARTBEAT for n in ("heartbeat_timeout_seconds",) if n in known}
    if coordinator is None:
        try:
            jax.distributed.initialize(**patience)
        except ValueError as error:
            raise InputError(
                f"distributed: {error} Expected a cluster that JAX recognises, or coordinator, "
                "num_processes and process_id"
            ) from error
    else:
        jax.distributed.initialize(coordinator, num_processes, process_id, **patience)
    atexit.register(_end_at_once_after_an_error)


def _end_at_once_after_an_error() -> None:
    """JAX would wait for the others, minutes long, and they for this process."""
    if hasattr(sys, "last_value"):
        os._exit(1)


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isascii() and port.isdigit() and 0 < int(port) < 2**16


def check_one_writer(path: str | Path | None, mesh: Mesh | None) -> None:
    """Raises InputError if several processes were to write the same records.

    With a mesh of its own devices each process works for itself, and has a path of its own.
    """
    alone = jax.process_count() == 1 or (mesh is not None and is_own(mesh))
    if path is not None and not alone:
        raise InputError(
            f"path: got {path} with {jax.process_count()} processes, expected none (records are "
            "returned to each), or one process"
        )


def round_up(batch_size: int, mesh: Mesh | None) -> int:
    """The smallest multiple of the number of devices that is at least ``batch_size``."""
    count = 1 if mesh is None else mesh.size
    return -(-batch_size // count) * count


def large_arrays_split(mesh: Mesh, tree: ArrayTree, smallest: int = 2**16) -> ArrayTree:
    """Shardings for a tree: arrays of at least ``smallest`` numbers are split over the devices.

    Along the longest axis that the devices divide evenly; all others, and arrays without such an
    axis, are on every device. For parameters, averages and optimizer states too large for that.
    """

    def one(array: jax.Array) -> NamedSharding:
        even = [a for a, n in enumerate(array.shape) if n % mesh.size == 0]
        if np.prod(array.shape) < smallest or not even:
            return NamedSharding(mesh, P())
        chosen = max(even, key=lambda axis: array.shape[axis])
        return NamedSharding(mesh, P(*(None,) * chosen, AXIS))

    return jax.tree.map(one, tree)


def gather(mesh: Mesh | None, tree: Tree) -> Tree:
    """Arrays that were split, whole on every device."""
    if mesh is None:
        return tree
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))(tree)


def own_batches(mesh: Mesh | None, shape: tuple[int, ...], read: Callable) -> jax.Array:
    """An array ``[steps, batch, ...]`` split along its batches; each process reads its own share.

    ``read`` maps a slice of the batch to the numbers ``[steps, that part of the batch, ...]``.
    """
    if mesh is None:
        return jax.device_put(read(slice(None)))
    spread = NamedSharding(mesh, P(None, AXIS))
    return jax.make_array_from_callback(
        shape, spread, lambda index: read(index[1] if index else slice(None))
    )


def split(mesh: Mesh | None, tree: Tree) -> Tree:
    """Inside jit: asks that the arrays' first axis be split over the mesh."""
    if mesh is None:
        return tree
    spread = NamedSharding(mesh, P(AXIS))
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, spread), tree)


def place(mesh: Mesh | None, tree: Tree, split_large: bool = False) -> Tree:
    """A pytree's arrays on the devices: on all of them, or the large ones split.

    Numbers stay as they are (and keep their weak type). Without a mesh nothing is moved.
    """
    if mesh is None:
        return tree

    def one(x: Array | np.ndarray) -> Array:
        if not isinstance(x, (jax.Array, np.ndarray)):
            return x
        return _put(x, large_arrays_split(mesh, x) if split_large else NamedSharding(mesh, P()))

    return jax.tree.map(one, tree)


def over_images(
    function: Callable, mesh: Mesh | None, batch_axis: int = 0, split_large: bool = False
) -> Callable:
    """``function``, compiled, with the first axis of each argument split over the mesh.

    For functions that treat every image by itself. The function's own arrays are arguments of the
    compiled program (:func:`purify_jax.pytrees.jit`), placed on the devices once, here; functions
    of one structure share one program. Arguments have a batch that is a multiple of the number of
    devices (see :func:`round_up`); ``batch_axis`` is the output's batch axis. On several hosts
    every process passes the whole batch and gets the whole result.

    With ``split_large`` the function's large arrays are split over the devices and gathered by XLA
    where they are used, for parameters that no device holds by itself.

    What comes back is called like the function. On the devices of one process it is a
    :class:`~purify_jax.pytrees.Jitted`.
    """
    if mesh is None:
        return jit(function)
    spread = NamedSharding(mesh, P(AXIS))
    put = lambda arguments: [_put(a, spread) for a in arguments]
    placed = place(mesh, as_pytree(function), split_large)
    run = Jitted(_spread(mesh, batch_axis, split_large), placed, put)
    if is_own(mesh):
        return run
    return lambda *arguments: multihost_utils.process_allgather(run(*arguments), tiled=True)


@functools.lru_cache(maxsize=32)
def _spread(mesh: Mesh, batch_axis: int, split_large: bool) -> Callable:
    """One compiled-function cache for each mesh, whatever the function that is passed to it."""
    out = P(*(None,) * batch_axis, AXIS)
    if split_large:
        return jax.jit(call, out_shardings=NamedSharding(mesh, out))
    # Nothing is replicated or reduced in here, so there is nothing for check_vma to check.
    one_device = lambda function, arguments: function(*arguments)
    spread = jax.shard_map(
        one_device, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=out, check_vma=False
    )
    return jax.jit(lambda function, *arguments: spread(function, arguments))


def is_own(mesh: Mesh) -> bool:
    """Whether all devices of the mesh belong to this process."""
    return jax.process_count() == 1 or set(mesh.devices.flat) <= set(jax.local_devices())


def _put(array: jax.Array | np.ndarray, where: NamedSharding) -> jax.Array:
    own = where.is_fully_addressable
    return jax.device_put(array, where) if own else _place(array, where)


def _place(array: jax.Array | np.ndarray, spread: NamedSharding) -> jax.Array:
    """The part of an array that every process has whole, on the devices of all processes."""
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        wrap = functools.partial(jax.random.wrap_key_data, impl=jax.random.key_impl(array))
        return jax.jit(wrap, out_shardings=spread)(_place(jax.random.key_data(array), spread))
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, spread, lambda index: whole[index])
