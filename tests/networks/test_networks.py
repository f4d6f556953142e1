"""Networks: shapes for any image size, description round trip."""

import jax
import jax.numpy as jnp
import pytest
from conftest import apply, init

from purify_jax import networks
from purify_jax.checks import InputError
from purify_jax.networks import ncsnv2

NETWORKS = [
    networks.MLP(features=(16, 16)),
    networks.MLP(features=(16,), num_outputs=7),
    networks.ConvNet(features=(4, 8), hidden=16, num_outputs=7),
    networks.UNet(features=(4, 8)),
]


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: type(n).__name__)
@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 7, 3)])
def test_output_shape(network, shape):
    images = jnp.zeros((2, *shape))
    output, _ = jax.jit(network.init_with_output)(jax.random.key(0), images)
    outputs = getattr(network, "num_outputs", None)
    assert output.shape == (images.shape if outputs is None else (2, 7))


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: type(n).__name__)
def test_description_builds_an_equal_network(network):
    assert networks.build(networks.describe(network)) == network


@pytest.mark.ci
def test_images_do_not_see_each_other():
    """No network mixes the batch: an image's output is the same in any company."""
    images = jax.random.uniform(jax.random.key(1), (4, 8, 8, 1))
    for network in NETWORKS:
        variables = init(network, jax.random.key(0), images)
        whole = apply(network, variables, images)
        assert jnp.allclose(whole[2:3], apply(network, variables, images[2:3]), atol=1e-5)


def test_unknown_names_and_fields():
    with pytest.raises(InputError, match="network: got 'Nope', expected one of"):
        networks.build({"name": "Nope"})
    with pytest.raises(InputError, match="network MLP: .*'colour'"):
        networks.build({"name": "MLP", "colour": 3})


@pytest.mark.parametrize(
    "network",
    [*NETWORKS, networks.WideResNet(depth=10, width=1)],
    ids=lambda n: type(n).__name__,
)
def test_bfloat16_computes_nearly_the_same_with_float32_parameters(network):
    images = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3))
    half = network.clone(dtype="bfloat16")
    variables = init(half, jax.random.key(0), images)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}

    def loss(network, params):
        output = network.apply({**variables, "params": params}, images)
        assert output.dtype == jnp.float32
        return jnp.sum(output**2), output

    gradient = jax.jit(jax.grad(loss, argnums=1, has_aux=True), static_argnums=0)
    (exact, expected), (rough, found) = (gradient(n, variables["params"]) for n in (network, half))
    # A bfloat16 has 8 significant bits: 0.4% a rounding, and these are up to some forty deep.
    assert jnp.abs(found - expected).max() < 0.05 * jnp.abs(expected).max()
    assert float(jnp.abs(found - expected).max()) > 0  # it is not float32 in disguise
    a, b = (jnp.concatenate([x.ravel() for x in jax.tree.leaves(g)]) for g in (exact, rough))
    assert jnp.vdot(a, b) > 0.98 * jnp.linalg.norm(a) * jnp.linalg.norm(b)


def test_elu_and_its_two_derivatives():
    x = jnp.array([-20.0, -1.0, -1e-3, 0.5, 30.0])
    first, second = jax.grad(ncsnv2.elu), jax.grad(jax.grad(ncsnv2.elu))
    assert jnp.allclose(ncsnv2.elu(x), jax.nn.elu(x), atol=1e-7)
    assert jnp.allclose(jax.vmap(first)(x), jnp.where(x > 0, 1.0, jnp.exp(x)), atol=1e-6)
    assert jnp.allclose(jax.vmap(second)(x), jnp.where(x > 0, 0.0, jnp.exp(x)), atol=1e-6)
