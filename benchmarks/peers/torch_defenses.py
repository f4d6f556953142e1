"""Defenses that ship, in PyTorch with the same weights: images NCHW in [0, 1] → log-probabilities.

Restarts are one batch. Noise comes from PyTorch's generator, or as an argument, for comparisons.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.defenses.networks import Denoiser, arrays, classifier


class DigitsADP(nn.Module):
    """``pretrained/digits``: ADP along the score of an energy, with secant steps (λ = 0.3, T = 5, four restarts)."""

    def __init__(self) -> None:
        super().__init__()
        for role, name in (("energy", "score_model"), ("classifier", "classifier")):
            for path, array in arrays(f"digits_{name}", role).items():
                self.register_buffer(f"{role}__{path.replace('/', '__')}", array)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """noise: standard normal ``[restarts, batch, c, h, w]``."""
        noise = torch.randn(4, *images.shape) if noise is None else noise
        x = (images + 0.25 * noise).clamp(0, 1).flatten(0, 1)
        curvature, before = torch.ones(len(x)), None
        for _ in range(5):
            score = torch.func.grad(lambda x: -self._energy(x))(x)
            if before is not None:
                moved, change = x - before[0], score - before[1]
                squared, product = _dot(moved, moved), _dot(moved, change)
                still = squared == 0
                curvature = torch.where(still, curvature, -product / torch.where(still, 1, squared))
            before = x, score
            flat = curvature == 0
            quotient = torch.where(flat, torch.inf, 0.3 / torch.where(flat, 1, curvature))
            alpha = quotient.clamp(1e-5, 1)
            x = (x + alpha[:, None, None, None] * score).clamp(0, 1)
        log_probs = F.log_softmax(self._logits(x), 1).unflatten(0, noise.shape[:2])
        return log_probs.logsumexp(0) - torch.tensor(len(noise)).log()

    def _energy(self, images: Tensor) -> Tensor:
        """The sum over the batch of ½‖x − g(x)‖²."""
        x = 2 * images.flatten(1) - 1
        for layer in range(2):
            y = F.silu(self._dense("energy", layer, x))
            x = x + y if layer else y
        return 0.5 * ((images.flatten(1) - self._dense("energy", 2, x)) ** 2).sum()

    def _logits(self, images: Tensor) -> Tensor:
        x = 2 * images - 1
        for layer in range(2):
            weight = getattr(self, f"classifier__Conv_{layer}__kernel")
            bias = getattr(self, f"classifier__Conv_{layer}__bias")
            # "SAME" of a stride of 2 on an even size: one row and column at the end.
            x = F.conv2d(x, weight, bias, padding=1) if not layer else _halved(x, weight, bias)
            x = F.relu(x)
        x = x.permute(0, 2, 3, 1).flatten(1)  # the library's order of features
        return self._dense("classifier", 1, F.relu(self._dense("classifier", 0, x)))

    def _dense(self, role: str, index: int, x: Tensor) -> Tensor:
        name = f"{role}__Dense_{index}"
        return F.linear(x, getattr(self, f"{name}__kernel"), getattr(self, f"{name}__bias"))


class OneStep(nn.Module):
    """``pretrained/cifar10``: noise of σ = 0.1, one step to the posterior mean, the classifier trained with it."""

    def __init__(self) -> None:
        super().__init__()
        self.denoiser = Denoiser("cifar10_defense_score_model")
        self.classifier = classifier("cifar10_defense_classifier")

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """noise: standard normal ``[1, batch, c, h, w]``."""
        noise = torch.randn(1, *images.shape) if noise is None else noise
        purified = self.denoiser(images + 0.1 * noise[0], 0.1)
        return F.log_softmax(self.classifier(purified.clamp(0, 1)), 1)


#: Name in ``pretrained/`` → the defense.
DEFENSES = {"digits": DigitsADP, "cifar10": OneStep}


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def _halved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, bias, stride=2)
