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
    ScoreAt,
    noise_score,
    pixels,
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
    "ScoreAt",
    "noise_score",
    "pixels",
    "signed",
]
