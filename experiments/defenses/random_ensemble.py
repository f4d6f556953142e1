"""An ensemble whose members answer at random: each call is one member's, drawn by NumPy's global generator."""

import numpy as np
from torch import Tensor, nn

from experiments.defenses import networks

_MEMBERS = ("cifar10_classifier", "cifar10_classifier_purified", "cifar10_classifier_denoised")


class RandomEnsemble(nn.Module):
    """Images → logits of one of the members."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList(networks.classifier(name) for name in _MEMBERS)

    def forward(self, x: Tensor) -> Tensor:
        member = np.random.randint(len(self.members))  # noqa: NPY002  (as such code does)
        return self.members[member](x)


def build() -> nn.Module:
    """The whole defense."""
    return RandomEnsemble()
