"""Attacks: gradients, the loops that follow them, and suites of both."""

from purify_jax.attacks import norms, saved, suites
from purify_jax.attacks.auto_pgd import apgd
from purify_jax.attacks.averages import average_draws, eot
from purify_jax.attacks.gradients import (
    blind,
    bpda,
    exact,
    exact_held_steps,
    identity_backward,
    joint_full,
    joint_score,
    spsa,
)
from purify_jax.attacks.projected_gradient import pgd
from purify_jax.attacks.square_search import square
from purify_jax.attacks.targeted import apgd_targeted

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
    "saved",
    "spsa",
    "square",
    "suites",
]
