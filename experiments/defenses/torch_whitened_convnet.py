"""WhitenedConvNet in PyTorch: the architecture of ``networks.WhitenedConvNet``."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class _BatchNorm(nn.BatchNorm2d):
    """Batch normalisation with a bias and no scale."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-12, momentum=0.4)
        self.weight = None

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, None, self.bias, self.training,
            self.momentum, self.eps,
        )  # fmt: skip


class _Group(nn.Module):
    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.conv0 = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm0, self.norm1 = _BatchNorm(width), _BatchNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = _gelu(self.norm0(F.max_pool2d(self.conv0(x), 2)))
        return _gelu(self.norm1(self.conv1(x)))


class WhitenedConvNet(nn.Module):
    """Images NCHW in [0, 1] → logits. The whitening filters are random and not trained."""

    def __init__(self, features: Sequence[int] = (64, 256, 256), outputs: int = 10):
        super().__init__()
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(_STD)[:, None, None])
        basis, _ = torch.linalg.qr(torch.randn(12, 12))
        self.register_buffer("whitening", torch.cat([basis, -basis]).reshape(24, 3, 2, 2))
        self.whitening_bias = nn.Parameter(torch.zeros(24))
        inputs = (24, *features[:-1])
        self.groups = nn.Sequential(*map(_Group, inputs, features))
        self.head = nn.Linear(features[-1], outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = _gelu(F.conv2d((x - self.mean) / self.std, self.whitening, self.whitening_bias))
        x = self.groups(x).amax((2, 3))
        return self.head(x) / x.shape[-1]


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")
