"""Bridges: a defense as other frameworks take it, and defenses of another framework as JAX takes them.

None of them is imported before it is used.
"""

from purify_jax.bridges.from_torch import (
    TorchDefense,
    TorchLogits,
    TorchPurifier,
    defense_from_torch,
    logits_from_torch,
    purifier_from_torch,
)
from purify_jax.bridges.own_code import built, defense_of
from purify_jax.bridges.torch_module import as_torch_module
from purify_jax.bridges.traits import Traits

__all__ = [
    "TorchDefense",
    "TorchLogits",
    "TorchPurifier",
    "Traits",
    "as_torch_module",
    "built",
    "defense_from_torch",
    "defense_of",
    "logits_from_torch",
    "purifier_from_torch",
]
