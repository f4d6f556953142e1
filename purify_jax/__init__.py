"""Adversarial purification with energy-based models, in JAX.

Images → noise → a few steps along the score of an energy → classifier; and exact gradients back
through all of it. See ``docs/architecture.md``.
"""

from purify_jax import (
    attacks,
    baselines,
    certification,
    checkpoints,
    corruptions,
    data,
    defense,
    detection,
    energy,
    evaluation,
    exporting,
    jpeg,
    losses,
    models,
    networks,
    noise,
    plots,
    pretrained,
    purification,
    records,
    red_flags,
    report,
    sharding,
    sweeps,
    torch_weights,
    training,
    types,
)
from purify_jax.types import InputError

__version__ = "0.1.0"

__all__ = [
    "InputError",
    "attacks",
    "baselines",
    "certification",
    "checkpoints",
    "corruptions",
    "data",
    "defense",
    "detection",
    "energy",
    "evaluation",
    "exporting",
    "jpeg",
    "losses",
    "models",
    "networks",
    "noise",
    "plots",
    "pretrained",
    "purification",
    "records",
    "red_flags",
    "report",
    "sharding",
    "sweeps",
    "torch_weights",
    "training",
    "types",
]
