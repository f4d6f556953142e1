"""How often a network runs and how much is multiplied: what a purifier, a defense or an attack costs."""

from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from purify_jax.pytrees import as_pytree


def network_passes(network: type[nn.Module], function: Callable, *arguments: Any) -> int:
    """Forward passes of a kind of network in one call of a function, for its whole batch.

    The compiled program counts at run time, so every step of a scan, every restart of a ``vmap`` and every
    recomputation of a checkpoint is one pass; a batch of images that runs at once is one as well.
    A backward pass is counted by the forward passes that it repeats.

    >>> import jax.numpy as jnp
    >>> dense = nn.Dense(2)
    >>> params = dense.init(jax.random.key(0), jnp.zeros((1, 2)))
    >>> step = lambda x, _: (dense.apply(params, x), None)
    >>> network_passes(nn.Dense, lambda x: jax.lax.scan(step, x, None, length=7)[0], jnp.ones((4, 2)))
    7
    """
    calls = []

    def intercept(following: Callable, args: Any, kwargs: Any, context: Any) -> Any:
        if type(context.module) is network and context.method_name == "__call__":
            # A value of the input goes along, so that vmap calls once per element.
            jax.debug.callback(lambda _: calls.append(1), args[0].ravel()[0])
        return following(*args, **kwargs)

    # A fresh function: a program that was compiled without the counter would not count.
    run = jax.jit(lambda f, *given: f(*given))
    with nn.intercept_methods(intercept):
        jax.block_until_ready(run(as_pytree(function), *arguments))
    jax.effects_barrier()
    return len(calls)


def multiplications(function: Callable, *arguments: Any) -> float:
    """Floating-point operations of a function's convolutions and matrix products: 2 for each multiply-add.

    Read off the traced program, times the lengths of its scans (XLA's own analysis counts a loop's body
    once); of a ``while``, whose length the program does not say, one turn. Nothing is compiled or run.

    >>> import jax.numpy as jnp
    >>> square = jnp.ones((10, 10))
    >>> step = lambda x, _: (x @ square, None)
    >>> multiplications(lambda x: jax.lax.scan(step, x, None, length=7)[0], square)
    14000.0
    """
    program = jax.make_jaxpr(lambda f, *given: f(*given))(as_pytree(function), *arguments)
    return _multiplied(program.jaxpr)


def _multiplied(program: Any) -> float:
    total = 0.0
    for equation in program.eqns:
        kind, settings = equation.primitive.name, equation.params
        # The second convolution is the library's own (networks.convolution), its kernels HWIO.
        if kind in ("dot_general", "conv_general_dilated", "purify_conv"):
            first, second = (v.aval.shape for v in equation.invars)
            result = float(np.prod(equation.outvars[0].aval.shape))
            if kind == "dot_general":
                (contracted, _), _ = settings["dimension_numbers"]
                each = np.prod([first[axis] for axis in contracted])
            else:
                outputs = -1 if kind == "purify_conv" else settings["dimension_numbers"].rhs_spec[0]
                each = np.prod(second) / second[outputs]
            total += 2 * result * float(each)
            continue
        times = settings.get("length", 1) if kind == "scan" else 1
        inside = [_multiplied(each) for each in programs(settings)]
        # Of a branch one side is run.
        total += times * (max(inside, default=0.0) if kind == "cond" else sum(inside))
    return total


def programs(value: Any) -> Iterator[Any]:
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
