"""Attacks: gradients, and the loops that follow them."""

from purify_jax.attacks import norms
from purify_jax.attacks.gradients import (
    average_draws,
    blind,
    bpda,
    eot,
    exact,
    exact_held_steps,
    identity_backward,
    joint_full,
    joint_score,
    spsa,
)
from purify_jax.attacks.pgd import pgd

__all__ = [
    "average_draws",
    "blind",
    "bpda",
    "eot",
    "exact",
    "exact_held_steps",
    "identity_backward",
    "joint_full",
    "joint_score",
    "norms",
    "pgd",
    "spsa",
]
