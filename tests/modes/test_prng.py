"""Keys of every PRNG implementation, typed or raw: the same draws, and none that depends on the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purify_jax as pj
from purify_jax import keys as streams
from purify_jax.checks import InputError
from purify_jax.costs import programs
from purify_jax.evaluation.records import open_records
from tests.modes.everything import IMAGES, LABELS, everything

TABLE = everything()
IMPLEMENTATIONS = ("rbg", "unsafe_rbg")


def equations(program):
    """All equations of a traced program and of the programs inside it."""
    for equation in program.eqns:
        yield equation
        for inside in programs(equation.params):
            yield from equations(inside)


@pytest.mark.parametrize("name", [n for n in TABLE if not n.startswith("network ")])
def test_nothing_draws_from_or_folds_an_rbg_key(name):
    """``vmap`` over such keys draws the whole batch from the first one: they are converted before."""
    keys = jax.random.split(jax.random.key(0, impl="rbg"), 2)
    traced = jax.make_jaxpr(TABLE[name])(keys, IMAGES, LABELS).jaxpr
    is_rbg = lambda variable: "rbg" in str(getattr(variable.aval, "dtype", ""))
    drawn = {
        e.primitive.name
        for e in equations(traced)
        if e.primitive.name.startswith("random_") and any(map(is_rbg, e.invars))
    }
    assert drawn <= {"random_unwrap"}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["purifier adp", "training crop"])
def test_an_images_answer_does_not_depend_on_its_batch(name, implementation):
    run = jax.jit(TABLE[name])
    keys = jax.random.split(jax.random.key(0, impl=implementation), 2)
    together, alone = run(keys, IMAGES, LABELS), run(keys[1:], IMAGES[1:], LABELS[1:])
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a[1:], b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["purifier adp", "evaluation counts", "training crop"])
def test_all_kinds_of_keys_give_the_numbers_of_threefry(name):
    """A seed means the same under every implementation, and as a raw key."""
    run = jax.jit(TABLE[name])
    of = lambda key: run(pj.image_keys(key, np.arange(2)), IMAGES, LABELS)
    expected = jax.tree.leaves(of(jax.random.key(7)))
    raw = jax.random.key_data(pj.image_keys(jax.random.key(7), np.arange(2)))
    made = [of(jax.random.key(7, impl="rbg")), of(jax.random.PRNGKey(7)), run(raw, IMAGES, LABELS)]
    for found in made:
        for a, b in zip(jax.tree.leaves(found), expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_work_directory_continues_under_another_implementation(tmp_path):
    how = pj.Execution(workdir=tmp_path)
    compute = lambda: [{"attack": "a", "index": 0}]
    made = [jax.random.key(3), jax.random.key(3, impl="rbg"), jax.random.PRNGKey(3)]
    for key in made:  # another key is refused
        file = open_records(how, "records", key, lambda: {})
        assert file.batch("a", [0], compute) == compute()
        file.close()
    with pytest.raises(InputError, match="key"):
        open_records(how, "records", jax.random.key(4), lambda: {})


@pytest.mark.parametrize(
    "bad", [3, 0.5, "key", jnp.zeros(2), np.zeros((2, 3), np.uint32), np.uint32(1), None]
)
def test_what_is_no_key_is_refused(bad):
    with pytest.raises(InputError, match="keys: got .*expected keys of"):
        streams.threefry(bad)


def test_typed_threefry_keys_stay_what_they_are():
    keys = jax.random.split(jax.random.key(0), 3)
    assert streams.threefry(keys) is keys
