"""Adversarial purification with energy-based models, in JAX.

Images → noise → a few steps along the score of an energy → classifier; and exact gradients back
through all of it. See ``docs/architecture.md``.

The names of ``__all__`` are the public ones. Each is imported when it is first used, so that a command
that only prints its flags starts without JAX.
"""

from etils import epy

from purify_jax.xla import set_flags

__version__ = "0.3.0"

# Before anything is compiled. The module says what it brings, and how to turn it off.
set_flags()

# Imported ``as`` themselves: reachable by name, but not public.
with epy.lazy_api_imports(globals()):
    from purify_jax import arrays as arrays
    from purify_jax import atomic as atomic
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
    from purify_jax import checks as checks
    from purify_jax import costs as costs
    from purify_jax import devices as devices
    from purify_jax import pytrees as pytrees
    from purify_jax.checks import InputError
    from purify_jax.data import load_split
    from purify_jax.defense import Defense, undefended
    from purify_jax.devices import sharding
    from purify_jax.devices.execution import Execution
    from purify_jax.evaluation import accuracy, audit, certify, evaluate, examine, union_accuracy
    from purify_jax.keys import fold_keys, image_keys, stream_key
    from purify_jax.models import load_model, pretrained, save_model
    from purify_jax.purifiers import ADP, Adaptive
    from purify_jax.pytrees import Partial, as_pytree, jit
    from purify_jax.training import train_classifier, train_score_model

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
    "audit",
    "bridges",
    "certify",
    "corruptions",
    "data",
    "defense",
    "diffusions",
    "energy",
    "evaluate",
    "evaluation",
    "examine",
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
