"""The CIFAR-10 networks that ship, in PyTorch: images NCHW in [0, 1]."""

from collections.abc import Mapping

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import purify_jax as pj
from experiments.defenses.torch_whitened_convnet import WhitenedConvNet

_FREQUENCIES = 2.0 ** torch.arange(-1, 7)


def classifier(name: str = "cifar10_classifier") -> WhitenedConvNet:
    """A classifier of ``pretrained/``: images → logits."""
    module = WhitenedConvNet()
    # Named as in the library: group0_conv0/kernel is groups.0.conv0.weight, its statistics running_mean.
    names = {"kernel": "weight", "mean": "running_mean", "var": "running_var"}
    weights = {}
    for path, array in arrays(name, "classifier").items():
        place, _, last = path.rpartition("/")
        group, _, part = place.partition("_")
        layer = f"groups.{group[5:]}.{part}" if part else place
        weights[f"{layer}.{names.get(last, last)}" if layer else last] = array
    module.load_state_dict(
        weights, strict=False
    )  # mean and std, and counters, are the module's own
    return module.eval()


class Denoiser(nn.Module):
    """A denoiser of ``pretrained/``: (noisy images, σ in units of a pixel's range) → the denoised images.

    D(x; σ) of Karras et al. 2022 (arXiv 2206.00364); the network is ``networks.NoiseConditionalUNet``.
    """

    def __init__(self, name: str = "cifar10_edm") -> None:
        super().__init__()
        for path, array in arrays(name, "score").items():
            self.register_buffer(path.replace("/", "__"), array)

    def forward(self, x: Tensor, sigma: float) -> Tensor:
        total = sigma**2 + 0.25**2
        noise = torch.tensor(sigma).log() / 4
        angles = 2 * torch.pi * noise * _FREQUENCIES
        level = torch.cat([noise[None], angles.sin(), angles.cos()])[None]
        for name in ("level0", "level1"):
            level = F.silu(self._dense(name, level))
        x = x - 0.5
        raw = self._body(x / total**0.5, level)
        return 0.5 + 0.25**2 / total * x + sigma * 0.25 / total**0.5 * raw

    def _body(self, x: Tensor, level: Tensor) -> Tensor:
        x = first = self._block(0, self._conv("body__Conv_0", _fold(x)), level)
        x = second = self._block(1, self._conv("body__Dense_0", _fold(x)), level)
        x = self._block(2, self._conv("body__Dense_1", _fold(x)), level)
        for dense, block, skip in ((2, 3, second), (4, 4, first)):
            x = _unfold(self._conv(f"body__Dense_{dense}", x))
            x = self._conv(f"body__Dense_{dense + 1}", torch.cat([x, skip], 1))
            x = self._block(block, x, level)
        return _unfold(self._conv("body__Conv_1", F.silu(self._norm("body__GroupNorm_0", x))))

    def _block(self, index: int, x: Tensor, level: Tensor) -> Tensor:
        name = f"body___Block_{index}"
        y = self._conv(f"{name}__Conv_0", F.silu(self._norm(f"{name}__GroupNorm_0", x)))
        scale, shift = self._dense(f"{name}__Dense_0", level)[:, :, None, None].chunk(2, 1)
        y = self._norm(f"{name}__GroupNorm_1", y) * (1 + scale) + shift
        return x + self._conv(f"{name}__Conv_1", F.silu(y))

    def _conv(self, name: str, x: Tensor) -> Tensor:
        weight = getattr(self, f"{name}__kernel")
        weight = weight if weight.ndim == 4 else weight[:, :, None, None]
        return F.conv2d(x, weight, getattr(self, f"{name}__bias"), padding=weight.shape[-1] // 2)

    def _dense(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, getattr(self, f"{name}__kernel"), getattr(self, f"{name}__bias"))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        scale, bias = getattr(self, f"{name}__scale"), getattr(self, f"{name}__bias")
        return F.group_norm(x, 8, scale, bias, eps=1e-6)


def _fold(x: Tensor) -> Tensor:
    """Blocks of 2×2 pixels into channels, in the library's order (row, column, channel)."""
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(b, 4 * c, h // 2, w // 2)


def _unfold(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    x = x.reshape(b, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(b, c // 4, 2 * h, 2 * w)


def arrays(name: str, role: str) -> Mapping[str, Tensor]:
    """Path → array of a model that ships, kernels as PyTorch has them."""
    folder = next(
        place for place in pj.pretrained.folders() if (place / f"{name}.safetensors").is_file()
    )
    model = pj.load_model(folder / f"{name}.safetensors", (role,))
    found = {}
    for tree in model.variables.values():
        for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            array = np.asarray(leaf)
            array = array.transpose(*range(array.ndim)[:-3:-1], *range(array.ndim - 2))
            found["/".join(key.key for key in keys)] = torch.from_numpy(array.copy())
    return found
