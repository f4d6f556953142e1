"""Attacks: gradients, the loops that follow them, and suites of both."""

from purify_jax.attacks import costs, norms, saved, suites
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
from purify_jax.attacks.grafting import grafted
from purify_jax.attacks.momentum import momentum_pgd
from purify_jax.attacks.projected_gradient import PGD
from purify_jax.attacks.square_search import square
from purify_jax.attacks.targeted import apgd_targeted

__all__ = [
    "PGD",
    "apgd",
    "apgd_targeted",
    "average_draws",
    "blind",
    "bpda",
    "costs",
    "eot",
    "exact",
    "exact_held_steps",
    "grafted",
    "identity_backward",
    "joint_full",
    "joint_score",
    "momentum_pgd",
    "norms",
    "saved",
    "spsa",
    "square",
    "suites",
]
