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

    def forward(self, x: Tensor) -> Tensor:
        chain = x.detach()
        for _ in range(self.steps):
            with torch.no_grad():
                score = (self.denoiser(chain, self.sigma) - chain) / self.sigma**2
            chain = chain + 0.5 * self.step_size**2 * score
            chain = chain + self.step_size * torch.randn_like(chain)
        with torch.no_grad():
            chain = self.denoiser(chain, self.sigma)
        return x + (chain - x).detach()


def build() -> tuple[nn.Module, nn.Module]:
    """(purifier, classifier)."""
    return Langevin(), networks.classifier("cifar10_classifier_denoised")
