"""Identifies what the records of a run belong to: the weights, the data and the settings.

A run that continues reads its records back, so the records must identify the model. A file name does not
identify a model, since the file may have been overwritten.
"""

import contextlib
import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any

import jax
import numpy as np

from purify_jax.bridges.from_torch import Bridge
from purify_jax.bridges.inspection import code_identity
from purify_jax.data import Dataset
from purify_jax.defense import Defense
from purify_jax.pytrees import Partial
from purify_jax.types import Array

#: Packages whose functions are identified by their names; they carry no weights.
_KNOWN = ("purify_jax", "jax", "flax", "numpy")
_SHA = "sha256 "


def identity(**parts: object) -> dict[str, Any]:
    """Name → what identifies it, for the first line of a file that a later run continues.

    - A data set: the SHA-256 of its images and labels.
    - A defense, an attack, or a mapping of them: path → setting. Numbers and static fields are there by
      value, other arrays by the SHA-256 over their dtype, shape and bytes, in the order of their paths.
      Fields that end with ``_at_once`` change no result and are left out.
    - A PyTorch module: the SHA-256 of its weights, settings and code.
    - "unhashed": paths of plain functions. Such a function is identified by its code and by what it has closed
      over; what it takes from elsewhere is unknown: give different models different work directories.

    >>> from purify_jax.attacks import PGD
    >>> attack = PGD(lambda keys, images, labels: images, epsilon=0.1, num_steps=5)
    >>> found = identity(attack=attack)
    >>> found["attack"]["num_steps"], found["unhashed"]
    (5, ['attack.gradient'])
    """
    walk = _Walk()
    found: dict[str, object] = {}
    for name, value in parts.items():
        found[name] = _data(value) if isinstance(value, Dataset) else dict(walk.fields(value, name))
    return {**found, "unhashed": sorted(walk.unhashed)} if walk.unhashed else found


def arrays_identity(*arrays: Array | np.ndarray) -> str:
    """The SHA-256 of arrays, as :func:`identity` has it."""
    digest = hashlib.sha256()
    for array in arrays:
        _add(digest, array)
    return f"{_SHA}{digest.hexdigest()}"


def difference(before: Mapping[str, object], now: Mapping[str, object]) -> str | None:
    """The first field in which two headers or configs differ, in words; None for equal ones."""
    old, new = (dict(_flat(tree)) for tree in (before, now))
    # The defense first: what an attack looks through differs with it.
    for key in sorted(old.keys() | new.keys(), key=lambda key: ("attack" in key, key)):
        a, b = old.get(key), new.get(key)
        if a == b:
            continue
        if all(str(value).startswith(_SHA) for value in (a, b)):
            short = lambda value: str(value)[: len(_SHA) + 12]
            return f"{key} differs: {short(a)} there, {short(b)} now"
        return f"{key}: {a!r} there, {b!r} now"
    return None


