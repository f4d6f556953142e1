"""Adversarial purification with energy-based models, in JAX.

Images → noise → a few steps along the score of an energy → classifier; and exact gradients back
through all of it. See ``docs/architecture.md``.

The names that a user types are here; the rooms behind them are the sub-packages. Each is imported when
it is first used (PEP 562), so that a command that only prints its flags starts without JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

from purify_jax.xla import set_flags

if TYPE_CHECKING:
    from purify_jax import (
        attacks,
        bridges,
        corruptions,
        data,
        defense,
        diffusions,
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
    from purify_jax.defense import Defense, undefended
    from purify_jax.devices import sharding
    from purify_jax.devices.execution import Execution
    from purify_jax.evaluation import accuracy, certify, evaluate, union_accuracy
    from purify_jax.keys import fold_keys, image_keys, stream_key
    from purify_jax.models import load_model, pretrained, save_model
    from purify_jax.purifiers import ADP, Adaptive
    from purify_jax.pytrees import Partial, as_pytree, jit
    from purify_jax.training import train_classifier, train_score_model

__version__ = "0.2.0"

# Before anything is compiled. The module says what it brings, and how to turn it off.
set_flags()

#: Name → the room that it is from; the other names of ``__all__`` are rooms. Type checkers read the imports
#: above; tests/project/test_start.py compares the two.
_FROM = {
    "Execution": "devices.execution",
    "InputError": "checks",
    "Partial": "pytrees",
    "accuracy": "evaluation",
    "ADP": "purifiers",
    "Adaptive": "purifiers",
    "Defense": "defense",
    "as_pytree": "pytrees",
    "certify": "evaluation",
    "evaluate": "evaluation",
    "fold_keys": "keys",
    "image_keys": "keys",
    "jit": "pytrees",
    "load_model": "models",
    "load_split": "data",
    "pretrained": "models",
    "save_model": "models",
    "sharding": "devices",
    "stream_key": "keys",
    "train_classifier": "training",
    "train_score_model": "training",
    "undefended": "defense",
    "union_accuracy": "evaluation",
}

#: Rooms that hardly anybody types, but may.
_FOUNDATIONS = ("arrays", "atomic", "checks", "costs", "devices", "pytrees")

__all__ = [
    "ADP",
    "Adaptive",
    "Defense",
    "Execution",
    "InputError",
    "Partial",
    "accuracy",
    "as_pytree",
    "attacks",
    "bridges",
    "certify",
    "corruptions",
    "data",
    "defense",
    "diffusions",
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
    "union_accuracy",
]


def __getattr__(name: str) -> Any:
    if name not in __all__ and name not in _FOUNDATIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = importlib.import_module(f"{__name__}.{_FROM.get(name, name)}")
    if name in _FROM:
        found = getattr(found, name)
    globals()[name] = found  # the next access is a plain one
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
