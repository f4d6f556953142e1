"""Work in pieces that fit in memory: how many images, samples and restarts are computed side by side.

Images, samples (EOT, certification) and restarts of a purifier do not depend on each other. Computed side
by side or one after the other, they give the same numbers up to rounding. Larger chunks are faster until
they no longer fit in memory. One rule chooses:

1. A program whose intermediate results would all fit is run as it is.
2. Else the program is compiled, as it has to be anyway, and XLA tells what it takes. While that is too
   much, the images are halved; of a single image the samples, then the restarts.
3. When a device runs out of memory all the same, the chunk is halved again.

A program may take what ``PURIFY_JAX_MEMORY`` says (200MB, 12GB, unlimited), else 0.8 of what is free. A
number that the user gives as ``samples_at_once`` or ``restarts_at_once`` is kept; None is lowered.
"""

import dataclasses
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.extend.core import Jaxpr
from jax.sharding import Mesh
from tqdm import tqdm

from purify_jax.checks import InputError
from purify_jax.costs import programs
from purify_jax.devices import sharding
from purify_jax.pytrees import as_pytree

VARIABLE = "PURIFY_JAX_MEMORY"
#: The part of what is free that a program may take: XLA itself and other programs need some too.
SHARE = 0.8
_UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
#: (structure of a function, shapes, budget) → its chunk, chosen once in a process.
_chosen: dict[object, "Chunk"] = {}

Tree = TypeVar("Tree")


