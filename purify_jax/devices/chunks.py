"""How much is computed side by side: all of it, or as much as the device's memory holds.

Images, EOT samples and restarts of the purifier are independent, so they may be computed together or
one after the other, and the numbers are the same up to rounding. Together is faster, until memory ends.

- A program of which even all intermediate results would fit is run as it is: nothing is measured.
- Else it is compiled, as it has to be anyway, and its memory read. If that fits, it is run.
- Else it is compiled for one image as well. A line through both says how many images fit; if not even one
  does, the samples are divided, then the restarts. What was measured is kept beside the compiled programs.
- A device that runs out of memory all the same gets half as much, and again.

Pieces are halves, quarters, ... of the whole, so that the choice, and with it the compiled program, stays
the same while other programs come and go.
"""

import dataclasses
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

import purify_jax
from purify_jax.atomic import write_atomically
from purify_jax.devices import memory, sharding
from purify_jax.pytrees import UpTo, as_pytree


class Chunk(NamedTuple):
    """How many images, samples of each (EOT, certification) and restarts are computed at once."""

    images: int
    samples: int = 1
    restarts: int = 1


#: Field of a pytree → the field of :class:`Chunk` that lowers it. A plain number in it stays.
_FIELDS = {"samples_at_once": "samples", "restarts_at_once": "restarts"}
#: What a field of None means: all of these.
_ALL = {"samples_at_once": "num_samples", "restarts_at_once": "num_restarts"}


def piece(fixed: float, each: float, free: float, items: int, multiple: int = 1) -> int:
    """The largest half, quarter, ... of ``items`` whose ``fixed`` + ``each`` · pieces is within ``free``.

    Rounded up to ``multiple``, below which it does not go; 0 if not even that fits.

    >>> piece(fixed=100, each=10, free=1000, items=64), piece(100, 10, 300, 64), piece(100, 10, 105, 64)
    (64, 16, 0)
    """
    size = items
    while fixed + each * size > free:
        if size <= multiple:
            return 0
        size = halved(size, multiple)
    return size


