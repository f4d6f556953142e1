"""Small defenses in PyTorch, of the kinds that researchers bring; each is built by a function without arguments."""

import random
import types

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (make torch)")
nn = torch.nn


def linear(channels=1, size=8, classes=10, seed=0):
    """A linear classifier whose weights are those of the seed."""
    layer = nn.Linear(channels * size * size, classes)
    drawn = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        layer.weight.copy_(0.2 * drawn)
        layer.bias.zero_()
    return nn.Sequential(nn.Flatten(), layer)


class Noisy(nn.Module):
    """Noise from a generator by name, before a linear classifier."""

    def __init__(self, source="torch", sigma=0.3, **kind):
        super().__init__()
        self.classifier, self.source, self.sigma = linear(**kind), source, sigma
        self.generator, self.held = torch.Generator(), {"numpy": np.random.default_rng(0)}

    def forward(self, x):
        normal = {
            "torch": lambda: torch.randn_like(x),
            "own": lambda: torch.randn(x.shape, generator=self.generator),
            "numpy": lambda: torch.from_numpy(np.random.mtrand._rand.normal(size=x.shape)).float(),
            "own numpy": lambda: torch.from_numpy(self.held["numpy"].normal(size=x.shape)).float(),
            "python": lambda: torch.tensor([random.gauss(0, 1) for _ in range(x.numel())]).view_as(
                x
            ),
            "per call": lambda: torch.randn(x.shape[1:]).expand_as(x),
            "unseeded": lambda: torch.from_numpy(
                np.random.default_rng().normal(size=x.shape)
            ).float(),
        }[self.source]
        return self.classifier(x + self.sigma * normal())


class BatchNormed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.classifier = nn.BatchNorm2d(1), linear()

    def forward(self, x):
        return self.classifier(self.norm(x))


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.classifier = linear()

    def forward(self, x):
        return self.classifier(x.detach())


class Vote(nn.Module):
    """Randomised smoothing: the share of 16 noisy copies that vote for each class."""

    def __init__(self):
        super().__init__()
        self.classifier = linear()

    def forward(self, x):
        many = x.repeat(16, 1, 1, 1)
        votes = self.classifier(many + 0.5 * torch.randn_like(many)).argmax(-1)
        return nn.functional.one_hot(votes, 10).reshape(16, -1, 10).float().mean(0)


class Ensemble(nn.Module):
    """One of its members, drawn at random, classifies a whole call."""

    def __init__(self):
        super().__init__()
        self.members = nn.ModuleList([linear(seed=seed) for seed in range(4)])

    def forward(self, x):
        return self.members[int(torch.randint(4, ()))](x)


class Pipeline:
    """Like a pipeline of diffusers: no module itself, called by ``sample``, answers in an attribute."""

    def __init__(self):
        self.classifier, self.generator = linear(), torch.Generator()

    def sample(self, x):
        noise = torch.randn(x.shape, generator=self.generator)
        return types.SimpleNamespace(logits=self.classifier(x + 0.3 * noise))


class Energy(nn.Module):
    """One step along a score that is a gradient, taken inside of ``forward``."""

    def __init__(self):
        super().__init__()
        self.classifier = linear()

    def forward(self, x):
        x = x if x.requires_grad else x.requires_grad_(True)
        (score,) = torch.autograd.grad((x**2).sum(), x, create_graph=True)
        return self.classifier(x - 0.1 * score)


class Answering(nn.Module):
    """A linear classifier whose logits leave by ``how``."""

    def __init__(self, how):
        super().__init__()
        self.classifier, self.how = linear(), how

    def forward(self, x):
        return self.how(self.classifier(x))


class Purifying(nn.Module):
    """Noise, then the image enlarged or as it is."""

    def __init__(self, factor=1, sigma=0.1):
        super().__init__()
        self.factor, self.sigma = factor, sigma

    def forward(self, x):
        x = x + self.sigma * torch.randn_like(x)
        return types.SimpleNamespace(
            sample=x.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)
        )
