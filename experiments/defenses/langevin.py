"""Langevin purification (Hill et al. 2021, arXiv 2005.13525), with the score of a denoiser, its graph cut off.

Published code runs the chain under ``detach``: the classifier's gradient passes it by as if it were the identity.
"""

import torch
from torch import Tensor, nn

from experiments.defenses import networks


class Langevin(nn.Module):
    """Images → images: x ← x + ½ η² s(x) + η n, with the score s(x) = (D(x; σ) − x)/σ²."""

    def __init__(self, steps: int = 10, step_size: float = 0.05, sigma: float = 0.1):
        super().__init__()
        self.denoiser = networks.Denoiser()
        self.steps, self.step_size, self.sigma = steps, step_size, sigma

    def chain(self, x: Tensor) -> Tensor:
        """The chain as it is written down, with its graph; the denoiser ends it."""
        for _ in range(self.steps):
            score = (self.denoiser(x, self.sigma) - x) / self.sigma**2
            x = x + 0.5 * self.step_size**2 * score
            x = x + self.step_size * torch.randn_like(x)
        return self.denoiser(x, self.sigma)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            purified = self.chain(x)
        return x + (purified - x).detach()


class Differentiated(Langevin):
    """The same without the cut."""

    forward = Langevin.chain


def build() -> tuple[nn.Module, nn.Module]:
    """(purifier, classifier)."""
    return Langevin(), networks.classifier("cifar10_classifier_denoised")


def surrogate() -> tuple[nn.Module, nn.Module]:
    """The defense as its author would mend it, for an attack with its gradient."""
    return Differentiated(), networks.classifier("cifar10_classifier_denoised")
