"""Functions of batches of images, run in pieces that fit into memory.

- A program of which even all intermediate results would fit is run as it is: nothing is measured.
- Else it is compiled, as it has to be anyway, and its memory read. If that fits, it is run.
- Else it is compiled for one image as well. A line through both says how many images fit; if not even one
  does, the samples are divided, then the restarts. What was measured is kept beside the compiled programs.
- A device that runs out of memory all the same gets half as much, and again.

Pieces are halves, quarters, ... of the whole, so that the choice, and with it the compiled program, stays
the same while other programs come and go.
"""

import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

import purify_jax
from purify_jax.atomic import write_atomically
from purify_jax.devices import memory, sharding
from purify_jax.devices.chunks import Chunk, choose, half, lowered, open_fields
from purify_jax.pytrees import as_pytree


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
_MOST_CHOSEN = 256
_said: set[str] = set()


class _InPieces:
    """See :func:`over_images`."""

    def __init__(self, function: Any, mesh: Mesh | None, batch_axis: int, split_large: bool):
        leaves, structure = jax.tree.flatten(function)
        self.function, self.batch_axis = function, batch_axis
        self.where = (mesh, batch_axis, split_large)
        self.multiple = 1 if mesh is None else mesh.size
        tops = list(open_fields(function))
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
            if len(_chosen) > _MOST_CHOSEN:
                del _chosen[next(iter(_chosen))]
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
                try:
                    known[chunk] = memory.compiled_bytes(of.lower().compile())
                except jax.errors.JaxRuntimeError as error:
                    if not memory.ran_out(error):
                        raise
                    return math.inf  # compilers try kernels out, which takes memory as well
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
