"""DiffPure (Nie et al. 2022, arXiv 2205.07460): noise, then the reverse diffusion; every step is differentiable."""

import torch
from torch import Tensor, nn

from experiments.defenses import networks


class DiffPure(nn.Module):
    """Images → images: noise up to ``sigma``, then ancestral steps down to 0 through the denoiser's mean.

    From σ to σ' < σ: x ← D + (σ'/σ)² (x − D) + σ' √(1 − (σ'/σ)²) n with D = D(x; σ), the exact step if D were the image.
    """

    def __init__(self, sigma: float = 0.12, steps: int = 4):
        super().__init__()
        self.denoiser = networks.Denoiser()
        self.levels = [sigma * (1 - step / steps) for step in range(steps + 1)]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.levels[0] * torch.randn_like(x)
        for high, low in zip(self.levels[:-1], self.levels[1:], strict=True):
            denoised = self.denoiser(x, high)
            ratio = (low / high) ** 2
            x = denoised + ratio * (x - denoised) + low * (1 - ratio) ** 0.5 * torch.randn_like(x)
        return x.clamp(0, 1)


def build() -> tuple[nn.Module, nn.Module]:
    """(purifier, classifier)."""
    return DiffPure(), networks.classifier("cifar10_classifier_denoised")
