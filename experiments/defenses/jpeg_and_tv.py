"""JPEG, then total variation minimisation (Guo et al. 2018, arXiv 1711.00117), with no gradient of their own."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from experiments.defenses import networks


class JPEGAndTV(nn.Module):
    """Images → images: JPEG of a quality, then argmin of ½‖u − x‖² + weight · TV(u) (Chambolle 2004)."""

    def __init__(self, quality: int = 75, weight: float = 0.02, steps: int = 20):
        super().__init__()
        self.quality, self.weight, self.steps = quality, weight, steps

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        x = torch.stack([self._jpeg(image) for image in x.detach()])
        dual = x.new_zeros((2, *x.shape))
        for _ in range(self.steps):
            slope = _gradient(_divergence(dual) - x / self.weight)
            dual = (dual + 0.25 * slope) / (1 + 0.25 * slope.norm(dim=0, keepdim=True))
        return (x - self.weight * _divergence(dual)).clamp(0, 1)

    def _jpeg(self, image: Tensor) -> Tensor:
        buffer = io.BytesIO()
        pixels = (255 * image.permute(1, 2, 0)).round().byte().numpy()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=self.quality)
        return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1) / 255


def _gradient(u: Tensor) -> Tensor:
    """Forward differences ``[2, ...]``, 0 at the last row and column."""
    slope = u.new_zeros((2, *u.shape))
    slope[0, ..., :-1, :] = u[..., 1:, :] - u[..., :-1, :]
    slope[1, ..., :, :-1] = u[..., :, 1:] - u[..., :, :-1]
    return slope


def _divergence(p: Tensor) -> Tensor:
    """Minus the adjoint of :func:`_gradient`."""
    rows, columns = p[0].clone(), p[1].clone()
    rows[..., 1:, :] -= p[0, ..., :-1, :]
    columns[..., :, 1:] -= p[1, ..., :, :-1]
    return rows + columns


def build() -> tuple[nn.Module, nn.Module]:
    """(purifier, classifier)."""
    return JPEGAndTV(), networks.classifier()
