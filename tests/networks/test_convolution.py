"""The convolution primitive against XLA's own, to second order, in float64."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, XLA_FLAGS, environment

from purify_jax.costs import multiplications
from purify_jax.networks import convolution
from purify_jax.networks.convolution import convolve

CASES = [
    ((1, 1), "SAME", (1, 1), 3, 7),
    ((2, 2), "SAME", (1, 1), 3, 7),
    ((2, 2), "SAME", (1, 1), 3, 8),
    ((1, 1), "SAME", (2, 2), 3, 9),
    ((2, 2), ((1, 1), (0, 2)), (1, 1), 3, 8),
    ((1, 1), "VALID", (1, 1), 1, 5),
    ((3, 3), ((0, 0), (0, 0)), (1, 1), 1, 8),
    ((1, 1), ((4, 4), (4, 4)), (4, 4), 3, 4),
    ((2, 2), "VALID", (1, 1), 3, 8),
    ((3, 3), ((1, 0), (2, 1)), (2, 2), 2, 9),
]


# Few images and many: the kernel's gradient takes another way.
@pytest.mark.parametrize("batch", [2, 8])
@pytest.mark.parametrize(("strides", "padding", "dilation", "kernel", "size"), CASES)
def test_values_and_derivatives(strides, padding, dilation, kernel, size, batch):
    with jax.enable_x64():
        x = jax.random.normal(jax.random.key(0), (batch, size, size, 3))
        w = jax.random.normal(jax.random.key(1), (kernel, kernel, 3, 4))

        def native(x, w):
            return jax.lax.conv_general_dilated(
                x, w, strides, padding, rhs_dilation=dilation,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )  # fmt: skip

        ours = lambda x, w: convolve(x, w, strides, padding, dilation)
        loss = lambda conv: lambda x, w: jnp.sum(jnp.tanh(conv(x, w)) ** 3)
        first = lambda conv: jax.grad(loss(conv), (0, 1))
        norm = lambda conv: lambda x, w: sum(jnp.sum(g**2) for g in first(conv)(x, w))
        second = lambda conv: jax.grad(norm(conv), (0, 1))
        tangent = lambda conv: lambda x, w: jax.jvp(first(conv), (x, w), (x, w))[1]
        for transform in (lambda conv: conv, first, second, tangent):
            found, expected = (jax.jit(transform(conv))(x, w) for conv in (ours, native))
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_the_kernels_gradient_of_each_image_under_vmap():
    x = jax.random.normal(jax.random.key(0), (5, 8, 8, 8, 3))
    w = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))
    gradient = jax.jit(jax.grad(lambda w, x: jnp.sum(jnp.tanh(convolve(x, w)) ** 3)))
    found = jax.jit(jax.vmap(gradient, (None, 0)))(w, x)
    for one, each in zip(found, x, strict=True):
        np.testing.assert_allclose(one, gradient(w, each), rtol=1e-4, atol=1e-4)


def test_no_device_gathers_the_others_images():
    """The kernel's gradient of a batch that is split among devices: sums are exchanged, images are not."""
    source = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from purify_jax.networks.convolution import convolve
from purify_jax.devices import sharding
mesh = sharding.default_mesh()
split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (mesh.axis_names, ()))
gradient = jax.grad(lambda w, x: jnp.sum(jnp.tanh(convolve(x, w)) ** 3))
x = jax.ShapeDtypeStruct((16, 8, 8, 3), jnp.float32, sharding=split)
w = jax.ShapeDtypeStruct((3, 3, 3, 4), jnp.float32, sharding=whole)
text = jax.jit(gradient).lower(w, x).compile().as_text()
print("all-reduce" in text, "all-gather" in text, "all-to-all" in text)
"""
    env = environment() | {"XLA_FLAGS": f"--xla_force_host_platform_device_count=4 {XLA_FLAGS}"}
    command = [sys.executable, "-c", source]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout == "True False False\n", done.stderr[-2000:]


def test_vmap_over_images_kernels_and_both():
    x = jax.random.normal(jax.random.key(0), (3, 2, 6, 6, 2))
    w = jax.random.normal(jax.random.key(1), (3, 3, 3, 2, 4))
    for axes, at in (((0, None), (x, w[0])), ((None, 0), (x[0], w)), ((0, 0), (x, w))):
        found = jax.vmap(convolve, in_axes=axes)(*at)
        pick = lambda a, i, axis: a if axis is None else a[i]
        rows = [
            convolve(*(pick(a, i, axis) for a, axis in zip(at, axes, strict=True)))
            for i in range(3)
        ]
        np.testing.assert_allclose(found, jnp.stack(rows), rtol=1e-4, atol=1e-5)


def test_multiplications_are_counted():
    native = lambda x, w: jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    images, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))
    # Two for each of 3·3·3 products, at 2·8·8 places and 5 channels.
    for function in (convolve, native):
        assert multiplications(function, images, kernel) == 2 * 27 * 2 * 64 * 5


@pytest.mark.parametrize("options", [{"feature_group_count": 2}, {"lhs_dilation": (2, 2)}])
def test_grouped_and_transposed_convolutions_are_refused(options):
    with pytest.raises(
        NotImplementedError, match="feature_group_count, lhs_dilation: got .* expected 1"
    ):
        convolution.conv_general_dilated(
            jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2)), (1, 1), "SAME", **options
        )
