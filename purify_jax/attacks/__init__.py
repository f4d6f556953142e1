"""Attacks: gradients, the loops that follow them, and suites of both."""

from purify_jax.attacks import norms, suite
from purify_jax.attacks.apgd import apgd, apgd_targeted
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
from purify_jax.attacks.square import square

__all__ = [
    "apgd",
    "apgd_targeted",
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
    "square",
    "suite",
]
