"""ShuffledUNet in PyTorch, for comparison only: the architecture of ``networks.ShuffledUNet``.

Channels of folded pixels come in PyTorch's order (channel, row, column), not in the library's
(row, column, channel): the same network with permuted weights.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _norm(channels: int) -> nn.GroupNorm:
    groups = max(g for g in range(1, 9) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps=1e-6)


class _Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm0, self.norm1 = _norm(width), _norm(width)
        self.conv0, self.conv1 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv1(F.silu(self.norm1(self.conv0(F.silu(self.norm0(x))))))


def _blocks(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(_Block(width) for _ in range(count)))


class ShuffledUNet(nn.Module):
    """Images NCHW in [0, 1] → the same shape."""

    def __init__(
        self, features: Sequence[int] = (64, 128, 128), blocks: int = 2, channels: int = 3
    ):
        super().__init__()
        self.begin = nn.Conv2d(4 * channels, features[0], 3, padding=1)
        pairs = list(itertools.pairwise(features))
        self.enter = nn.ModuleList(nn.Conv2d(4 * fine, coarse, 1) for fine, coarse in pairs)
        self.down = nn.ModuleList(_blocks(width, blocks) for width in features)
        # Coarsest first, as they run.
        self.leave = nn.ModuleList(nn.Conv2d(coarse, 4 * fine, 1) for fine, coarse in pairs[::-1])
        self.merge = nn.ModuleList(nn.Conv2d(2 * fine, fine, 1) for fine, _ in pairs[::-1])
        self.up = nn.ModuleList(_blocks(fine, blocks) for fine, _ in pairs[::-1])
        self.norm = _norm(features[0])
        self.end = nn.Conv2d(features[0], 4 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down[0](self.begin(F.pixel_unshuffle(2 * x - 1, 2)))
        skips = [x]
        for enter, blocks in zip(self.enter, list(self.down)[1:], strict=True):
            x = blocks(enter(F.pixel_unshuffle(x, 2)))
            skips.append(x)
        levels = zip(self.leave, self.merge, self.up, skips[-2::-1], strict=True)
        for leave, merge, blocks, skip in levels:
            x = F.pixel_shuffle(leave(x), 2)
            x = blocks(merge(torch.cat([x, skip], 1)))
        return F.pixel_shuffle(self.end(F.silu(self.norm(x))), 2)
