"""How much is computed side by side: all of it, or as much as the device's memory holds.

Images, EOT samples and restarts of the purifier are independent, so they may be computed together or
one after the other, and the numbers are the same up to rounding. Together is faster, until memory ends.
This file chooses; :mod:`purify_jax.devices.pieces` measures, runs and remembers.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from purify_jax.pytrees import UpTo


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
    It may be infinite for what cannot even be compiled.
    Images come in multiples of ``multiple``. Where nothing fits, the smallest chunk there is.
    """
    high = need(most)
    if high <= free:
        return most
    chosen = most
    # Without a figure for the whole there is no line: it is halved until it fits.
    for name in Chunk._fields if math.isfinite(high) else ():
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


# --- fields that are open -----------------------------------------------------------------------


def _top(holder: Any, field: str) -> int | None:
    """The most that a field may be; None for one that is not open."""
    value = getattr(holder, field)
    if value is None:
        return getattr(holder, _ALL[field], None)
    return int(value) if isinstance(value, UpTo) else None


def open_fields(tree: Any) -> Iterator[tuple[str, int]]:
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