class _Walk:
    """Visits the fields of pytrees; an array that several of them hold is hashed once."""

    def __init__(self) -> None:
        self.unhashed: set[str] = set()
        self._inside: list[int] = []
        self._digests: dict[int, str] = {}

    def fields(self, value: object, name: str, path: str = "") -> Iterator[tuple[str, object]]:
        """(path, setting) of everything in ``value``, which is called ``name`` in messages."""
        inside = lambda item, key: self.fields(item, name, f"{path}.{key}" if path else str(key))
        if isinstance(value, (bool, int, float, str, type(None))):
            yield path, value
        elif hasattr(value, "dtype") and hasattr(value, "ndim"):
            yield path, self._array(value)  # type: ignore[arg-type]
        elif isinstance(value, Partial):
            yield from self.fields(value.func, name, path)
            for key, item in [*enumerate(value.args), *value.keywords.items()]:
                yield from inside(item, key)
        elif isinstance(value, Defense) and path:
            # What an attack looks through is mostly the defense itself, which is listed in full.
            whole = sorted(self.fields(value, f"{name}.{path}"))
            yield path, _sha(repr(whole))
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield path, type(value).__name__
            for field in dataclasses.fields(value):
                if field.repr and not field.name.endswith("_at_once"):
                    yield from inside(getattr(value, field.name, None), field.name)
        elif isinstance(value, Bridge):
            found, has_weights = value.fingerprint()
            if not has_weights:
                self.unhashed.add(f"{name}.{path}")
            yield path, found
        elif isinstance(value, (Mapping, list, tuple)):
            if _holds_arrays_alone(value):
                yield path, self._weights(jax.tree.leaves(value))
                return
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            for key, item in items:
                yield from inside(item, key)
        elif id(value) not in self._inside:
            self._inside.append(id(value))
            yield path, self._function(value, f"{name}.{path}" if path else name)
            for key, item in _held(value):
                yield from inside(item, key)
            self._inside.pop()

    def _array(self, array: Array | np.ndarray) -> object:
        if array.ndim == 0 and jax.dtypes.issubdtype(array.dtype, np.number):
            return array.item()
        return self._weights([array])

    def _weights(self, arrays: list[Array | np.ndarray]) -> str:
        for array in arrays:
            if id(array) not in self._digests:
                self._digests[id(array)] = arrays_identity(array)
        return _sha("".join(self._digests[id(array)] for array in arrays))

    def _function(self, value: object, path: str) -> str:
        if not callable(value) or isinstance(value, type):
            return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
        if isinstance(value, functools.partial) or not hasattr(value, "__qualname__"):
            self.unhashed.add(path)
            return type(value).__name__
        owner = getattr(value, "__self__", None)
        bound = owner is not None and not isinstance(owner, ModuleType)
        package = str(getattr(value, "__module__", None)).split(".")[0]
        if bound or package not in _KNOWN or "<" in value.__qualname__:
            self.unhashed.add(path)
        return f"{value.__module__}.{value.__qualname__}"


def _held(value: object) -> Iterator[tuple[str, object]]:
    """What a plain function, a method or an object that is called holds, by name; and its code."""
    package = str(getattr(value, "__module__", None)).split(".")[0]
    if not callable(value) or isinstance(value, type) or package in _KNOWN:
        return
    owner = getattr(value, "__self__", None)
    if isinstance(value, functools.partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
    elif owner is not None and not isinstance(owner, ModuleType):
        yield from (("func", value.__func__), ("self", owner)) if hasattr(value, "__func__") else ()
    elif isinstance(value, FunctionType):
        yield "code", _code(value.__code__)
        yield "defaults", value.__defaults__
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # not assigned yet
                yield name, cell.cell_contents
    else:
        yield "code", _code(type(value).__call__.__code__)
        yield from getattr(value, "__dict__", {}).items()


def _code(code: CodeType) -> str:
    return _sha(repr(code_identity(code)))


def _holds_arrays_alone(value: object) -> bool:
    if not isinstance(value, (Mapping, list, tuple)):
        return hasattr(value, "dtype") and hasattr(value, "shape")
    items = list(value.values() if isinstance(value, Mapping) else value)
    return bool(items) and all(map(_holds_arrays_alone, items))


def _sha(text: str) -> str:
    return f"{_SHA}{hashlib.sha256(text.encode()).hexdigest()}"


def _add(digest: "hashlib._Hash", array: Array | np.ndarray) -> None:
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    content = np.ascontiguousarray(array)
    digest.update(f"{content.dtype} {content.shape}".encode())
    if content.dtype.hasobject:  # of a stranger's function: what its elements say of themselves
        digest.update(repr(content.tolist()).encode())
    elif content.size:
        digest.update(content.view(np.uint8).data)


def _data(dataset: Dataset, at_once: int = 256) -> str:
    # In parts: the images may lie on disk.
    digest = hashlib.sha256()
    for start in range(0, len(dataset), at_once):
        for array in dataset.batch(np.arange(start, min(start + at_once, len(dataset)))):
            _add(digest, array)
    return f"{_SHA}{digest.hexdigest()}"


def _flat(tree: object, path: str = "") -> Iterator[tuple[str, object]]:
    if not isinstance(tree, Mapping) or not tree:
        yield path, tree
        return
    for name, value in tree.items():
        # The object itself has the empty path.
        yield from _flat(value, f"{path}.{name}" if path and name else path or str(name))
