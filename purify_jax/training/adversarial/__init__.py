"""Purifier-aware adversarial training of a classifier, a purifier, or both."""

from purify_jax.training.adversarial.loss import Attack, Collapsed, DefenseLoss
from purify_jax.training.adversarial.run import (
    TRAINABLE,
    DefenseSettings,
    TrainedDefense,
    train_defense,
)

__all__ = [
    "TRAINABLE",
    "Attack",
    "Collapsed",
    "DefenseLoss",
    "DefenseSettings",
    "TrainedDefense",
    "train_defense",
]
