"""Functions that carry arrays: pytrees whose leaves are the arrays and whose structure is static.

A score, a purifier, a defense or an attack is called like a function, and it is also a pytree. So a
compiled program takes its parameters as arguments instead of holding them as constants: another
checkpoint of the same network, another σ, λ or ε compiles nothing, and 2 GB of parameters are not
copied into a program.

There is one way to write one: a frozen dataclass under :func:`pytree` with ``__call__``, whose fields
are arrays, numbers or further pytrees, or :func:`static` (integers, names, linen modules). A plain
function with arguments is ``jax.tree_util.Partial(function, *arrays)``.
"""

import dataclasses
import functools
import reprlib
from collections.abc import Callable
from typing import Any, Self, TypeVar

import flax.struct
import jax
from jax.tree_util import Partial, all_leaves
from typing_extensions import dataclass_transform

__all__ = ["Partial", "UpTo", "as_pytree", "described", "jit", "pytree", "static"]

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def pytree(cls: type[T]) -> type[T]:
    """Class decorator: a frozen, keyword-only dataclass that is a pytree, with ``replace(**changes)``.

    Equality is identity, as of functions, so that ``jax.jit(defense)`` works too (with the arrays
    as constants; :func:`jit` is the one that passes them). A field that is given a plain function
    keeps it by :func:`as_pytree`. ``repr`` is one line, :func:`described`.
    """
    cls.__post_init__ = _wrap_plain_functions  # type: ignore[attr-defined]
    cls.__repr__ = described  # type: ignore[method-assign, assignment]
    return flax.struct.dataclass(cls, eq=False, kw_only=True, repr=False)


def _wrap_plain_functions(self: Any) -> None:
    # However the object was made: by a factory, by its class or by ``replace``.
    for field in dataclasses.fields(self):
        value = getattr(self, field.name)
        if field.metadata.get("pytree_node", True) and callable(value):
            object.__setattr__(self, field.name, as_pytree(value))


class Replaceable:
    """What :func:`pytree` gives every class, for those whose users vary them."""

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]


def static(default: Any = ..., **more: Any) -> Any:
    """A dataclass field that is part of the structure: hashable, and a new value compiles anew."""
    if default is not ...:
        more["default"] = default
    return flax.struct.field(pytree_node=False, **more)


class UpTo(int):
    """How many of something are computed side by side, unless memory asks for fewer.

    A plain number in its place is kept as it is. Both are equal, and share compiled programs. What
    lowers it is ``devices.chunks``.
    """


def as_pytree(function: Callable) -> Any:
    """The function as a pytree: as it is if it is one already, else as static structure.

    A plain function (a closure, a lambda, a bound method) works everywhere; the arrays it has
    closed over become constants of compiled programs, and another such function compiles anew.
    """
    return Partial(function) if callable(function) and all_leaves([function]) else function


def described(value: Any) -> str:
    """One line about an object, whatever it holds: never the numbers of a network.

    Scalars by value, other arrays by kind and shape, containers of arrays by how many numbers are in them,
    functions by name, dataclasses (networks, too) field by field.

    >>> import numpy as np
    >>> described({"kernel": np.zeros((3, 3, 1, 8)), "bias": np.zeros(8)})
    '<80 numbers in 2 arrays>'
    >>> described(Partial(np.multiply, np.float32(0.5), np.zeros((2, 3))))
    'multiply(0.5, float64[2,3])'
    """
    if isinstance(value, jax.core.Tracer) or (hasattr(value, "dtype") and hasattr(value, "shape")):
        return _described_array(value)
    if isinstance(value, Partial):
        given = [described(x) for x in value.args]
        given += [f"{name}={described(x)}" for name, x in value.keywords.items()]
        name = described(value.func)
        return f"{name}({', '.join(given)})" if given else name
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value) if field.repr]
        held = {name: getattr(value, name, None) for name in fields}
        if held.get("name", "") is None:  # what flax calls a module that nobody named
            del held["name"]
        shown = [f"{name}={described(x)}" for name, x in held.items()]
        return f"{type(value).__name__}({', '.join(shown)})"
    arrays = [x for x in jax.tree.leaves(value) if hasattr(x, "shape") and hasattr(x, "dtype")]
    if arrays:
        return f"<{sum(x.size for x in arrays):,} numbers in {len(arrays)} arrays>"
    if callable(value):
        return getattr(value, "__name__", None) or reprlib.repr(value)
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def _described_array(value: Any) -> str:
    traced = isinstance(value, jax.core.Tracer)
    if value.ndim or traced or getattr(value, "is_deleted", bool)():
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        return str(value.dtype)
    return f"{value.item():g}" if value.dtype.kind == "f" else str(value.item())


def call(function: Callable, *arguments: Any) -> Any:
    """``function(*arguments)``, for transformations that want the function as an argument."""
    return function(*arguments)


_compiled = jax.jit(call)


class _Jitted:
    """See :func:`jit`."""

    def __init__(self, function: Callable):
        self.function = as_pytree(function)
        functools.update_wrapper(self, function, updated=())

    def __call__(self, *arguments: Any) -> Any:
        return _compiled(self.function, *arguments)

    def trace(self, *arguments: Any) -> Any:
        """``jax.jit(...).trace``, for a look at the program before it is compiled."""
        return _compiled.trace(self.function, *arguments)

    def lower(self, *arguments: Any) -> Any:
        """``jax.jit(...).lower``, for a look at the compiled program."""
        return _compiled.lower(self.function, *arguments)


def jit(function: Callable) -> Callable:
    """``jax.jit`` that passes the arrays of a defense, an attack, a purifier as arguments.

    ``pj.jit(attack)(keys, images, labels)``. All callables of one structure (the same networks, the
    same numbers of steps) share one compiled program, whatever their parameters, σ, λ and ε.

    >>> import jax.numpy as jnp
    >>> traced = []
    >>> def scaled(by, x):
    ...     traced.append(by)
    ...     return by * x
    >>> [float(jit(Partial(scaled, jnp.float32(by)))(3.0)) for by in (1, 2)], len(traced)
    ([3.0, 6.0], 1)
    """
    return _Jitted(function)
