"""What a function costs, read off its traced program: nothing is compiled or run.

Passes through purifier and classifier are marked on a copy of the defense, calls of a network by an
interceptor, and the marks are counted in the program that ``jax.make_jaxpr`` returns: times the length of a
scan, times what runs side by side in a ``vmap``. Your own attack is counted like those of the suites.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn

from purify_jax.checks import InputError
from purify_jax.defense import Attackable, Whole
from purify_jax.purifiers.filters import identity
from purify_jax.purifiers.loop import WrappedPurifier
from purify_jax.pytrees import Pytree, as_pytree
from purify_jax.types import Array, Attack, Keys, LogitsFn, PredictFn, PurifyInfo

_MARK = "purify_jax_pass_"


#: What an equation costs: one number, or one of each kind.
Cost: TypeAlias = float | np.ndarray


class Passes(NamedTuple):
    """Passes for one image. A restart of the purifier is one pass through the classifier, and so is a pass
    through a defense without parts.

    A gradient through everything is a forward and a backward pass of both. What a checkpointed backward
    pass computes again inside the purifier is not counted.
    """

    purifier_forward: float = 0
    purifier_backward: float = 0
    classifier_forward: float = 0
    classifier_backward: float = 0

    def __add__(self, other: "Passes") -> "Passes":  # type: ignore[override]
        """The cost of one after the other."""
        return Passes(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, factor: float) -> "Passes":
        """The cost of ``factor`` such runs."""
        return Passes(*(factor * a for a in self))


_KINDS = (*Passes._fields, "network_forward")


def count(build: Callable[[Attackable], Attack], defense: Attackable, images: Array) -> Passes:
    """The passes of an attack on one image, which ``build`` makes for a defense.

    Args:
      build: defense → attack, as in ``lambda d: PGD(ExactGradient(d), epsilon=0.1, num_steps=10)``.
      defense: what is attacked.
      images: images of the shape in question ``[batch, h, w, c]``; the first one's is used.

    Raises InputError for an attack with a loop whose length the program does not say (a ``while``).
    """
    return _passes(build(_marked(defense)), images, jnp.zeros(1, jnp.int32))


def count_prediction(defense: Attackable, images: Array) -> Passes:
    """The passes of one prediction of a defense for one image."""
    return _passes(_marked(defense), images)


def _passes(function: Callable, images: Array, *labels: Array) -> Passes:
    one = jnp.zeros((1, *images.shape[1:]), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 1)
    with jax.disable_jit(False):  # marks are calls of compiled functions
        program = jax.make_jaxpr(function)(keys, one, *labels).jaxpr
    found = _total(program, _of_mark, strict=True)
    return Passes(*map(float, (found + np.zeros(len(_KINDS)))[:4]))


def network_passes(network: type[nn.Module], function: Callable, *arguments: object) -> int:
    """Forward passes of a kind of network in one call of a function, for its whole batch.

    Every step of a scan, every restart of a ``vmap`` and every recomputation of a checkpoint is one pass;
    a batch of images that runs at once is one as well. A backward pass is counted by the forward passes
    that it repeats. Raises InputError for a network inside a ``while``.

    >>> dense = nn.Dense(2)
    >>> params = dense.init(jax.random.key(0), jnp.zeros((1, 2)))
    >>> step = lambda x, _: (dense.apply(params, x), None)
    >>> network_passes(nn.Dense, lambda x: jax.lax.scan(step, x, None, length=7)[0], jnp.ones((4, 2)))
    7
    """

    def intercept(
        following: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext
    ) -> object:
        if type(context.module) is network and context.method_name == "__call__":
            args = (_network_call(args[0]), *args[1:])
        return following(*args, **kwargs)

    with nn.intercept_methods(intercept):
        found = _total(_traced(function, *arguments), _of_mark, strict=True)
    return round(float((found + np.zeros(len(_KINDS)))[-1]))


def multiplications(function: Callable, *arguments: object) -> float:
    """Floating-point operations of a function's convolutions and matrix products: 2 for each multiply-add.

    XLA's own analysis counts a loop's body once; this one counts it as often as a scan runs it. A
    ``while``, whose length the program does not say, counts as one turn.

    >>> square = jnp.ones((10, 10))
    >>> step = lambda x, _: (x @ square, None)
    >>> multiplications(lambda x: jax.lax.scan(step, x, None, length=7)[0], square)
    14000.0
    """
    return float(_total(_traced(function, *arguments), _multiplied))


def _traced(function: Callable, *arguments: object) -> Jaxpr:
    with jax.disable_jit(False):
        return jax.make_jaxpr(lambda f, *given: f(*given))(as_pytree(function), *arguments).jaxpr


# --- the traversal ----------------------------------------------------------------------------


def _total(program: Jaxpr, cost: Callable[[JaxprEqn], Cost | None], strict: bool = False) -> Cost:
    """The sum of the equations' costs, each times how often it runs.

    ``cost`` is None for an equation that costs what the programs inside it cost. ``strict``: refuse a
    ``while`` that costs something; else it counts as one turn.
    """
    total: Cost = 0.0
    for equation in program.eqns:
        own, kind = cost(equation), equation.primitive.name
        if own is None:
            inside = [_total(each, cost, strict) for each in programs(equation.params)]
            # Of a branch one side is run.
            own = functools.reduce(np.maximum, inside) if kind == "cond" else sum(inside)
            own = own * (equation.params["length"] if kind == "scan" else 1)
        if strict and kind == "while" and np.any(own):
            raise InputError(
                "attack: loops until a condition holds, expected a fixed length (scan)"
            )
        total = total + own
    return total


def programs(value: Any) -> Iterator[Jaxpr]:
    """The traced programs in an equation's parameters."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from programs(each)
    elif hasattr(value, "eqns"):
        yield value
    elif hasattr(value, "jaxpr"):
        yield from programs(value.jaxpr)


