"""Every public function in every mode of JAX and inside a user's own transformations, with equal values."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import purify_jax as pj
from purify_jax.devices import sharding
from tests.modes.everything import IMAGES, LABELS, everything
from tests.modes.test_prng import equations

TABLE = everything()
#: Networks take seconds to trace each, so they are traced in the modes that they can fail in.
FUNCTIONS = [name for name in TABLE if not name.startswith("network ")]
NETWORKS = [name for name in TABLE if name.startswith("network ")]
#: Modes that change no value, and raise where code is not as they want it.
STRICT = {
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_enable_checks": True,
}
#: A few of each kind, whose values are computed.
FEW = [
    "purifier adp", "purifier mala", "purifier jpeg", "loss dsm per_sigma", "defense vote",
    "attack pgd linf, bare", "attack momentum linf, bare", "attack apgd linf, bare",
    "attack square, published", "evaluation counts", "training crop",
]  # fmt: skip


@contextlib.contextmanager
def mode(**options):
    """JAX's options, as ``jax.config.update`` sets them, for a while."""
    before = {name: getattr(jax.config, name) for name in options}
    try:
        for name, value in options.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def arguments():
    keys = pj.image_keys(jax.random.key(0), np.arange(2))
    return keys, jnp.asarray(IMAGES), jnp.asarray(LABELS)


def draws(program):
    """What a traced program draws: bits and shapes, in order."""
    return [
        (e.params["bit_width"], e.params["shape"])
        for e in equations(program)
        if e.primitive.name == "random_bits"
    ]


def _close(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


# --- traced -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FUNCTIONS, *NETWORKS])
def test_strict_promotion_of_types_and_ranks(name):
    with mode(**STRICT):
        jax.eval_shape(TABLE[name], *arguments())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_x64_draws_the_same_bits_and_returns_the_same_types(name):
    expected = jax.make_jaxpr(TABLE[name])(*arguments())
    with mode(jax_enable_x64=True):
        found = jax.make_jaxpr(TABLE[name])(*arguments())
    assert draws(found.jaxpr) == draws(expected.jaxpr)
    types = lambda traced: [(a.shape, a.dtype) for a in traced.out_avals]
    assert types(found) == types(expected)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_inside_a_users_shard_map(name):
    """JAX checks there that what a loop carries varies over the devices as its inputs do."""
    mesh, each = sharding.data_mesh(jax.devices()[:1]), PartitionSpec(sharding.AXIS)
    spread = jax.shard_map(TABLE[name], mesh=mesh, in_specs=each, out_specs=each)
    found, expected = (jax.eval_shape(f, *arguments()) for f in (spread, TABLE[name]))
    shapes = lambda tree: [(a.shape, a.dtype) for a in jax.tree.leaves(tree)]
    assert shapes(found) == shapes(expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_inside_a_users_shard_map_and_under_x64(name):
    test_inside_a_users_shard_map(name)
    test_x64_draws_the_same_bits_and_returns_the_same_types(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_users_vmap_and_leaks_of_tracers(name):
    two = jax.tree.map(lambda a: jnp.stack([a, a]), arguments())
    with mode(jax_check_tracer_leaks=True):
        jax.eval_shape(jax.vmap(TABLE[name]), *two)


# --- computed ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expected():
    found = {}

    def of(name):
        if name not in found:
            found[name] = jax.device_get(jax.jit(TABLE[name])(*arguments()))
        return found[name]

    return of


@pytest.mark.parametrize("name", FEW)
def test_values_under_x64(expected, name):
    wanted = expected(name)
    with mode(jax_enable_x64=True):
        _close(jax.jit(TABLE[name])(*arguments()), wanted)


@pytest.mark.parametrize("name", FEW[:1])
def test_values_inside_vmap_pmap_and_shard_map(expected, name):
    wanted = expected(name)
    one = jax.tree.map(lambda a: a[None], arguments())
    for transform in (jax.vmap, jax.pmap):
        _close(jax.tree.map(lambda a: a[0], transform(TABLE[name])(*one)), wanted)
    mesh, each = sharding.data_mesh(jax.devices()[:1]), PartitionSpec(sharding.AXIS)
    spread = jax.shard_map(TABLE[name], mesh=mesh, in_specs=each, out_specs=each)
    _close(jax.jit(spread)(*arguments()), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_without_jit_and_with_checks_for_nan(expected, name):
    wanted = expected(name)
    with mode(jax_disable_jit=True, jax_debug_nans=True):
        _close(TABLE[name](*arguments()), wanted)


def test_weights_in_float64_are_attacked_under_x64():
    """As NumPy makes them: the loss is float64, the images stay float32."""
    weights = np.random.default_rng(0).normal(size=(16, 4))
    with mode(jax_enable_x64=True):
        defense = pj.undefended(lambda x: x.reshape(x.shape[0], -1) @ weights)
        exact, ball = (
            pj.attacks.ExactGradient(defense),
            {"epsilon": np.float64(0.1), "num_steps": 2},
        )
        for attack in (
            pj.attacks.PGD(exact, **ball), pj.attacks.MomentumPGD(exact, **ball), pj.attacks.APGD(exact, **ball),
            pj.attacks.Square(defense, epsilon=0.1, num_queries=2),
        ):  # fmt: skip
            found = jax.eval_shape(attack, *arguments())
            assert (found.shape, found.dtype) == (IMAGES.shape, np.float32)


@pytest.mark.ci
@pytest.mark.parametrize("options", [STRICT, {"jax_enable_x64": True}, {"jax_disable_jit": True}])
def test_an_evaluation_is_the_same_in_every_mode(digits_test, options):
    """Attack, scoring, costs and certification, end to end."""
    few = digits_test.take(3)

    def run():
        defense = pj.undefended(lambda x: x.reshape(x.shape[0], -1)[:, :10])
        attack = pj.attacks.PGD(pj.attacks.ExactGradient(defense), epsilon=0.3, num_steps=2)
        records = pj.evaluate(jax.random.key(0), defense, {"pgd": attack}, few, draws=1)
        certified = pj.certify(jax.random.key(0), defense, few, sigma=0.1, n0=2, n=3)
        image = few.batch(np.arange(1))[0]
        passes = pj.costs.count(
            lambda d: attack.replace(gradient=pj.attacks.ExactGradient(d)), defense, image
        )
        drop = lambda r: {k: v for k, v in r.items() if k not in ("loss", "own_loss", "l2", "linf")}
        return [drop(r) for r in records], certified, passes

    expected = run()
    with mode(**options):
        assert run() == expected
