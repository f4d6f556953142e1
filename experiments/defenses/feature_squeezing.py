"""Feature squeezing (Xu et al. 2018, arXiv 1704.01155): fewer bits, then medians of 2×2 pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.defenses import networks


class Squeezing(nn.Module):
    """Images → images of ``bits`` bits, each pixel the median of itself and three neighbours."""

    def __init__(self, bits: int = 4):
        super().__init__()
        self.levels = 2**bits - 1

    def forward(self, x: Tensor) -> Tensor:
        x = torch.round(x * self.levels) / self.levels  # its derivative is zero
        x = F.pad(x, (0, 1, 0, 1), mode="replicate")
        around = [
            x[..., i : x.shape[-2] - 1 + i, j : x.shape[-1] - 1 + j] for i in (0, 1) for j in (0, 1)
        ]
        return torch.stack(around).median(0).values


def build() -> tuple[nn.Module, nn.Module]:
    """(purifier, classifier)."""
    return Squeezing(), networks.classifier()