def _multiplied(equation: JaxprEqn) -> float | None:
    kind, settings = equation.primitive.name, equation.params
    # The second convolution is the library's own (networks.convolution), its kernels HWIO.
    if kind not in ("dot_general", "conv_general_dilated", "purify_conv"):
        return None
    first, second = map(_shape, equation.invars)
    result = float(np.prod(_shape(equation.outvars[0])))
    if kind == "dot_general":
        (contracted, _), _ = settings["dimension_numbers"]
        each = np.prod([first[axis] for axis in contracted])
    else:
        outputs = -1 if kind == "purify_conv" else settings["dimension_numbers"].rhs_spec[0]
        each = np.prod(second) / second[outputs]
    return 2 * result * float(each)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


# --- marks ------------------------------------------------------------------------------------


def _of_mark(equation: JaxprEqn) -> np.ndarray | None:
    name = str(equation.params.get("name", ""))
    if not name.startswith(_MARK):
        return None
    kind, size = name.removeprefix(_MARK).rsplit("_", 1)
    # The size of one value was noted where it was marked; vmap has multiplied it.
    times = int(np.prod(_shape(equation.outvars[0]))) / int(size)
    return times * (np.array(_KINDS) == kind)


def _named(name: str, value: Array, size: int) -> Array:
    same = lambda v: v + 0
    same.__name__ = f"{_MARK}{name}_{size}"
    return jax.jit(same)(value)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _mark(name: str, size: int, value: Array) -> Array:
    return _named(f"{name}_forward", value, size)


def _mark_forward(name: str, size: int, value: Array) -> tuple[Array, None]:
    return _mark(name, size, value), None


def _mark_backward(name: str, size: int, _: None, cotangent: Array) -> tuple[Array]:
    return (_named(f"{name}_backward", cotangent, size),)


_mark.defvjp(_mark_forward, _mark_backward)


@jax.custom_jvp  # not the mark above: step rules differentiate networks in forward mode
def _network_call(value: Array) -> Array:
    return _named("network_forward", value, value.size)


@_network_call.defjvp
def _network_tangent(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _network_call(*primals), tangents[0]


class _Classifier(Pytree):
    logits_fn: LogitsFn

    def __call__(self, images: Array) -> Array:
        logits = self.logits_fn(images)
        return _mark("classifier", int(np.prod(logits.shape[1:])), logits)


class _WholeCall(Pytree):
    predict: PredictFn

    def __call__(self, keys: Keys, images: Array) -> Array:
        log_probs = self.predict(keys, images)
        return _mark("classifier", int(np.prod(log_probs.shape[1:])), log_probs)


class _Purifier(WrappedPurifier):
    def __call__(self, keys: Keys, images: Array) -> tuple[Array, PurifyInfo]:
        purified, info = self.purifier(keys, images)
        # One call for all restarts of an image.
        size = purified.shape[0] * int(np.prod(purified.shape[2:]))
        return _mark("purifier", size, purified), info


def _marked(defense: Attackable) -> Attackable:
    if isinstance(defense, Whole):
        return defense.replace(predict=_WholeCall(defense.predict))
    defense = defense.replace(logits_fn=_Classifier(defense.logits_fn))
    if defense.purifier is identity:
        return defense
    return defense.replace(purifier=_Purifier(defense.purifier))
