"""Keys per image, and norms with safe gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purify_jax import arrays, checks, keys


def test_keys_depend_on_the_index_alone():
    whole = keys.image_keys(jax.random.key(0), np.arange(10))
    part = keys.image_keys(jax.random.key(0), np.array([7, 2]))
    data = jax.random.key_data
    np.testing.assert_array_equal(data(part), data(whole)[jnp.array([7, 2])])
    assert len(np.unique(np.asarray(data(whole)), axis=0)) == 10


def test_noise_of_an_image_depends_on_its_key_alone():
    one_each = keys.image_keys(jax.random.key(0), np.arange(6))
    whole = keys.normal_like(one_each, jnp.zeros((6, 3, 3, 1)))
    part = keys.normal_like(one_each[2:4], jnp.zeros((2, 3, 3, 1)))
    np.testing.assert_array_equal(part, whole[2:4])
    many = keys.normal_like(
        keys.image_keys(jax.random.key(1), np.arange(5000)), jnp.zeros((5000, 2, 2, 1))
    )
    assert abs(float(many.mean())) < 0.03
    assert abs(float(many.std()) - 1) < 0.03


def test_l2_norm_has_a_gradient_at_zero():
    images = jnp.zeros((2, 2, 2, 1)).at[1].set(2.0)
    value, gradient = jax.value_and_grad(lambda x: arrays.l2_norm(x).sum())(images)
    np.testing.assert_allclose(value, 4.0)
    np.testing.assert_allclose(gradient[0], 0.0)
    np.testing.assert_allclose(gradient[1], 0.5)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 3]), r"values lie in \[0, 3\], expected \[0, 2\]"),
        (np.array([-1, 1]), r"values lie in \[-1, 1\]"),
        (np.array([0.5]), "expected integers"),
        (np.array([[0]]), "got rank 2"),
    ],
)
def test_bad_labels_are_named(labels, message):
    with pytest.raises(checks.InputError, match=message):
        checks.check_labels(labels, 3)


def test_wrong_channels_are_named():
    with pytest.raises(checks.InputError, match=r"got \(4, 4, 3\) per image, expected \(4, 4, 1\)"):
        checks.check_images(np.zeros((1, 4, 4, 3), np.float32), shape=(4, 4, 1))
