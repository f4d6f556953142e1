"""Bridges: a defense as other frameworks take it, a classifier of another framework as JAX takes it.

None of them is imported before it is used.
"""

from purify_jax.bridges.torch_classifier import logits_from_torch
from purify_jax.bridges.torch_module import as_torch_module

__all__ = ["as_torch_module", "logits_from_torch"]
