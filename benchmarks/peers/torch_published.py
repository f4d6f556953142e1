"""Purification, attacks and training in PyTorch, as the published code is written.

Python loops over steps, restarts and EOT samples; a batch of images goes through the network at
once. The networks may be compiled (``benchmarks.peers.variants``), the loops never are.
The arithmetic is that of ``purify_jax`` (no early exit: both do all steps of all images), so that
times compare.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Score = Callable[[Tensor], Tensor]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def purify(
    score: Score,
    images: Tensor,
    *,
    steps: int,
    noise_scale: float,
    rate: float = 0.05,
    min_step: float = 1e-5,
    max_step: float = 0.1,
    stop_threshold: float = 1e-3,
    delta: float = 1e-3,
) -> Tensor:
    """One restart of ADP with finite differences, differentiable if gradients are enabled."""
    x = (images + noise_scale * torch.randn_like(images)).clamp(0, 1)
    active = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for _ in range(steps):
        s = score(x)
        change = score(x + delta * s) - s
        curvature = -_dot(s, change) / _dot(s, s) / delta
        alpha = (rate / curvature).clamp(min_step, max_step)
        active = active & (alpha > stop_threshold)
        alpha = torch.where(active, alpha, torch.zeros_like(alpha))
        x = (x + alpha[:, None, None, None] * s).clamp(0, 1)
    return x


def diffpure(noise: Score, images: Tensor, steps: int, t_star: float = 0.1) -> Tensor:
    """DiffPure's reverse SDE by Euler, as a Python loop: u ← u + β·(½u − ε̂/std)·dt + √(β·dt)·n."""
    integral = lambda t: 0.5 * t**2 * 19.9 + 0.1 * t
    kept = torch.exp(torch.tensor(-integral(t_star)))
    u = kept.sqrt() * (2 * images - 1) + (1 - kept).sqrt() * torch.randn_like(images)
    for step in range(steps):
        t = t_star * (1 - step / steps)
        std = torch.sqrt(1 - torch.exp(torch.tensor(-integral(t))))
        size = (0.1 + 19.9 * t) * t_star / steps
        u = u + size * (0.5 * u - noise(u) / std) + size**0.5 * torch.randn_like(u)
    return 0.5 * (u + 1)


def purify_restarts(score: Score, images: Tensor, restarts: int, **settings: float) -> Tensor:
    """All restarts, one after the other, without gradients; ``[restarts, batch, c, h, w]``."""
    with torch.no_grad():
        return torch.stack([purify(score, images, **settings) for _ in range(restarts)])


def _loss(logits: list[Tensor], labels: Tensor) -> Tensor:
    log_probs = torch.logsumexp(torch.stack([F.log_softmax(z, -1) for z in logits]), 0)
    return F.nll_loss(log_probs, labels, reduction="sum")


def gradient(
    score: Score,
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    exact: bool,
    restarts: int,
    samples: int,
    **settings: float,
) -> Tensor:
    """Exact+EOT or BPDA+EOT, averaged over samples.

    exact: the gradient through every step, step sizes included, whose graph is kept whole. Otherwise the
    classifier's gradient at the purified images.
    """
    total = torch.zeros_like(images)
    for _ in range(samples):
        leaf = (images.clone() if exact else torch.zeros_like(images)).requires_grad_(True)
        if exact:
            purified = [purify(score, leaf, **settings) for _ in range(restarts)]
        else:
            purified = [p + leaf for p in purify_restarts(score, images, restarts, **settings)]
        loss = _loss([classifier(p) for p in purified], labels)
        total += torch.autograd.grad(loss, leaf)[0]
    return total / samples


def dsm_step(
    network: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    sigmas: Tensor,
) -> None:
    """One step of denoising score matching with Adam, clipping and a moving average."""
    images = _randomly_flipped(images)
    sigma = sigmas[torch.randint(len(sigmas), (len(images),), device=images.device)]
    sigma = sigma[:, None, None, None]
    noise = torch.randn_like(images)
    error = network(images + sigma * noise) / sigma + noise / sigma
    loss = (0.5 * (error * sigma) ** 2).flatten(1).sum(1).mean()
    _update(network, average, optimizer, loss, largest=1.0)


def classifier_step(
    network: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
) -> None:
    """One step of cross-entropy that updates the batch statistics, and a moving average."""
    loss = F.cross_entropy(network(_randomly_flipped(images)), labels)
    _update(network, average, optimizer, loss)


def _update(network, average, optimizer, loss: Tensor, largest: float | None = None) -> None:
    optimizer.zero_grad()
    loss.backward()
    if largest is not None:
        nn.utils.clip_grad_norm_(network.parameters(), largest)
    optimizer.step()
    with torch.no_grad():
        for slow, fast in zip(average.parameters(), network.parameters(), strict=True):
            slow.lerp_(fast, 0.001)


def _randomly_flipped(images: Tensor) -> Tensor:
    flipped = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(flipped, images.flip(-1), images)


def stored_bytes(run: Callable[[], object]) -> int:
    """Bytes of the tensors that autograd keeps for the backward pass while ``run`` runs."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        keep = run()
    del keep
    return sum(seen.values())
