"""Calls of PyTorch code as operations of JAX programs, with their own rules for ``vmap`` and the backward pass.

The keys are operands of the callback, so XLA computes as many draws as there are keys. All operands travel as one
array, since JAX takes about 0.1 ms for each.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from chex import ArrayTree
from jax.custom_batching import custom_vmap

from purify_jax.bridges.torch_calls import Plan, TorchCalls
from purify_jax.types import Array

try:
    from jax.experimental.buffer_callback import buffer_callback
except ImportError:  # an older version of JAX
    buffer_callback = None  # type: ignore[assignment]


class JaxCalls:
    """The calls as functions of JAX, for one plan: :meth:`__call__` is vmapped and differentiated as it says.

    Keys are ``[batch, words]`` uint32, images and answers NCHW or ``[batch, classes]``, float32.
    """

    def __init__(self, calls: TorchCalls, plan: Plan, image_shape: tuple[int, ...]):
        self.calls, self.plan = calls, plan
        self.image_shape, self.sizes = image_shape, (math.prod(plan.shape), math.prod(image_shape))

        def shaped(images: Array) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((images.shape[0], *plan.shape), jnp.float32)

        def call(keys: Array, images: Array) -> Array:
            return called_back(self._on_call, shaped(images), packed(images, keys))

        def kept_call(keys: Array, images: Array) -> tuple[Array, Array]:
            tokens = jax.ShapeDtypeStruct((images.shape[0], 2), jnp.uint32)
            given = packed(images, keys)
            return called_back(self._on_kept_call, (shaped(images), tokens), given)

        def backward(tokens: Array, keys: Array, images: Array, cotangents: Array) -> Array:
            shape = jax.ShapeDtypeStruct(images.shape, jnp.float32)
            given = packed(tokens, cotangents, images, keys)
            return called_back(self._on_backward, shape, given)

        vmapped_call, vmapped_kept_call = self._vmapped(call), self._vmapped(kept_call)
        vmapped_backward = custom_vmap(backward)

        @vmapped_backward.def_vmap
        def fold_backward(size: int, batched: list[bool], *given: Array) -> tuple[Array, bool]:
            # The tokens say which rows were one call.
            return unfolded(size, vmapped_backward(*folded(size, batched, given))), True

        self.function = jax.custom_vjp(vmapped_call)
        self.function.defvjp(
            lambda keys, images: _with_residuals(vmapped_kept_call(keys, images), keys, images),
            lambda residuals, cotangents: (None, vmapped_backward(*residuals, cotangents)),
        )

    def _images(self, rows: np.ndarray) -> np.ndarray:
        return rows.view(np.float32).reshape((len(rows), *self.image_shape))

    def _on_call(self, rows: np.ndarray) -> np.ndarray:
        images, keys = unpacked(rows, self.sizes[1])
        return self.calls.on_call(self.plan, keys, self._images(images))

    def _on_kept_call(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, keys = unpacked(rows, self.sizes[1])
        return self.calls.on_kept_call(self.plan, keys, self._images(images))

    def _on_backward(self, rows: np.ndarray) -> np.ndarray:
        tokens, cotangents, images, keys = unpacked(rows, 2, *self.sizes)
        given = cotangents.view(np.float32).reshape((len(rows), *self.plan.shape))
        return self.calls.on_backward(self.plan, tokens, keys, self._images(images), given)

    def _vmapped(self, function: Callable) -> Callable:
        vmapped, plan = custom_vmap(function), self.plan

        @vmapped.def_vmap
        def rule(
            size: int, batched: list[bool], keys: Array, images: Array
        ) -> tuple[ArrayTree, ArrayTree]:
            of_keys, of_images = batched
            if not plan.random and not of_images:  # keys change nothing
                found = vmapped(keys[0], images)
                return found, jax.tree.map(lambda _: False, found)
            # Equal keys have equal draws, which one call for all of them would not give.
            if plan.folds and (of_keys or not plan.random):
                found = unfolded(size, vmapped(*folded(size, batched, (keys, images))))
            else:
                each = lambda i: vmapped(
                    keys[i] if of_keys else keys, images[i] if of_images else images
                )
                found = jax.lax.map(each, jnp.arange(size))
            return found, jax.tree.map(lambda _: True, found)

        return vmapped


def called_back(function: Callable, shapes: ArrayTree, rows: Array) -> Any:
    """The results of ``function(rows)``, a function of NumPy, with these shapes.

    On a CPU by JAX's buffer callback, which takes 0.01 ms where a pure callback takes 0.2 ms.
    """
    if buffer_callback is None or jax.default_backend() != "cpu":
        return jax.pure_callback(lambda rows: function(np.asarray(rows)), shapes, rows)

    def write(context: object, results: object, rows: object) -> None:
        found = jax.tree.leaves(function(np.asarray(rows)))
        for result, value in zip(jax.tree.leaves(results), found, strict=True):
            np.asarray(result)[...] = value

    return buffer_callback(write, shapes)(rows)


def _with_residuals(found: tuple[Array, Array], *given: Array) -> tuple[Array, tuple[Array, ...]]:
    answers, tokens = found
    return answers, (tokens, *given)


def folded(size: int, batched: list[bool], arrays: tuple[Array, ...]) -> list[Array]:
    """Arrays ``[size, batch, ...]`` (or ``[batch, ...]`` for all alike) as ``[size · batch, ...]``."""
    spread = lambda x, has: x if has else jnp.broadcast_to(x, (size, *x.shape))
    whole = [spread(x, has) for x, has in zip(arrays, batched, strict=True)]
    return [x.reshape((-1, *x.shape[2:])) for x in whole]


def unfolded(size: int, tree: object) -> Any:
    """The reverse of :func:`folded`, of a tree of arrays."""
    return jax.tree.map(lambda x: x.reshape((size, -1, *x.shape[1:])), tree)


def packed(*arrays: Array) -> Array:
    """Arrays ``[batch, ...]`` of 32 bits as one, ``[batch, words]`` uint32."""
    words = [jax.lax.bitcast_convert_type(x, jnp.uint32) for x in arrays]
    return jnp.concatenate([x.reshape(x.shape[0], -1) for x in words], axis=1)


def unpacked(rows: np.ndarray, *sizes: int) -> list[np.ndarray]:
    """The parts of :func:`packed` rows: of these sizes, and what is left."""
    parts = np.split(rows, np.cumsum(sizes), axis=1)
    return [np.ascontiguousarray(part) for part in parts]
