"""Attacks: gradients, the loops that follow them, and suites of both."""

from purify_jax.attacks import norms, saved, suites
from purify_jax.attacks.auto_pgd import APGD
from purify_jax.attacks.averages import EOT, MeanPrediction
from purify_jax.attacks.gradients import (
    SPSA,
    ExactGradient,
    IdentityBackward,
    JointFull,
    JointScore,
    blind,
    bpda,
    exact_held_steps,
)
from purify_jax.attacks.grafting import Grafted
from purify_jax.attacks.momentum import MomentumPGD
from purify_jax.attacks.projected_gradient import PGD
from purify_jax.attacks.shared_keys import white_box
from purify_jax.attacks.square_search import Square
from purify_jax.attacks.targeted import TargetedAPGD

__all__ = [
    "APGD",
    "EOT",
    "PGD",
    "SPSA",
    "ExactGradient",
    "Grafted",
    "IdentityBackward",
    "JointFull",
    "JointScore",
    "MeanPrediction",
    "MomentumPGD",
    "Square",
    "TargetedAPGD",
    "blind",
    "bpda",
    "exact_held_steps",
    "norms",
    "saved",
    "suites",
    "white_box",
]
