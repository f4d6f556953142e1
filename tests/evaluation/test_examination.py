"""What an examination finds in small defenses, in PyTorch and in JAX, whose properties are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purify_jax as pj
from purify_jax.evaluation.probes.findings import expected_range

WEIGHTS = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
IMAGES = np.random.default_rng(1).uniform(size=(8, 8, 8, 1)).astype(np.float32)
LABELS = (IMAGES.reshape(8, -1) @ WEIGHTS).argmax(-1)


def logits(images):
    return images.reshape(len(images), -1) @ WEIGHTS


def smooth(keys, images):
    return jax.nn.log_softmax(logits(images))


def noisy(keys, images):
    return smooth(keys, images + 0.2 * pj.keys.normal_like(keys, images))


@jax.custom_vjp
def doubled_backwards(images):
    return images


doubled_backwards.defvjp(lambda x: (x, None), lambda _, g: (3 * g,))

IN_JAX = {
    "deterministic": (smooth, {"draws": "none", "gradient": "derivative", "actions": set()}),
    "noise": (noisy, {"draws": "per image", "gradient": "derivative", "actions": {"randomness"}}),
    "one key for all": (
        lambda keys, x: noisy(jnp.broadcast_to(keys[:1], keys.shape), x),
        {"draws": "per call", "independent": True, "actions": {"randomness"}},
    ),
    "keys of others": (
        lambda keys, x: noisy(jnp.broadcast_to(keys[-1:], keys.shape), x),
        {"draws": "per call", "actions": {"randomness"}},
    ),
    "probabilities": (
        lambda keys, x: jax.nn.softmax(logits(x)),
        {"output": "probabilities", "gradient": "derivative"},
    ),
    "logits": (lambda keys, x: logits(x), {"output": "logits", "actions": set()}),
    "rounded": (
        lambda keys, x: smooth(keys, jnp.round(8 * x) / 8),
        {"gradient": "zero", "separate": False, "actions": {"gradient"}},
    ),
    "purifier that rounds": (
        pj.Defense(pj.purifiers.Filter(lambda x: jnp.round(8 * x) / 8), logits),
        {"gradient": "zero", "separate": True, "output": "log_probabilities"},
    ),
    "straight-through": (
        lambda keys, x: smooth(keys, x + jax.lax.stop_gradient(jnp.round(8 * x) / 8 - x)),
        {"gradient": "not the derivative"},
    ),
    "scaled backwards": (
        lambda keys, x: smooth(keys, doubled_backwards(x)),
        {"gradient": "not the derivative"},
    ),
    "root of zero": (
        lambda keys, x: smooth(keys, x + jnp.sqrt(x - x)),
        {"gradient": "not finite", "actions": {"gradient"}},
    ),
    "statistics of the batch": (
        lambda keys, x: smooth(keys, x - jnp.mean(x, axis=0)),
        {"independent": False, "actions": {"batch"}},
    ),
    "mirrored range": (
        lambda keys, x: smooth(keys, (x + 1) / 2),
        {"accuracy": 1.0, "at": "2 x - 1"},
    ),
}  # fmt: skip


def check(examination, expected):
    expected = dict(expected)
    actions = expected.pop("actions", None)
    if actions is not None:
        # Random weights give confident answers, which is no matter here.
        assert {f.name for f in examination.actions} - {"saturation", "accuracy"} == actions
    if "at" in expected:
        assert examination.accuracy[expected.pop("at")] == expected.pop("accuracy")
    assert {name: getattr(examination, name) for name in expected} == expected
    assert all("\n" not in str(finding) for finding in examination.findings)
    assert len(str(examination).splitlines()) == len(examination.findings) == 12


@pytest.mark.parametrize("name", IN_JAX)
def test_a_function_of_jax(name):
    defense, expected = IN_JAX[name]
    found = pj.examine(defense, IMAGES, LABELS)
    check(found, expected)
    answers = found.defense(pj.image_keys(jax.random.key(0), np.arange(8)), IMAGES)
    np.testing.assert_allclose(jnp.exp(answers).sum(-1), 1, rtol=1e-5)


def test_a_wrong_input_range_is_named():
    # Class 3 wins where the mean of all pixels is far from 127.
    bytes_ = lambda keys, x: (
        smooth(keys, x) + 1e4 * (jnp.abs(jnp.mean(x) - 127) > 60) * jnp.eye(10)[3]
    )
    labels = np.asarray(bytes_(None, 255 * IMAGES).argmax(-1))
    assert (labels != 3).sum() > 3
    found = pj.examine(bytes_, IMAGES, np.asarray(labels))
    assert found.accuracy["255 x"] == 1.0
    assert found.accuracy["x"] < 0.9
    assert found.expects == "255 x"
    assert any("seems to expect 255 x" in f.action for f in found.findings)


def test_a_better_range_on_one_image_is_chance():
    few = np.array([True] * 2 + [False] * 6)
    more = np.array([True] * 3 + [False] * 5)
    assert expected_range({"x": few, "255 x": ~few & more, "2 x - 1": more}) == ""
    # Six images gained and none lost: one in 64 by chance, of two alternatives one in 32.
    all_, none = np.ones(8, bool), np.zeros(8, bool)
    assert expected_range({"x": few, "255 x": none, "2 x - 1": all_}) == "2 x - 1"
    # With five gained it is one in 16.
    assert expected_range({"x": more, "255 x": none, "2 x - 1": all_}) == ""
    # The best alternative may be chance and the other one not: +12 - 6 and +8 - 0 of 64.
    right = np.arange(64) < 30
    noisy = (np.arange(64) >= 6) & (np.arange(64) < 42)
    assert expected_range({"x": right, "255 x": noisy, "2 x - 1": np.arange(64) < 38}) == "2 x - 1"
    # Beyond chance, and still too little to say that another range is meant.
    assert expected_range({"x": np.arange(128) < 116, "255 x": np.arange(128) < 124}) == ""


def test_costs_are_per_image():
    found = pj.examine(smooth, IMAGES, LABELS)
    assert 0 < found.forward_ms < 1000
    assert 0 < found.backward_ms < 1000
    assert found.forward_mb >= 10 * 4 / 1e6  # the answers themselves


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((smooth, 255 * IMAGES, LABELS), "images: values lie in"),
        ((smooth, IMAGES, LABELS[:3]), "labels: got 3 for 8 images, expected one each"),
        ((smooth, IMAGES, LABELS + 90), "labels: values lie in"),
        ((lambda keys, x: x, IMAGES, LABELS), "defense: returned shape (8, 8, 8, 1) for 8 images"),
        (("defense.pt", IMAGES, LABELS), "module: got str, expected a torch.nn.Module"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    if arguments[0] == "defense.pt":
        pytest.importorskip("torch", reason="PyTorch is not installed (make torch)")
    with pytest.raises(pj.InputError) as error:
        pj.examine(*arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
