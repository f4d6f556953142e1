"""What the authors of a defense could have reported: clean images, a transfer attack, naive PGD."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.defenses import networks
from purify_jax.evaluation.statistics import Interval, wilson

_STEPS = 40


def claims(
    given: Any, images: np.ndarray, labels: np.ndarray, epsilon: float, seed: int
) -> dict[str, Interval]:
    """Accuracy of one draw on clean images, under the transfer attack and under naive PGD.

    Args:
      given: a module, or a pair (purifier, classifier) of modules.
      images: ``[batch, h, w, c]`` in [0, 1]; labels ``[batch]``.
      epsilon: the Linf radius.
      seed: of the generators that defenses draw from.
    """
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (a defense draws from it)
    defense = torch.nn.Sequential(*given) if isinstance(given, tuple) else given
    x, y = _tensors(images, labels)
    moved = {
        "clean": x,
        "transfer": pgd(networks.classifier(), x, y, epsilon),
        "naive": pgd(defense, x, y, epsilon),
    }
    return {kind: _accuracy(defense, images, y) for kind, images in moved.items()}


def through(
    surrogate: Any, given: Any, images: np.ndarray, labels: np.ndarray, epsilon: float, seed: int
) -> Interval:
    """Accuracy of one draw of ``given`` where naive PGD follows the gradient of ``surrogate``, its differentiable twin."""
    torch.manual_seed(seed)
    x, y = _tensors(images, labels)
    attacked = pgd(torch.nn.Sequential(*surrogate), x, y, epsilon)
    return _accuracy(torch.nn.Sequential(*given), attacked, y)


def _tensors(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    nchw = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return torch.from_numpy(nchw), torch.from_numpy(np.asarray(labels, np.int64))


def _accuracy(defense: torch.nn.Module, images: Tensor, labels: Tensor) -> Interval:
    with torch.no_grad():
        right = int((defense(images).argmax(-1) == labels).sum())
    return wilson(right, len(labels))


def pgd(module: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    """Sign steps of ε/4 along the gradient of one draw each; without a gradient the images stay."""
    moved = x.clone()
    for _ in range(_STEPS):
        moved.requires_grad_()
        loss = torch.nn.functional.cross_entropy(module(moved), y)
        if not loss.requires_grad:
            return x
        (slope,) = torch.autograd.grad(loss, moved, allow_unused=True)
        if slope is None:
            return x
        moved = moved.detach() + epsilon / 4 * slope.sign()
        moved = torch.minimum(torch.maximum(moved, x - epsilon), x + epsilon).clamp(0, 1)
    return moved.detach()