def halved(size: int, multiple: int = 1) -> int:
    """Half of ``size``, rounded up to ``multiple``."""
    half = -(-size // 2)
    return min(-(-half // multiple) * multiple, max(size - multiple, multiple))


def choose(need: Callable[[Chunk], float], free: float, most: Chunk, multiple: int = 1) -> Chunk:
    """The largest chunk up to ``most`` that takes no more than ``free`` bytes.

    ``need`` says what a chunk takes; it is asked for few: ``most``, one image, and what is chosen.
    Images come in multiples of ``multiple``. Where nothing fits, the smallest chunk there is.
    """
    high = need(most)
    if high <= free:
        return most
    chosen = most
    for name in Chunk._fields:
        least = multiple if name == "images" else 1
        top = getattr(most, name)
        if top <= least:
            continue
        low = need(chosen._replace(**{name: least}))
        each = max(high - low, 0.0) / (top - least)
        size = piece(low - each * least, each, free, top, least)
        chosen = chosen._replace(**{name: size or least})
        if size:
            break
        high = low
    while need(chosen) > free and (smaller := half(chosen, multiple)) is not None:
        chosen = smaller
    return chosen


def half(chunk: Chunk, multiple: int = 1) -> Chunk | None:
    """Half as many images; of a single one, half the samples, then half the restarts; None below that."""
    for name in Chunk._fields:
        least = multiple if name == "images" else 1
        size = getattr(chunk, name)
        if size > least:
            return chunk._replace(**{name: halved(size, least)})
    return None


def over_images(
    function: Callable, mesh: Mesh | None, batch_axis: int = 0, split_large: bool = False
) -> Callable:
    """:func:`sharding.over_images`, of batches of any size: in pieces where memory asks for it.

    For functions of arrays with one row per image that treat every image by itself. Numbers of
    samples and restarts at once are lowered where the function's pytrees leave them open (None, or
    :class:`~purify_jax.pytrees.UpTo`). A line on standard error says what was chosen, if it is not
    everything; ``PURIFY_JAX_MEMORY`` (200MB, 12GB, unlimited) takes the place of what is free.
    Processes that share a batch compute it whole, so that all of them run the same program.
    """
    if mesh is not None and not sharding.is_own(mesh):
        return sharding.over_images(function, mesh, batch_axis, split_large)
    return _InPieces(as_pytree(function), mesh, batch_axis, split_large)


#: (structure of a function, shapes) → its chunk: chosen once in a process.
_chosen: dict[Any, Chunk] = {}
_said: set[str] = set()


class _InPieces:
    """See :func:`over_images`."""

    def __init__(self, function: Any, mesh: Mesh | None, batch_axis: int, split_large: bool):
        leaves, structure = jax.tree.flatten(function)
        self.function, self.batch_axis = function, batch_axis
        self.where = (mesh, batch_axis, split_large)
        self.multiple = 1 if mesh is None else mesh.size
        tops = list(_open_fields(function))
        self.most = {
            name: max([top for found, top in tops if found == name], default=1)
            for name in ("samples", "restarts")
        }
        self.kind = (structure, _shapes(leaves), *self.where, os.environ.get(memory.VARIABLE))
        self.compiled: dict[tuple[int, int], Any] = {}

    def __call__(self, *arguments: Any) -> Any:
        place = (self.kind, _shapes(arguments))
        chunk = _chosen.get(place)
        if chunk is None:
            chunk = _chosen[place] = self._choose(arguments)
        while True:
            try:
                return self._run(chunk, arguments)
            except jax.errors.JaxRuntimeError as error:
                smaller = half(chunk, self.multiple)
                if smaller is None or not memory.ran_out(error):
                    raise
                chunk = _chosen[place] = smaller
                _say(f"memory: the device ran out of it, going on with {_words(chunk)} at once")

    def _run(self, chunk: Chunk, arguments: tuple) -> Any:
        run, count = self._limited(chunk), len(arguments[0])
        if chunk.images >= count:
            # An error of the device comes out here, where it can be answered.
            return jax.block_until_ready(run(*arguments))
        found = []
        for start in range(0, count, chunk.images):
            rows = np.arange(start, start + chunk.images) % count
            result = run(*(a[rows] for a in arguments))
            kept = np.arange(min(chunk.images, count - start))
            take = lambda x, kept=kept: np.take(np.asarray(x), kept, axis=self.batch_axis)
            found.append(jax.tree.map(take, result))
        return jax.tree.map(lambda *parts: np.concatenate(parts, self.batch_axis), *found)

    def _limited(self, chunk: Chunk) -> Any:
        """The function with the chunk's samples and restarts at once, compiled when it is called."""
        limits = (chunk.samples, chunk.restarts)
        if limits not in self.compiled:
            function = lowered(self.function, chunk)
            self.compiled[limits] = sharding.over_images(function, *self.where)
        return self.compiled[limits]

    def _choose(self, arguments: tuple) -> Chunk:
        most = Chunk(len(arguments[0]), **self.most)
        devices = jax.local_devices() if self.where[0] is None else [*self.where[0].devices.flat]
        free = memory.budget(devices[:1] if self.where[0] is None else devices)
        if math.isinf(free):
            return most
        # jit keeps what it traced: the run that follows does not trace again.
        traced = self._limited(most).trace(*arguments)
        if memory.traced_bytes(traced.jaxpr.jaxpr) <= free:
            return most
        known = Known(_identity(traced, devices))

        def need(chunk: Chunk) -> float:
            if chunk not in known:
                of = traced if chunk == most else self._trial(chunk, arguments)
                known[chunk] = memory.compiled_bytes(of.lower().compile())
            return known[chunk]

        chunk = choose(need, free, most, self.multiple)
        if chunk != most:
            _say(
                f"memory: {need(most) / 1e6:.3g} MB for {_words(most)} at once, {free / 1e6:.3g} MB may be "
                f"taken: {_words(chunk)} at once ({need(chunk) / 1e6:.3g} MB)"
            )
        return chunk

    def _trial(self, chunk: Chunk, arguments: tuple) -> Any:
        # Of arrays as in the run, not of their shapes: jit then keeps what it compiled for the run.
        return self._limited(chunk).trace(*(a[: chunk.images] for a in arguments))


def _shapes(arrays: Any) -> tuple:
    return tuple((np.shape(a), str(getattr(a, "dtype", type(a)))) for a in arrays)


def _words(chunk: Chunk) -> str:
    parts = [
        f"{n} {name if n > 1 else name[:-1]}" for n, name in zip(chunk, chunk._fields, strict=True)
    ]
    return " × ".join([parts[0], *(p for p, n in zip(parts[1:], chunk[1:], strict=True) if n > 1)])


def _say(line: str) -> None:
    if line not in _said:
        _said.add(line)
        tqdm.write(line, file=sys.stderr)


# --- fields that are open -----------------------------------------------------------------------


def _top(holder: Any, field: str) -> int | None:
    """The most that a field may be; None for one that is not open."""
    value = getattr(holder, field)
    if value is None:
        return getattr(holder, _ALL[field], None)
    return int(value) if isinstance(value, UpTo) else None


def _open_fields(tree: Any) -> Iterator[tuple[str, int]]:
    """(field of a chunk, the most that it may be) of every field of a pytree that is open."""
    for holder in _holders(tree):
        for field in _FIELDS.keys() & {f.name for f in dataclasses.fields(holder)}:
            top = _top(holder, field)
            if top is not None:
                yield _FIELDS[field], top


def _holders(tree: Any) -> Iterator[Any]:
    if _is_holder(tree):
        yield tree
    for inner in _inside(tree):
        yield from _holders(inner)


def _is_holder(tree: Any) -> bool:
    return dataclasses.is_dataclass(tree) and not isinstance(tree, type)


def _inside(tree: Any) -> list[Any]:
    """The children of one node of a pytree; none of a leaf."""
    return [
        child
        for child in jax.tree.leaves(tree, is_leaf=lambda x: x is not tree)
        if child is not tree
    ]


def lowered(tree: Any, chunk: Chunk) -> Any:
    """A function's pytree with the fields that are open at the chunk's numbers, none of them raised."""
    inside = _inside(tree)
    if inside:
        structure = jax.tree.structure(tree, is_leaf=lambda x: x is not tree)
        tree = jax.tree.unflatten(structure, [lowered(child, chunk) for child in inside])
    if not _is_holder(tree):
        return tree
    changes = {}
    for field in _FIELDS.keys() & {f.name for f in dataclasses.fields(tree)}:
        top, limit = _top(tree, field), getattr(chunk, _FIELDS[field])
        if top is not None and limit < top:
            changes[field] = limit
    return dataclasses.replace(tree, **changes) if changes else tree  # type: ignore[type-var]


# --- what was measured --------------------------------------------------------------------------


class Known(dict):
    """Chunk → bytes, of one program: read from the folder of compiled programs, and kept there.

    Without such a folder, or where it cannot be written, it is known in this process alone.
    """

    def __init__(self, identity: str):
        super().__init__()
        folder = _folder()
        self.path = None if folder is None else folder / f"{identity}.json"
        if self.path is not None:
            with suppress(OSError, ValueError, TypeError, AttributeError):
                kept = json.loads(self.path.read_text())
                self.update({Chunk(*map(int, at.split(","))): int(n) for at, n in kept.items()})

    def __setitem__(self, chunk: Chunk, taken: float) -> None:
        super().__setitem__(chunk, taken)
        if self.path is not None:
            content = {",".join(map(str, chunk)): taken for chunk, taken in self.items()}
            with suppress(OSError):
                write_atomically(self.path, json.dumps(content) + "\n")


def _folder() -> Path | None:
    """Beside the compiled programs, where those are kept in a folder."""
    config: Any = jax.config
    folder = config.jax_compilation_cache_dir
    if not folder or not config.jax_enable_compilation_cache or "://" in folder:
        return None
    return Path(folder) / "memory"


def _identity(traced: Any, devices: list[Any]) -> str:
    """A digest of a traced program, with its shapes, and of what compiles it."""
    program = re.sub(r"0x[0-9a-f]+", "", str(traced.jaxpr))
    kinds = [device.device_kind for device in devices]
    versions = [purify_jax.__version__, jax.__version__, version("jaxlib")]
    about = repr([*versions, kinds, os.environ.get("XLA_FLAGS")])
    return hashlib.sha256((program + about).encode()).hexdigest()[:32]
