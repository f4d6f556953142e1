"""NCSNv2 in PyTorch, for comparison only: the architecture of ``purify_jax.networks.NCSNv2``."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _conv(inputs: int, outputs: int, size: int, dilation: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(
        inputs, outputs, size, padding=dilation * (size // 2), dilation=dilation, bias=bias
    )


class InstanceNormPlus(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels)
        self.alpha = nn.Parameter(torch.ones(channels))
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3))
        spread = means - means.mean(-1, keepdim=True)
        spread = spread / torch.sqrt(means.var(-1, keepdim=True) + 1e-5)
        y = self.norm(x) + (self.alpha * spread)[..., None, None]
        return self.gamma[:, None, None] * y + self.beta[:, None, None]


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, down: bool, dilation: int | None):
        super().__init__()
        inner = inputs if down else outputs
        self.pool = down and dilation is None
        d = dilation or 1
        self.norm1, self.conv1 = InstanceNormPlus(inputs), _conv(inputs, inner, 3, d)
        self.norm2, self.conv2 = InstanceNormPlus(inner), _conv(inner, outputs, 3, d)
        self.shortcut = None
        if down or inputs != outputs:
            self.shortcut = _conv(inputs, outputs, 1 if dilation is None else 3, d)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.elu(self.norm1(x)))
        y = self.conv2(F.elu(self.norm2(y)))
        x = x if self.shortcut is None else self.shortcut(x)
        return F.avg_pool2d(x, 2) + F.avg_pool2d(y, 2) if self.pool else x + y


class RCU(nn.Module):
    def __init__(self, channels: int, blocks: int):
        super().__init__()
        conv = lambda: _conv(channels, channels, 3, bias=False)
        self.blocks = nn.ModuleList(nn.ModuleList((conv(), conv())) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for first, second in self.blocks:
            x = x + second(F.elu(first(F.elu(x))))
        return x


class Refine(nn.Module):
    def __init__(self, inputs: list[int], outputs: int, last: bool):
        super().__init__()
        self.adapt = nn.ModuleList(RCU(width, 2) for width in inputs)
        self.fuse = nn.ModuleList(_conv(width, outputs, 3) for width in inputs)
        self.pool = nn.ModuleList(_conv(outputs, outputs, 3, bias=False) for _ in range(2))
        self.output = RCU(outputs, 3 if last else 1)

    def forward(self, inputs: list[Tensor]) -> Tensor:
        size = inputs[0].shape[2:]
        adapted = [rcu(x) for rcu, x in zip(self.adapt, inputs, strict=True)]
        x = adapted[0]
        if len(adapted) > 1:
            resize = lambda y: F.interpolate(y, size=size, mode="bilinear", align_corners=True)
            x = sum(resize(conv(y)) for conv, y in zip(self.fuse, adapted, strict=True))
        x = path = F.elu(x)
        for conv in self.pool:
            path = conv(F.max_pool2d(path, 5, stride=1, padding=2))
            x = x + path
        return self.output(x)


class NCSNv2(nn.Module):
    """Images NCHW in [0, 1] → raw score of the same shape."""

    def __init__(self, features: int, channels: int = 3):
        super().__init__()
        n = features
        self.begin = _conv(channels, n, 3)
        levels = [(n, n, False, None), (n, 2 * n, True, None)]
        levels += [(2 * n, 2 * n, True, 2), (2 * n, 2 * n, True, 4)]
        self.down = nn.ModuleList(
            nn.Sequential(Residual(i, o, down, d), Residual(o, o, False, d))
            for i, o, down, d in levels
        )
        self.up = nn.ModuleList(
            [
                Refine([2 * n], 2 * n, False),
                Refine([2 * n, 2 * n], 2 * n, False),
                Refine([2 * n, 2 * n], n, False),
                Refine([n, n], n, True),
            ]
        )
        self.norm, self.end = InstanceNormPlus(n), _conv(n, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.begin(2 * x - 1)
        outputs = []
        for level in self.down:
            x = level(x)
            outputs.append(x)
        y = self.up[0]([outputs[3]])
        for refine, level in zip(list(self.up)[1:], outputs[2::-1], strict=True):
            y = refine([level, y])
        return self.end(F.elu(self.norm(y)))
