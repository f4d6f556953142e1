"""docs/own_model.md: a PyTorch classifier called back, and the same network converted."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, keys_for

import purify_jax as pj


@pytest.fixture(scope="module")
def both(golden, golden_classifier):
    """(logits_fn that calls PyTorch, logits_fn in JAX) of the digits convnet with the same weights."""
    torch = pytest.importorskip("torch")
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "own_model.md").read_text(), re.DOTALL
    )
    (source,) = [block for block in blocks if "def logits_from_torch" in block]
    scope = {}
    exec(compile(source, "own_model.md", "exec"), scope)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(512, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 10),
    )
    data = golden("autoattack_digits")
    state = {
        k.removeprefix("state_dict/"): torch.from_numpy(data[k])
        for k in data.files
        if "state_dict" in k
    }
    module.load_state_dict(state)
    return scope["logits_from_torch"](module, 10), golden_classifier[0]


def test_values_and_gradients_agree(both, defense, golden_classifier):
    called, converted = both
    _, images, labels = golden_classifier
    images, labels, keys = images[:8], labels[:8], keys_for(8)
    np.testing.assert_allclose(jax.jit(called)(images), converted(images), atol=1e-4)
    for gradient in (pj.attacks.bpda, pj.attacks.exact):
        found, expected = (
            jax.jit(gradient(pj.defend(defense.purifier, f)))(keys, images, labels)
            for f in (called, converted)
        )
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found[0], expected[0], rtol=2e-2, atol=1e-3)
    blind = [jax.jit(pj.attacks.blind(f))(keys, images, labels)[0] for f in (called, converted)]
    np.testing.assert_allclose(*blind, atol=1e-4)


def test_a_called_back_classifier_is_evaluated(both, defense, golden_classifier):
    called, converted = both
    _, images, labels = golden_classifier
    data = pj.data.Dataset("golden", "test", np.asarray(images[:16]), np.asarray(labels[:16]), 10)
    tables = []
    for f in (called, converted):
        attack = pj.attacks.pgd(pj.attacks.blind(f), epsilon=0.1, step_size=0.03, num_steps=5)
        model = pj.defend(defense.purifier, f)
        tables.append(
            pj.evaluation.evaluate(jax.random.key(0), model, {"blind": attack}, data, draws=2)
        )
    same = [a["one_draw"] == b["one_draw"] for a, b in zip(*tables, strict=True)]
    assert np.mean(same) > 0.95


def test_a_plain_function_defends(defense):
    weights = jax.random.normal(jax.random.key(0), (64, 10))
    logits_fn = lambda images: (images.reshape(images.shape[0], -1) - 0.5) @ weights
    found = pj.defend(defense.purifier, logits_fn)(keys_for(3), jnp.full((3, 8, 8, 1), 0.5))
    np.testing.assert_allclose(jnp.exp(found).sum(-1), 1, rtol=1e-5)
