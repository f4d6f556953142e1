"""Adversarial purification with energy-based models, in JAX.

Images → noise → a few steps along the score of an energy → classifier; and exact gradients back
through all of it. See ``docs/architecture.md``.

The names that a user types are here; the rooms behind them are the sub-packages.
"""

from purify_jax import (
    attacks,
    bridges,
    corruptions,
    data,
    defense,
    energy,
    evaluation,
    keys,
    losses,
    models,
    networks,
    noise,
    purifiers,
    reporting,
    training,
    types,
)
from purify_jax.checks import InputError
from purify_jax.data import load_split
from purify_jax.defense import defend, undefended
from purify_jax.devices import sharding
from purify_jax.evaluation import accuracy, certify, evaluate, worst_case
from purify_jax.keys import fold_keys, image_keys, stream_key
from purify_jax.models import load_model, pretrained, save_model
from purify_jax.purifiers import adaptive, purifier
from purify_jax.pytrees import Partial, as_pytree, jit
from purify_jax.training import train_classifier, train_score_model

__version__ = "0.2.0"

__all__ = [
    "InputError",
    "Partial",
    "accuracy",
    "adaptive",
    "as_pytree",
    "attacks",
    "bridges",
    "certify",
    "corruptions",
    "data",
    "defend",
    "defense",
    "energy",
    "evaluate",
    "evaluation",
    "fold_keys",
    "image_keys",
    "jit",
    "keys",
    "load_model",
    "load_split",
    "losses",
    "models",
    "networks",
    "noise",
    "pretrained",
    "purifier",
    "purifiers",
    "reporting",
    "save_model",
    "sharding",
    "stream_key",
    "train_classifier",
    "train_score_model",
    "training",
    "types",
    "undefended",
    "worst_case",
]
