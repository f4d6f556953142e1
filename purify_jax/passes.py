"""How often a network runs: what a purifier, a defense or an attack costs, counted and not estimated."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

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
