"""Randomised smoothing (Cohen et al. 2019, arXiv 1902.02918) as it is deployed: a majority vote of noisy copies."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.defenses import networks


class SmoothingVote(nn.Module):
    """Images → log of the share of ``copies`` noisy copies that vote for each class."""

    def __init__(self, sigma: float = 0.02, copies: int = 4):
        super().__init__()
        self.classifier = networks.classifier()
        self.sigma, self.copies = sigma, copies

    def forward(self, x: Tensor) -> Tensor:
        noisy = x.repeat(self.copies, 1, 1, 1)
        logits = self.classifier(noisy + self.sigma * torch.randn_like(noisy))
        votes = F.one_hot(logits.argmax(-1), logits.shape[-1]).float()  # no gradient
        return (votes.reshape(self.copies, len(x), -1).mean(0) + 1e-3).log()


def build() -> nn.Module:
    """The whole defense."""
    return SmoothingVote()
