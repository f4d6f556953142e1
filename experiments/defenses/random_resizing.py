"""Random resizing and padding (Xie et al. 2018, arXiv 1711.01991): one size and place for a whole batch."""

import random

import torch.nn.functional as F
from torch import Tensor, nn

from experiments.defenses import networks

#: Sizes up to which images of 32×32 pixels are enlarged and padded; published: 299 to 331.
_LARGEST = 36


class RandomResizing(nn.Module):
    """Images → logits of the images at a random size, at a random place on black."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = networks.classifier()

    def forward(self, x: Tensor) -> Tensor:
        size = random.randint(x.shape[-1], _LARGEST - 1)
        x = F.interpolate(x, (size, size), mode="nearest")
        left, top = (random.randint(0, _LARGEST - size) for _ in range(2))
        rest = _LARGEST - size
        return self.classifier(F.pad(x, (left, rest - left, top, rest - top)))


def build() -> nn.Module:
    """The whole defense."""
    return RandomResizing()
