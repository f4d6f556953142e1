"""Outputs and inputs of modules that are bridged: kinds, precisions, and what is refused."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import keys_for

import purify_jax as pj
from purify_jax.bridges import defense_from_torch, logits_from_torch, purifier_from_torch

torch = pytest.importorskip("torch", reason="PyTorch is not installed (make torch)")
modules = pytest.importorskip("tests.bridges.torch_modules")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).uniform(0.1, 0.9, (4, 8, 8, 1)).astype(np.float32)


HOW = {
    "logits": lambda z: z,
    "log_probabilities": lambda z: z.log_softmax(-1),
    "probabilities": lambda z: z.softmax(-1),
    "probabilities, from a mean": lambda z: torch.nn.functional.softmax(z, dim=1) / 1.0,
    "tuple": lambda z: (z, None),
    "dictionary": lambda z: {"features": z[:, :3], "logits": z},
    "attribute": lambda z: types.SimpleNamespace(hidden=None, logits=z),
    "half": lambda z: z.half(),
}


@pytest.mark.parametrize("how", HOW)
def test_outputs_of_every_kind_are_log_probabilities(images, how):
    module = modules.Answering(HOW[how])
    defense = defense_from_torch(module, 10, images=images)
    logits = module.classifier(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    expected = torch.log_softmax(logits, -1).detach().numpy()
    np.testing.assert_allclose(
        defense(keys_for(4), images), expected, atol=2e-3 if how == "half" else 1e-5
    )
    kind = how.split(",")[0]
    assert defense.traits.output == (kind if "prob" in how else "logits")


def test_a_softmax_is_not_rounded_before_its_logarithm(images):
    module = modules.Answering(lambda z: (200 * z).softmax(-1))
    found = defense_from_torch(module, images=images)(keys_for(4), images)
    logits = 200 * module.classifier(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(found, torch.log_softmax(logits, -1).detach(), rtol=1e-4)
    assert float(found.min()) < -110  # float32 ends at exp(−103)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_modules_of_other_precisions(images, dtype):
    module = modules.linear().to(getattr(torch, dtype))
    defense = defense_from_torch(module, images=images)
    assert defense.traits.precision == dtype
    expected = defense_from_torch(modules.linear(), images=images)(keys_for(4), images)
    found, pull = jax.vjp(lambda x: defense(keys_for(4), x), images)
    np.testing.assert_allclose(found, expected, atol=0.03)
    assert found.dtype == pull(found)[0].dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: defense_from_torch("a.pt"), "module: got str, expected a torch.nn.Module, or a f"),
        (lambda x: defense_from_torch(modules.linear(), 0), "num_classes: got 0, expected a whole n"),
        (lambda x: defense_from_torch(modules.linear(), 7)(keys_for(4), x), "module: returned 10 numbers per image, expected num_classes = 7"),
        (lambda x: defense_from_torch(torch.nn.Identity(), images=x), "module: returned shape (4, 1, 8, 8) for 4 images, expected [batch, classes]"),
        (lambda x: purifier_from_torch(modules.linear(), images=x), "expected [batch, channels, height, width]"),
        (lambda x: defense_from_torch(lambda x: None, images=x), "module: returned a NoneType, expected a tensor"),
        (lambda x: defense_from_torch(modules.linear(), mode="test"), "mode: got 'test', expected one of"),
        (lambda x: defense_from_torch(modules.linear(), output="probabilities", images=x), "output: declared probabilities, measured logits"),
        (lambda x: defense_from_torch(modules.Noisy(), draws="none", images=x), "draws: declared none, measured per image"),
        (lambda x: logits_from_torch(modules.Noisy(), 10)(x), "module: its answers are random (torch), expected"),
        (lambda x: defense_from_torch(modules.linear(), images=255 * x), "images: values lie in"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(images, call, message):
    with pytest.raises(pj.InputError) as error:
        call(images)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_probabilities_declared_as_logits_are_said(images):
    module = modules.Answering(HOW["probabilities"])
    with pytest.warns(UserWarning, match="output: declared logits, measured probabilities"):
        defense = defense_from_torch(module, output="logits", images=images)
    assert float(jnp.exp(defense(keys_for(4), images)).max()) < 0.25
