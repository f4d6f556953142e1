"""Networks: shapes for any image size, description round trip."""

import jax
import jax.numpy as jnp
import pytest

from purify_jax import networks
from purify_jax.types import InputError

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
    output, _ = network.init_with_output(jax.random.key(0), images)
    outputs = getattr(network, "num_outputs", None)
    assert output.shape == (images.shape if outputs is None else (2, 7))


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: type(n).__name__)
def test_description_builds_an_equal_network(network):
    assert networks.build(networks.describe(network)) == network


def test_images_do_not_see_each_other():
    """No network mixes the batch: an image's output is the same in any company."""
    images = jax.random.uniform(jax.random.key(1), (4, 8, 8, 1))
    for network in NETWORKS:
        variables = network.init(jax.random.key(0), images)
        whole = network.apply(variables, images)
        assert jnp.allclose(whole[2:3], network.apply(variables, images[2:3]), atol=1e-5)


def test_unknown_names_and_fields():
    with pytest.raises(InputError, match="network: got 'Nope', expected one of"):
        networks.build({"name": "Nope"})
    with pytest.raises(InputError, match="network MLP: .*'colour'"):
        networks.build({"name": "MLP", "colour": 3})