class Chunk(NamedTuple):
    """How many images, samples of each and restarts of each are computed side by side."""

    images: int
    samples: int = 1
    restarts: int = 1

    def halved(self, multiple: int = 1) -> "Chunk | None":
        """Half the images, rounded up to ``multiple``; below that half the samples, then the restarts.

        >>> Chunk(24, 4).halved(multiple=8), Chunk(8, 4).halved(multiple=8), Chunk(1).halved()
        (Chunk(images=16, samples=4, restarts=1), Chunk(images=8, samples=2, restarts=1), None)
        """
        for name, size, least in zip(self._fields, self, (multiple, 1, 1), strict=True):
            if size > least:
                return self._replace(**{name: -(-size // (2 * least)) * least})
        return None

    def __str__(self) -> str:
        return " × ".join(map(str, self))


def choose(need: Callable[[Chunk], float], free: float, most: Chunk, multiple: int = 1) -> Chunk:
    """The first of ``most``, its half, its quarter, ... that takes at most ``free`` bytes.

    ``need`` tells the bytes of a chunk, infinite for what cannot be compiled. Half a chunk takes at least
    half the bytes, so it is not asked for halves that cannot fit. If none fits, the smallest is chosen.
    """
    chunk, taken = most, need(most)
    while taken > free and (smaller := chunk.halved(multiple)) is not None:
        while taken * math.prod(smaller) > free * math.prod(chunk) and math.isfinite(taken):
            if (next_smaller := smaller.halved(multiple)) is None:
                break
            smaller = next_smaller
        chunk, taken = smaller, need(smaller)
    return chunk


def divided(
    function: Callable, mesh: Mesh | None, batch_axis: int = 0, split_large: bool = False
) -> Callable:
    """:func:`sharding.over_images` of batches of any size, in chunks where memory asks for it.

    For functions of arrays with one row per image that treat every image by itself. A line on standard
    error says what was chosen, if it is not everything. Processes that share a batch compute it whole,
    so that all of them run the same program.
    """
    if mesh is not None and not sharding.is_own(mesh):
        return sharding.over_images(function, mesh, batch_axis, split_large)
    return _Divided(as_pytree(function), mesh, batch_axis, split_large)


class _Divided:
    """See :func:`divided`."""

    def __init__(self, function: Callable, mesh: Mesh | None, batch_axis: int, split_large: bool):
        self.function, self.batch_axis = function, batch_axis
        self.devices = [jax.local_devices()[0]] if mesh is None else list(mesh.devices.flat)
        self.compiled: dict[tuple[int, int], Any] = {}
        self.placed = (mesh, batch_axis, split_large)

    def __call__(self, *arguments: object) -> Any:
        leaves, structure = jax.tree.flatten((self.function, arguments))
        shapes = tuple((np.shape(x), str(getattr(x, "dtype", type(x)))) for x in leaves)
        place = (structure, shapes, self.placed, os.environ.get(VARIABLE))
        if place not in _chosen:
            _chosen[place] = self._choose(arguments)
        while True:
            try:
                return self._run(_chosen[place], arguments)
            except jax.errors.JaxRuntimeError as error:
                smaller = _chosen[place].halved(len(self.devices))
                if smaller is None or not _ran_out(error):
                    raise
                _say(
                    f"memory: the device ran out of it, going on with {smaller} "
                    "(images × samples × restarts) at once"
                )
                _chosen[place] = smaller

    def limited(self, chunk: Chunk) -> Any:
        """The function with the chunk's samples and restarts at once, compiled when it is called."""
        limits = (chunk.samples, chunk.restarts)
        if limits not in self.compiled:
            function = lowered(self.function, chunk)
            self.compiled[limits] = sharding.over_images(function, *self.placed)
        return self.compiled[limits]

    def _run(self, chunk: Chunk, arguments: tuple) -> Any:
        run, count = self.limited(chunk), len(arguments[0])
        if chunk.images >= count:
            # An error of the device comes out here, where it can be answered.
            return jax.block_until_ready(run(*arguments))
        found = []
        for start in range(0, count, chunk.images):
            rows = np.arange(start, start + chunk.images) % count
            kept = np.arange(min(chunk.images, count - start))
            take = lambda x, kept=kept: np.take(np.asarray(x), kept, axis=self.batch_axis)
            found.append(jax.tree.map(take, run(*(a[rows] for a in arguments))))
        return jax.tree.map(lambda *parts: np.concatenate(parts, self.batch_axis), *found)

    def _choose(self, arguments: tuple) -> Chunk:
        most = Chunk(len(arguments[0]), **most_at_once(self.function))
        free = budget(self.devices)
        if math.isinf(free):
            return most
        # jit keeps what it traced: the run that follows does not trace again.
        traced = self.limited(most).trace(*arguments)
        if traced_bytes(traced.jaxpr.jaxpr) <= free:
            return most
        taken: dict[Chunk, float] = {}

        def need(chunk: Chunk) -> float:
            # Of arrays as in the run, not of their shapes: jit then keeps what it compiled for the run.
            traced = self.limited(chunk).trace(*(a[: chunk.images] for a in arguments))
            try:
                taken[chunk] = compiled_bytes(traced.lower().compile())
            except jax.errors.JaxRuntimeError as error:
                if not _ran_out(error):
                    raise
                taken[chunk] = math.inf  # compilers try kernels out, which takes memory as well
            return taken[chunk]

        chunk = choose(need, free, most, len(self.devices))
        if chunk != most:
            _say(
                f"memory: images × samples × restarts at once: {most} take {taken[most] / 1e6:.3g} MB, "
                f"{free / 1e6:.3g} MB may be taken; chosen: {chunk} ({taken[chunk] / 1e6:.3g} MB)"
            )
        return chunk


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


# --- numbers that are open ----------------------------------------------------------------------


def most_at_once(tree: object) -> dict[str, int]:
    """The most samples and restarts that a function computes side by side where none are given."""
    most = {"samples": 1, "restarts": 1}

    def look(holder: object) -> object:
        for name, top in _open(holder).items():
            most[name] = max(most[name], top)
        return holder

    _map_holders(look, tree)
    return most


def lowered(tree: Tree, chunk: Chunk) -> Tree:
    """A function's pytree with the numbers that are open at most at the chunk's."""

    def lower(holder: Any) -> Any:
        limits = chunk._asdict()
        lower = [name for name, top in _open(holder).items() if limits[name] < top]
        changes = {f"{name}_at_once": limits[name] for name in lower}
        return dataclasses.replace(holder, **changes) if changes else holder

    return _map_holders(lower, tree)


def _open(holder: object) -> dict[str, int]:
    """Of samples and restarts, those whose ``..._at_once`` is None → how many None stands for.

    That is all there are (``num_...``), or the class's ``most_at_once`` if that is less.
    """
    names = [n for n in ("samples", "restarts") if getattr(holder, f"{n}_at_once", 0) is None]
    limit = getattr(holder, "most_at_once", math.inf)
    return {name: int(min(getattr(holder, f"num_{name}", 1), limit)) for name in names}


def _map_holders(function: Callable, tree: Tree) -> Tree:
    """A pytree with ``function`` applied to every dataclass in it, from the innermost out."""
    children, structure = jax.tree.flatten(tree, is_leaf=lambda x: x is not tree)
    if len(children) != 1 or children[0] is not tree:
        tree = jax.tree.unflatten(structure, [_map_holders(function, c) for c in children])
    return function(tree) if dataclasses.is_dataclass(tree) else tree


# --- bytes --------------------------------------------------------------------------------------


def budget(devices: Sequence[jax.Device]) -> float:
    """Bytes that a program may take on each of this process's ``devices``; infinite if unknown.

    Raises InputError for a :data:`VARIABLE` that is no amount of memory.
    """
    if given := os.environ.get(VARIABLE):
        return amount(given)
    if devices[0].platform == "cpu":
        return SHARE * host_free() / len(devices)
    told = [device.memory_stats() or {} for device in devices]
    free = [s["bytes_limit"] - s["bytes_in_use"] for s in told if "bytes_limit" in s]
    return SHARE * min(free, default=math.inf)


def amount(text: str) -> float:
    """Bytes of "200MB", "1.5 GB", "4096" or "unlimited"; InputError for anything else.

    >>> amount("1.5 GB"), amount("unlimited")
    (1500000000.0, inf)
    """
    if text.strip().lower() == "unlimited":
        return math.inf
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)B?\s*", text, re.IGNORECASE | re.ASCII)
    if found is None or float(found[1]) <= 0:
        raise InputError(f"{VARIABLE}: got {text!r}, expected 200MB, 12GB, ... or unlimited")
    return float(found[1]) * _UNITS[found[2].upper()]


def host_free(root: Path = Path("/")) -> float:
    """Bytes that Linux calls available, or the limit of this process's control group if that is less.

    Infinite where neither is told. ``root`` is for tests.
    """

    def numbers(path: str, pattern: str) -> list[str]:
        try:
            return re.findall(pattern, (root / path).read_text(), re.MULTILINE)
        except OSError:
            return []

    amounts = [1024 * float(n) for n in numbers("proc/meminfo", r"^MemAvailable:\s*(\d+) kB")]
    for group in numbers("proc/self/cgroup", r"^0::/(.*)$"):
        for folder in (Path(group), *Path(group).parents):
            amounts += map(float, numbers(f"sys/fs/cgroup/{folder}/memory.max", r"^\d+$"))
    return min(amounts, default=math.inf)


def traced_bytes(program: Jaxpr) -> int:
    """Bytes of every intermediate result of a traced program (a jaxpr), a loop's body counted once.

    A compiled program holds a part of them at a time. Counting takes milliseconds, compiling up to minutes.
    """
    values = [variable.aval for equation in program.eqns for variable in equation.outvars]
    inner = [each for equation in program.eqns for each in programs(equation.params)]
    bytes_of = lambda v: math.prod(v.shape) * getattr(v.dtype, "itemsize", 0)
    sizes = [bytes_of(value) for value in values if hasattr(value, "shape")]
    return sum(sizes) + sum(map(traced_bytes, inner))


def compiled_bytes(compiled: jax.stages.Compiled) -> int:
    """Temporary memory and results of a compiled program, on each device; 0 if the backend is silent."""
    memory = compiled.memory_analysis()
    return 0 if memory is None else memory.temp_size_in_bytes + memory.output_size_in_bytes


def _ran_out(error: jax.errors.JaxRuntimeError) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error)
