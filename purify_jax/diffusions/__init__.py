"""Diffusion models as denoisers D(x; σ) and scores, whatever they predict and however they condition."""

from purify_jax.diffusions.denoisers import (
    EDM,
    VE,
    VP,
    BoundNetwork,
    Diffusion,
    DiscreteVP,
    FromScore,
    LinearSchedule,
    NetworkFn,
    noise_score,
    pixels,
    score_at,
    signed,
)

__all__ = [
    "EDM",
    "VE",
    "VP",
    "BoundNetwork",
    "Diffusion",
    "DiscreteVP",
    "FromScore",
    "LinearSchedule",
    "NetworkFn",
    "noise_score",
    "pixels",
    "score_at",
    "signed",
]
