"""Functions that carry arrays: pytrees whose leaves are the arrays and whose structure is static.

A score, a purifier, a defense or an attack is called like a function, and it is also a pytree. So a
compiled program takes its parameters as arguments instead of holding them as constants: another
checkpoint of the same network, another σ, λ or ε compiles nothing, and 2 GB of parameters are not
copied into a program.

There is one way to write one: a subclass of :class:`Pytree` with ``__call__``, whose fields are arrays,
numbers or further pytrees, or :func:`static` (integers, names, linen modules). The class is what a user
calls; its docstring describes the fields, and ``__post_init__`` checks them. A plain function with
arguments is ``jax.tree_util.Partial(function, *arrays)``.
"""

import dataclasses
import functools
import reprlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self, dataclass_transform

import jax
from jax.tree_util import Partial, all_leaves

__all__ = ["Jitted", "Partial", "Pytree", "as_pytree", "described", "jit", "static"]


def static(
    *, default: object = dataclasses.MISSING, kw_only: bool = True, init: bool = True
) -> Any:
    """A keyword that is part of the structure: hashable, and a new value compiles anew.

    ``kw_only=False``: a main operand, which may be given by position too (a network before its parameters).
    ``init=False``: no argument; ``__post_init__`` computes it from the other fields.
    """
    metadata = {"pytree_node": False}
    return dataclasses.field(default=default, init=init, kw_only=kw_only, metadata=metadata)


@dataclass_transform(frozen_default=True, field_specifiers=(static,))
class Pytree:
    """Base class of functions that carry arrays: every subclass is a frozen dataclass and a pytree.

    Fields are leaves or further pytrees unless they are :func:`static`. A field that is given a plain
    function keeps it by :func:`as_pytree`. ``__post_init__`` checks the fields, and :meth:`fill` completes
    them. Both run when a user constructs an object or calls ``replace``, not when a transformation of
    JAX rebuilds one from its leaves.

    Equality is identity, as of functions, so that ``jax.jit(defense)`` works too (with the arrays as
    constants; :func:`jit` is the one that passes them). ``repr`` is one line, :func:`described`.

    >>> class Scaled(Pytree):
    ...     factor: float
    ...     times: int = static(default=1)
    ...     def __call__(self, x):
    ...         return self.factor**self.times * x
    >>> doubled = jax.tree.map(lambda leaf: 2 * leaf, Scaled(3.0, times=2))
    >>> doubled, doubled(1.0)
    (Scaled(factor=6.0, times=2), 36.0)
    """

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
        constructed = cls.__init__

        @functools.wraps(constructed)
        def construct(self: Any, *arguments: object, **settings: object) -> None:
            constructed(self, *arguments, **settings)
            for name in leaves:
                value = getattr(self, name)
                if callable(value):
                    self.fill(**{name: as_pytree(value)})

        cls.__init__ = construct  # type: ignore[method-assign]
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        leaves = [f.name for f in fields if f.metadata.get("pytree_node", True)]
        statics = [f.name for f in fields if f.name not in leaves]

        def structure(self: Pytree) -> tuple:
            return tuple([getattr(self, name) for name in statics])

        def flatten(self: Pytree) -> tuple:
            return [getattr(self, name) for name in leaves], structure(self)

        def flatten_with_keys(self: Pytree) -> tuple:
            keyed = [(jax.tree_util.GetAttrKey(n), getattr(self, n)) for n in leaves]
            return keyed, structure(self)

        def unflatten(held: tuple, children: Iterable) -> Pytree:
            # Not by ``__init__``: children may be tracers, or objects that stand for leaves.
            made = object.__new__(cls)
            made.fill(**dict(zip(statics, held, strict=True)))
            made.fill(**dict(zip(leaves, children, strict=True)))
            return made

        jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)

    def fill(self, **values: object) -> None:
        """Sets fields of an object that is being constructed, for ``__post_init__``."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def replace(self, **changes: object) -> Self:
        """A copy with some fields changed, checked like a new one."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def __repr__(self) -> str:
        return described(self)


def as_pytree(function: Callable) -> Any:
    """The function as a pytree: as it is if it is one already, else as static structure.

    A plain function (a closure, a lambda, a bound method) works everywhere; the arrays it has
    closed over become constants of compiled programs, and another such function compiles anew.
    """
    return Partial(function) if callable(function) and all_leaves([function]) else function


def described(value: object) -> str:
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


def call(function: Callable, *arguments: object) -> Any:
    """``function(*arguments)``, for transformations that want the function as an argument."""
    return function(*arguments)


_compiled = jax.jit(call)


class Jitted:
    """A compiled function together with the pytree that is its first argument.

    compiled: what ``jax.jit`` returns.
    function: the pytree, whose arrays so are no constants of the program.
    place: puts the other arguments on the devices.
    """

    def __init__(
        self,
        compiled: Any,
        function: object,
        place: Callable[[tuple], Sequence[object]] = lambda arguments: arguments,
    ):
        self.compiled, self.function, self.place = compiled, function, place

    def __call__(self, *arguments: object) -> Any:
        return self.compiled(self.function, *self.place(arguments))

    def trace(self, *arguments: object) -> jax.stages.Traced:
        """``jax.jit(...).trace``, for a look at the program before it is compiled."""
        return self.compiled.trace(self.function, *self.place(arguments))

    def lower(self, *arguments: object) -> jax.stages.Lowered:
        """``jax.jit(...).lower``, for a look at the compiled program."""
        return self.compiled.lower(self.function, *self.place(arguments))


def jit(function: Callable) -> Jitted:
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
    jitted = Jitted(_compiled, as_pytree(function))
    functools.update_wrapper(jitted, function, updated=())
    return jitted
