"""k-winners-take-all (Xiao et al. 2020, arXiv 1905.10510): of each group's activations only the largest pass.

Published for networks that are trained with it; here the trained network gets it afterwards.
"""

import torch
from torch import Tensor, nn

from experiments.defenses import networks


class KWinners(nn.Module):
    """x → x where it is among the share ``kept`` of its image's largest values, else 0: not continuous."""

    def __init__(self, kept: float = 0.2):
        super().__init__()
        self.kept = kept

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        smallest = flat.topk(max(int(self.kept * flat.shape[1]), 1), dim=1).values[:, -1:]
        return torch.where(flat >= smallest, flat, 0.0).reshape(x.shape)


def build() -> nn.Module:
    """The whole defense."""
    classifier = networks.classifier()
    classifier.groups = nn.Sequential(
        *(nn.Sequential(group, KWinners()) for group in classifier.groups)
    )
    return classifier
