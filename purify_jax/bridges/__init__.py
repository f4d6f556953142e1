"""Bridges: a defense as other frameworks take it. None of them is imported before it is used."""

from purify_jax.bridges.torch_module import as_torch_module

__all__ = ["as_torch_module"]
