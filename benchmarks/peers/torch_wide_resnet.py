"""WideResNet in PyTorch, for comparison only: the architecture of ``networks.WideResNet``."""

import torch.nn.functional as F
from torch import Tensor, nn


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride=stride, padding=1)
        self.shortcut = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return y + (x if self.shortcut is None else self.shortcut(x))


class WideResNet(nn.Module):
    """Images NCHW in [0, 1] → logits; the form with biases of the published purification code."""

    def __init__(self, depth: int = 28, width: int = 10, outputs: int = 10):
        super().__init__()
        self.begin = nn.Conv2d(3, 16, 3, padding=1)
        blocks, inputs = [], 16
        for layer in range(3):
            for block in range((depth - 4) // 6):
                features = 16 * width * 2**layer
                blocks.append(_Block(inputs, features, 2 if layer and not block else 1))
                inputs = features
        self.blocks, self.norm = nn.Sequential(*blocks), nn.BatchNorm2d(inputs)
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.blocks(self.begin(2 * x - 1))))
        return self.linear(x.mean((2, 3)))
