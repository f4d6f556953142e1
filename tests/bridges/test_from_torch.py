"""Defenses in PyTorch as functions of JAX: draws, gradients, folding, what is left alone."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import keys_for

import purify_jax as pj
from purify_jax.bridges import (
    defense_from_torch,
    logits_from_torch,
    purifier_from_torch,
    torch_calls,
)
from purify_jax.bridges.generators import Generators

torch = pytest.importorskip("torch", reason="PyTorch is not installed (make torch)")
modules = pytest.importorskip("tests.bridges.torch_modules")
#: NumPy's global generator.
GLOBAL = np.random.mtrand._rand


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).uniform(0.1, 0.9, (4, 8, 8, 1)).astype(np.float32)


def folded_keys(samples, batch=4):
    return jax.vmap(lambda i: pj.fold_keys(keys_for(batch), i))(jnp.arange(samples))


def states():
    own = GLOBAL.get_state()
    return torch.get_rng_state().tolist(), own[1].tolist(), own[2], random.getstate()


@pytest.mark.parametrize("source", ["torch", "own", "numpy", "own numpy", "python"])
def test_keys_decide_the_draw_and_generators_are_restored(images, source):
    module = modules.Noisy(source)
    defense = defense_from_torch(module, images=images)
    assert (defense.traits.draws, defense.traits.repeatable) == ("per image", True)
    assert len(defense.traits.generators) == 1
    before, generator = states(), module.generator.get_state().tolist()
    numbers = module.held["numpy"].bit_generator.state
    found = defense(keys_for(4), images)
    torch.rand(3), GLOBAL.rand(3), random.random()
    np.testing.assert_array_equal(defense(keys_for(4), images), found)
    assert np.abs(defense(folded_keys(2)[1], images) - found).max() > 0.01
    torch.set_rng_state(torch.tensor(before[0], dtype=torch.uint8))
    defense(keys_for(4), images)
    assert states()[0] == before[0]
    assert module.generator.get_state().tolist() == generator
    assert module.held["numpy"].bit_generator.state == numbers


@pytest.mark.parametrize("graphs", [0, 4])
def test_the_gradient_belongs_to_the_forward_draw(images, graphs, monkeypatch):
    """With the graph of the forward pass, or with that pass computed again."""
    monkeypatch.setattr(torch_calls, "GRAPHS", graphs)
    module = modules.Noisy()
    defense = defense_from_torch(module, images=images)
    weights = module.classifier[1].weight.detach().numpy()
    value, pull = jax.vjp(lambda x: defense(keys_for(4), x), images)
    cotangents = np.random.default_rng(0).normal(size=value.shape).astype(np.float32)
    # Of log-softmax at the very draw: Wᵀ(c − p Σc).
    by_logits = cotangents - np.exp(value) * cotangents.sum(-1, keepdims=True)
    expected = (by_logits @ weights).reshape(images.shape)
    np.testing.assert_allclose(pull(jnp.asarray(cotangents))[0], expected, atol=1e-5)
    assert defense.counts == (1 + (graphs == 0), 4 + 4 * (graphs == 0), 1, 4)


def test_samples_fold_into_one_call(images):
    defense = defense_from_torch(modules.Noisy(), images=images)
    attack = pj.attacks.EOT(pj.attacks.ExactGradient(defense), num_samples=4)
    labels = jnp.zeros(4, jnp.int32)
    gradient, _ = pj.jit(attack)(keys_for(4), images, labels)
    assert defense.counts == (1, 16, 1, 16)
    again, _ = pj.jit(attack)(keys_for(4), images, labels)
    np.testing.assert_array_equal(gradient, again)
    answers = jax.vmap(lambda keys: defense(keys, images))(folded_keys(3))
    assert len(np.unique(np.round(np.asarray(answers[:, 0, 0]), 6))) == 3
    for other in (folded_keys(3)[0], folded_keys(3)[1]):
        assert (
            np.abs(jnp.diff(jnp.stack([defense(other, images), answers[0]]), axis=0)).max() > 0.01
        )


@pytest.mark.parametrize(
    ("make", "draws", "independent"),
    [
        (lambda: modules.Noisy("per call"), "per call", True),
        (modules.Ensemble, "per call", True),
        (modules.BatchNormed, "none", False),
    ],
)
def test_what_a_call_shares_is_not_folded(images, make, draws, independent):
    defense = defense_from_torch(make(), images=images)
    assert (defense.traits.draws, defense.traits.independent) == (draws, independent)
    keys, many = folded_keys(6), np.stack([images * s for s in (1, 0.9, 0.8, 0.7, 0.6, 0.5)])
    found = jax.jit(jax.vmap(defense))(keys, many)
    expected = np.stack([defense(k, x) for k, x in zip(keys, many, strict=True)])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    loss = lambda keys, x: defense(keys, x)[:, 0].sum()
    gradients = jax.jit(jax.vmap(jax.grad(loss, 1)))(keys, many)
    each = np.stack([jax.grad(loss, 1)(k, x) for k, x in zip(keys, many, strict=True)])
    np.testing.assert_allclose(gradients, each, atol=1e-6)


def test_equal_keys_have_equal_draws_under_vmap(images):
    """As finite differences need; and a vmapped cotangent pulls back through one draw."""
    defense = defense_from_torch(modules.Noisy(), images=images)
    keys, many = keys_for(4), np.stack([images, images * 0.5])
    found = jax.vmap(lambda x: defense(keys, x))(many)
    np.testing.assert_array_equal(found, np.stack([defense(keys, x) for x in many]))
    total = lambda many: jax.vmap(lambda x: defense(keys, x))(many)[..., 0].sum()
    one = jax.grad(lambda x: defense(keys, x)[..., 0].sum())
    np.testing.assert_allclose(
        jax.jit(jax.grad(total))(many), np.stack([one(x) for x in many]), atol=1e-6
    )
    jacobian = jax.jacrev(lambda x: defense(keys, x).sum(0))(images)
    np.testing.assert_allclose(jacobian[0], one(images), atol=1e-6)


def test_a_deterministic_module_is_called_once_for_all_keys(images):
    defense = defense_from_torch(modules.linear(), images=images)
    assert defense.is_deterministic
    assert all(defense.traits.promises.values())
    found = jax.vmap(lambda keys: defense(keys, images))(folded_keys(5))
    assert found.shape == (5, 4, 10)
    assert defense.counts.calls == 1


def test_ten_draws_are_ten_draws(images):
    """Records of a module that is right in half of its draws: the worst of ten is not the average."""

    class Coin(torch.nn.Module):
        def forward(self, x):
            return torch.stack([torch.randn(len(x)), torch.zeros(len(x))], dim=1)

    data = pj.data.Dataset(
        "coins", "test", np.repeat(images, 16, axis=0), np.zeros(64, np.int32), 2
    )
    records = pj.evaluate(jax.random.key(0), defense_from_torch(Coin()), {}, data, draws=10)
    right = sum(record["correct_draws"] for record in records)
    assert 0.42 < right / 640 < 0.58
    assert pj.accuracy(records, "clean", "all_draws").value < 0.05


@pytest.mark.parametrize(
    ("mode", "draws"), [(None, "per image"), ("eval", "none"), ("train", "per image")]
)
def test_modes_and_parameters_are_left_alone(images, mode, draws):
    module = torch.nn.Sequential(torch.nn.Dropout(), modules.linear())
    module[1].eval()
    module[1][1].bias.requires_grad_(False)
    flags = lambda: (
        [m.training for m in module.modules()] + [p.requires_grad for p in module.parameters()]
    )
    before = flags()
    defense = defense_from_torch(module, images=images, mode=mode)
    jax.grad(lambda x: defense(keys_for(4), x).sum())(images)
    assert defense.traits.draws == draws
    assert flags() == before
    assert all(p.grad is None for p in module.parameters())


def test_buffers_that_calls_change_are_restored(images):
    module = modules.BatchNormed().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    defense = defense_from_torch(module, images=images)
    first = defense(keys_for(4), images)
    np.testing.assert_array_equal(defense(keys_for(4), images), first)
    assert defense.traits.stateful
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert module.norm.running_mean is dict(module.norm.named_buffers())["running_mean"]


def test_an_input_may_be_changed_in_place(images):
    defense = defense_from_torch(lambda x: x.mul_(2).flatten(1)[:, :3], images=images)
    expected = jax.nn.log_softmax(2 * images.reshape(4, -1)[:, :3])
    found, pull = jax.vjp(lambda x: defense(keys_for(4), x), images)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(pull(jnp.eye(4, 3))[0]).max() > 0.1


def test_a_score_inside_of_forward(images):
    defense = defense_from_torch(modules.Energy(), images=images)
    expected = defense_from_torch(modules.linear(), images=images)(keys_for(4), 0.8 * images)
    np.testing.assert_allclose(defense(keys_for(4), images), expected, atol=1e-5)
    assert defense.traits.grad_inside
    assert defense.traits.gradient == "present"


@pytest.mark.parametrize("make", [modules.Detached, modules.Vote])
def test_a_missing_gradient_is_zero_and_said(images, make):
    defense = defense_from_torch(make(), images=images)
    assert defense.traits.gradient == "missing"
    gradient = jax.grad(lambda x: defense(keys_for(4), x)[:, 0].sum())(images)
    np.testing.assert_array_equal(gradient, np.zeros_like(images))


def test_what_cannot_be_seeded_is_evaluated_and_said(images):
    module = modules.Noisy("unseeded")
    defense = defense_from_torch(module, images=images)
    assert not defense.traits.promises["repeatable"]
    assert not defense.is_deterministic
    # The backward pass still belongs to its forward pass: they share the graph.
    value, pull = jax.vjp(lambda x: defense(keys_for(4), x), images)
    expected = (np.eye(10)[:4] - np.exp(value)) @ module.classifier[1].weight.detach().numpy()
    np.testing.assert_allclose(pull(jnp.eye(4, 10))[0].reshape(4, -1), expected, atol=1e-5)


@pytest.mark.parametrize("factor", [1, 2])
def test_a_purifier_with_restarts(images, factor):
    purifier = purifier_from_torch(modules.Purifying(factor), num_restarts=3, images=images)
    purified, info = purifier(keys_for(4), images)
    assert purified.shape == (3, 4, 8 * factor, 8 * factor, 1)
    assert info.active_steps.shape == (3, 4)
    assert purifier.counts.calls == 1
    noise = np.asarray(purified)[:, :, ::factor, ::factor] - images
    assert abs(noise.std() - 0.1) < 0.01
    assert abs(np.corrcoef(noise.reshape(3, -1))[0, 1]) < 0.2
    gradient = jax.grad(lambda x: purifier(keys_for(4), x)[0].sum())(images)
    np.testing.assert_allclose(gradient, np.full_like(images, 3 * factor**2))


def test_parts_make_a_defense(images):
    logits_fn = logits_from_torch(modules.linear(), num_classes=10)
    purifier = purifier_from_torch(modules.Purifying(), num_restarts=2, images=images)
    defense = pj.Defense(purifier, logits_fn)
    gradient = pj.jit(pj.attacks.bpda(defense))(keys_for(4), images, jnp.zeros(4, jnp.int32))[0]
    assert np.abs(gradient).max() > 0.01
    assert defense.with_restarts(1).purifier.num_restarts == 1
    assert not defense.is_deterministic


def test_images_of_three_channels():
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(4, 32, 32, 3)).astype(np.float32)
    module = modules.Noisy("own", channels=3, size=32)
    defense = defense_from_torch(module, images=images)
    assert defense.traits.draws == "per image"
    value, pull = jax.vjp(lambda x: defense(keys_for(4), x), images)
    weights = module.classifier[1].weight.detach().numpy()
    expected = ((np.eye(10)[:4] - np.exp(value)) @ weights).reshape(4, 3, 32, 32)
    np.testing.assert_allclose(pull(jnp.eye(4, 10))[0].transpose(0, 3, 1, 2), expected, atol=1e-5)


def test_a_pipeline_that_is_called_by_sample(images):
    defense = defense_from_torch(modules.Pipeline(), images=images)
    assert defense.traits[:3] == ((10,), "logits", "per image")
    assert defense.traits.generators == ("torch generator generator",)


def test_records_belong_to_weights_and_settings(images):
    identify = lambda module: pj.evaluation.identity(
        defense=defense_from_torch(module, images=images)
    )
    first = identify(modules.Noisy())
    assert identify(modules.Noisy()) == first
    assert "unhashed" not in first
    others = [modules.Noisy(sigma=0.2), modules.Noisy(), modules.Noisy().eval()]
    with torch.no_grad():
        others[1].classifier[1].bias[3] += 1e-3
    assert all(identify(other) != first for other in others)
    without = pj.evaluation.identity(
        defense=defense_from_torch(lambda x: x.flatten(1), images=images)
    )
    assert without["unhashed"] == ["defense.bridge"]


def test_a_generator_that_is_used_late_is_said(images):
    """NumPy's own is watched where no measured call drew from it."""
    module = modules.Answering(lambda z: z + (0 if late == [] else float(GLOBAL.normal())))
    late = []
    defense = defense_from_torch(module, images=images)
    defense(keys_for(4), images)
    late.append(True)
    with pytest.warns(UserWarning, match="drew from numpy, which it did not"):
        defense(keys_for(4), images)
    before = GLOBAL.get_state()[1].tolist()
    np.testing.assert_array_equal(defense(keys_for(4), images), defense(keys_for(4), images))
    assert GLOBAL.get_state()[1].tolist() == before


def test_a_seed_does_not_depend_on_which_generators_are_idle():
    """Python's generator, beside NumPy's that no call draws from: eval() changes nothing then."""
    generators = Generators(lambda x: x, torch.device("cpu"))
    drawn = []
    for idle in (set(), {"numpy"}):
        generators.idle = idle
        with generators.seeded(b"a call"):
            drawn.append((random.random(), float(torch.rand(()))))
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[0][1]
