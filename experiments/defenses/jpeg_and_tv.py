"""JPEG, which has no gradient, then total variation minimisation (Guo et al. 2018, arXiv 1711.00117)."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from experiments.defenses import networks


class JPEG(nn.Module):
    """Images → images, compressed and read back."""

    def forward(self, x: Tensor, quality: int = 75) -> Tensor:
        found = []
        for image in x.detach():
            buffer = io.BytesIO()
            pixels = (255 * image.permute(1, 2, 0)).round().byte().numpy()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
            found.append(torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1) / 255)
        return torch.stack(found)


class TotalVariation(nn.Module):
    """Images → argmin of ½‖u − x‖² + weight · TV(u), by steps on its dual (Chambolle 2004)."""

    def forward(self, x: Tensor, weight: float = 0.02, steps: int = 20) -> Tensor:
        dual = x.new_zeros((2, *x.shape))
        for _ in range(steps):
            slope = gradient(divergence(dual) - x / weight)
            size = (slope**2).sum(0, keepdim=True).add(1e-12).sqrt()
            dual = (dual + 0.25 * slope) / (1 + 0.25 * size)
        return (x - weight * divergence(dual)).clamp(0, 1)


def gradient(u: Tensor) -> Tensor:
    """Forward differences ``[2, ...]``, 0 at the last row and column."""
    rows = nn.functional.pad(u[..., 1:, :] - u[..., :-1, :], (0, 0, 0, 1))
    columns = nn.functional.pad(u[..., :, 1:] - u[..., :, :-1], (0, 1))
    return torch.stack([rows, columns])


def divergence(p: Tensor) -> Tensor:
    """Minus the adjoint of :func:`gradient`."""
    rows = p[0] - nn.functional.pad(p[0, ..., :-1, :], (0, 0, 1, 0))
    return rows + p[1] - nn.functional.pad(p[1, ..., :, :-1], (1, 0))


def build() -> tuple[nn.Module, nn.Module]:
    """(purifier, classifier)."""
    return nn.Sequential(JPEG(), TotalVariation()), networks.classifier()


def surrogate() -> tuple[nn.Module, nn.Module]:
    """Its differentiable half, for an attack with that gradient."""
    return TotalVariation(), networks.classifier()
