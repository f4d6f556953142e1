"""Every network computes float64 images in float64, and returns the images' type."""

import jax
import jax.numpy as jnp
import pytest

from purify_jax import networks

BATCH = 7
IMAGES = (BATCH, 32, 32, 3)


def _inputs(network, dtype):
    """What a network is called with, a batch of it in one type."""
    examples = networks.example_inputs(network, IMAGES[1:])
    return [jax.ShapeDtypeStruct((BATCH, *x.shape[1:]), dtype) for x in examples]


def _types(jaxpr):
    """The types of all images that a program computes, in its inner programs too.

    Batch statistics and interpolation weights, smaller arrays, may stay in their own type.
    """
    for equation in jaxpr.eqns:
        yield from (v.aval.dtype for v in equation.outvars if v.aval.shape[:1] == (BATCH,))
        for value in equation.params.values():
            if hasattr(value, "jaxpr"):
                yield from _types(value.jaxpr)


@pytest.mark.parametrize("name", sorted(networks.BY_NAME))
@pytest.mark.parametrize("parameters", ["float32", "float64"])
def test_float64_is_kept(name, parameters):
    network = networks.BY_NAME[name]()
    variables = jax.eval_shape(network.init, jax.random.key(0), *_inputs(network, "float32"))
    with jax.enable_x64(True):
        cast = lambda x: jax.ShapeDtypeStruct(x.shape, parameters)
        inputs = _inputs(network, "float64")
        traced = jax.make_jaxpr(network.apply)(jax.tree.map(cast, variables), *inputs)
    assert [aval.dtype for aval in traced.out_avals] == [jnp.float64]
    computed = {t for t in _types(traced.jaxpr) if jnp.issubdtype(t, jnp.floating)}
    assert computed == {jnp.dtype("float64")}


@pytest.mark.parametrize("name", sorted(networks.BY_NAME))
def test_float32_stays_float32(name):
    network = networks.BY_NAME[name]()
    inputs = _inputs(network, "float32")
    variables = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    traced = jax.make_jaxpr(network.apply)(variables, *inputs)
    assert [aval.dtype for aval in traced.out_avals] == [jnp.float32]
