"""What an examination finds in PyTorch modules of the kinds that researchers bring."""

import jax
import numpy as np
import pytest

import purify_jax as pj
from tests.evaluation.test_examination import IMAGES, LABELS, check

torch = pytest.importorskip("torch", reason="PyTorch is not installed (make torch)")
modules = pytest.importorskip("tests.bridges.torch_modules")


class Reseeding(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.classifier = modules.linear()

    def forward(self, x):
        torch.manual_seed(0)
        return self.classifier(x + 0.3 * torch.randn_like(x))


class Rounding(torch.nn.Module):
    """Hard rounding; ``through``: with a straight-through gradient."""

    def __init__(self, through):
        super().__init__()
        self.classifier, self.through = modules.linear(), through

    def forward(self, x):
        rounded = torch.round(4 * x) / 4
        return self.classifier(x + (rounded - x).detach() if self.through else rounded)


KINDS = {
    "own generator": (
        lambda: modules.Noisy("own"),
        {"draws": "per image", "generators": ("torch generator generator",), "gradient": "derivative", "actions": {"randomness"}},
    ),
    "batch-norm in training mode": (
        lambda: modules.BatchNormed().train(),
        {"training": {"BatchNorm2d": 1}, "eval_changes": True, "independent": False, "stateful": True, "actions": {"mode", "state", "batch"}},
    ),
    "batch-norm in evaluation mode": (
        lambda: modules.BatchNormed().eval(), {"training": {}, "eval_changes": False, "independent": True, "stateful": False, "actions": set()},
    ),
    "pipeline": (
        lambda: pj.bridges.defense_from_torch(modules.Pipeline()), {"draws": "per image", "repeatable": True, "gradient": "derivative"},
    ),
    "detached": (modules.Detached, {"draws": "none", "gradient": "missing", "actions": {"gradient"}}),
    "majority vote": (
        modules.Vote, {"draws": "per image", "output": "probabilities", "gradient": "missing", "actions": {"randomness", "output", "gradient"}},
    ),
    "ensemble": (modules.Ensemble, {"draws": "per call", "gradient": "derivative", "actions": {"randomness"}}),
    "seeded inside": (Reseeding, {"draws": "none", "replayed": True, "repeatable": True, "actions": {"randomness"}}),
    "unseeded": (
        lambda: modules.Noisy("unseeded"), {"draws": "per image", "repeatable": False, "gradient": "unknown", "actions": {"randomness", "repeatable"}},
    ),
    "dropout": (
        lambda: torch.nn.Sequential(torch.nn.Dropout(), modules.linear()),
        {"training": {"Dropout": 1}, "eval_changes": True, "draws": "per image", "actions": {"randomness", "mode"}},
    ),
    "hard rounding": (lambda: Rounding(False), {"gradient": "zero", "separate": False, "actions": {"gradient"}}),
    "straight-through": (lambda: Rounding(True), {"gradient": "not the derivative", "actions": {"gradient"}}),
    "half precision": (lambda: modules.linear().bfloat16(), {"draws": "none", "gradient": "derivative", "actions": set()}),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_module(kind):
    make, expected = KINDS[kind]
    module = make()
    module = (
        module.eval()
        if kind in ("own generator", "ensemble", "detached", "majority vote")
        else module
    )
    found = pj.examine(module, IMAGES, LABELS)
    check(found, expected)
    assert 0 < found.forward_mb < found.backward_mb * 1000


def test_images_of_three_channels():
    images = np.random.default_rng(0).uniform(size=(8, 32, 32, 3)).astype(np.float32)
    found = pj.examine(modules.Noisy("own", channels=3, size=32), images, np.zeros(8, np.int32))
    check(found, {"draws": "per image", "gradient": "derivative", "num_classes": 10})
    assert found.code == "Noisy, 30,730 parameters, float32 on cpu"


def test_a_pair_of_modules():
    bridges = pj.bridges
    purifier = bridges.purifier_from_torch(modules.Purifying(), num_restarts=2)
    defense = pj.Defense(purifier, bridges.logits_from_torch(modules.linear()))
    found = pj.examine(defense, IMAGES, LABELS)
    check(
        found,
        {
            "draws": "per image",
            "separate": True,
            "gradient": "derivative",
            "generators": ("torch",),
        },
    )


def test_the_mode_may_be_asked_for():
    module = torch.nn.Sequential(torch.nn.Dropout(), modules.linear())
    found = pj.examine(module, IMAGES, LABELS, mode="eval")
    check(found, {"draws": "none", "training": {}, "actions": set()})
    assert module.training
    given = found.defense(pj.image_keys(jax.random.key(0), np.arange(8)), IMAGES)
    assert given.shape == (8, 10)


def test_a_purifier_may_leave_the_range_of_images():
    class Brighter(torch.nn.Module):
        def forward(self, x):
            return x + 0.5

    defense = pj.bridges.defense_of((Brighter(), modules.linear()), IMAGES)
    (purified,), _ = defense.purifier(jax.random.split(jax.random.key(0), len(IMAGES)), IMAGES)
    np.testing.assert_allclose(purified, IMAGES + 0.5, rtol=1e-6)
    assert pj.examine(defense, IMAGES, LABELS).gradient == "derivative"
