"""Diffusion networks: published sizes, resampling filters, options that no golden file has."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_diffusions import compiled

from purify_jax.models import expected_shapes
from purify_jax.networks.diffusion import ADM, DDPMpp, SongUNet, edm_ncsnpp
from purify_jax.networks.diffusion.blocks import Attention
from purify_jax.networks.diffusion.resampling import BINOMIAL, BOX, double, halve

PUBLISHED = [
    ("edm_ddpmpp", SongUNet(), 32, 55_733_891),
    ("edm_ncsnpp", edm_ncsnpp(), 32, 56_397_827),
    ("score_sde", DDPMpp(), 32, 61_804_419),
    ("score_sde_deep", DDPMpp(num_blocks=8), 32, 106_632_579),
    ("adm_256", ADM(), 256, 552_814_086),
]


def shapes(network, side):
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    condition = jax.ShapeDtypeStruct((1,), jnp.float32)
    return jax.eval_shape(network.init, jax.random.key(0), images, condition)


def random_variables(network, side):
    """Normal values, none near zero on purpose, so that every path shows in the output."""
    rng = np.random.default_rng(1)
    draw = lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32)
    return jax.tree.map(draw, shapes(network, side))


@pytest.mark.parametrize(
    ("network", "side", "count"), [p[1:] for p in PUBLISHED], ids=[p[0] for p in PUBLISHED]
)
def test_published_parameter_counts(network, side, count):
    # The frequencies of Fourier features are constants, not parameters.
    found = expected_shapes(network, (side, side, 3))
    sizes = [int(np.prod(shape)) for name, shape in found.items() if name.startswith("params/")]
    assert sum(sizes) == count


def _line(signal, taps, up):
    """The filters by their definition, on one line of numbers."""
    taps = np.asarray(taps) / np.sum(taps)
    border = len(taps) // 2 - 1
    if up:
        full = np.zeros(2 * len(signal) + len(taps))
        for i, value in enumerate(signal):
            full[2 * i : 2 * i + len(taps)] += 2 * value * taps
        return full[border : border + 2 * len(signal)]
    padded = np.pad(signal, border)
    return np.array([padded[i : i + len(taps)] @ taps for i in range(0, len(signal), 2)])


@pytest.mark.parametrize("taps", [BOX, BINOMIAL, (1, 2, 4, 1)])
def test_resampling_filters_are_their_definitions(taps):
    images = np.random.default_rng(0).normal(size=(2, 6, 4, 3)).astype(np.float32)
    for resample, up in ((halve, False), (double, True)):
        expected = images
        for axis in (1, 2):
            expected = np.apply_along_axis(_line, axis, expected, taps, up)
        found = jax.jit(partial(resample, taps=taps))(images)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_attention_layouts_are_permutations_of_one_another():
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    x, kernel, proj = draw(1, 2, 2, 8), draw(8, 3, 2, 4), draw(8, 8)
    norm = {"scale": np.ones(8, np.float32), "bias": np.zeros(8, np.float32)}
    fixed = {"norm": norm, "proj": {"kernel": proj, "bias": draw(8)}}

    def output(axis, order):
        qkv = {"kernel": kernel.transpose(order).reshape(8, 24), "bias": np.zeros(24, np.float32)}
        attention = Attention(2, jnp.float32, axis)
        return jax.jit(attention.apply)({"params": {**fixed, "qkv": qkv}}, x)

    orders = ((0, 1, 2, 3), (0, 2, 1, 3), (0, 2, 3, 1))
    outputs = [output(axis, order) for axis, order in enumerate(orders)]
    assert jnp.abs(outputs[0] - x).max() > 0.1
    np.testing.assert_allclose(outputs[1], outputs[0], atol=1e-5)
    np.testing.assert_allclose(outputs[2], outputs[0], atol=1e-5)


@pytest.mark.ci
def test_adm_with_classes_and_bfloat16():
    network = ADM(
        features=8,
        multipliers=(1,),
        num_blocks=1,
        attention_rates=(1,),
        num_heads=2,
        joint_heads=False,
        num_classes=3,
        learned_variance=False,
    )
    images = jax.random.normal(jax.random.key(2), (2, 4, 4, 3))
    steps, labels = jnp.array([3.0, 700.0]), jnp.array([0, 2])
    variables = random_variables(network, 4)
    assert variables["params"]["label_emb"]["embedding"].shape == (3, 32)

    # The same image and step twice: what differs is the class.
    images, steps = images[:1].repeat(2, axis=0), steps[:1].repeat(2)

    def outputs(variables):
        both = (network.clone(dtype=dtype) for dtype in ("float32", "bfloat16"))
        return [n.apply(variables, images, steps, labels) for n in both]

    _, (wide, narrow) = compiled(outputs, variables)
    assert wide.shape == images.shape
    assert jnp.abs(wide[1] - wide[0]).max() > 1e-2
    assert narrow.dtype == jnp.float32
    assert 0 < jnp.abs(narrow - wide).mean() < 0.1 * jnp.abs(wide).std()


def test_ncsnpp_keeps_its_frequencies_out_of_the_parameters():
    found = shapes(edm_ncsnpp(features=8, multipliers=(1,), num_blocks=1, augment_dim=0), 8)
    assert found["constants"]["map_noise_freqs"].shape == (8,)
    assert "map_augment" not in found["params"]
    assert all("freqs" not in name for name in found["params"])
