"""Somebody's own code as a defense: what a function in a file returns, or what is given in Python."""

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from purify_jax.checks import InputError
from purify_jax.defense import Defense, Whole, undefended
from purify_jax.types import PredictFn

#: What ``build()`` may return, for messages.
EXPECTED = (
    "a torch.nn.Module, a pair (purifier, classifier), a function (keys, images) → log-probabilities, "
    "a function images → logits, or a purify_jax.Defense"
)

Found = TypeVar("Found")


def built(place: str) -> object:
    """What the function of ``FILE.py:FUNCTION`` returns when it is called; the file is run as a program is.

    Its folder is searched for what it imports, as that of a script. Raises InputError for no such file or
    function, and for one that raises, after its traceback.
    """
    file, _, name = place.rpartition(":")
    path = Path(file)
    if not file or not name.isidentifier():
        raise InputError(
            f"defense: got {place!r}, expected FILE.py:FUNCTION, such as my_code.py:build"
        )
    if not path.is_file():
        raise InputError(f"defense: {file} is no file, expected FILE.py:FUNCTION")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"defense: {file} is no Python file, expected FILE.py:FUNCTION")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(
        path.stem, module
    )  # what it defines can then be pickled, and found by name
    _calling(file, lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]
    function = getattr(module, name, None)
    if not callable(function):
        has = [n for n, value in vars(module).items() if inspect.isfunction(value)]
        raise InputError(f"defense: {file} has no function {name!r}, expected one of {has}")
    return _calling(place, function)


def _calling(place: str, function: Callable[[], Found]) -> Found:
    try:
        return function()
    except Exception as error:
        traceback.print_exc()
        raise InputError(
            f"defense: {place} raised {type(error).__name__}: {error} (its traceback is above)"
        ) from error


def defense_of(given: object, images: np.ndarray, num_classes: int | None = None) -> PredictFn:
    """Somebody's defense as (keys, images) → log-probabilities.

    Args:
      given: a PyTorch module of the whole defense, a pair (purifier, classifier) whose parts are PyTorch
        modules or functions of JAX, a function (keys, images) → log-probabilities or images → logits, or a
        ``Defense``. A purifier of JAX is (keys, images) → (purified, info).
      images: ``[batch, h, w, c]`` in [0, 1], on the first of which PyTorch code is measured.
      num_classes: how many classes PyTorch code shall have; measured by default.

    Raises InputError for anything else.
    """
    images = images[:4]
    if isinstance(given, (tuple, list)) and len(given) == 2:
        return _pair(given[0], given[1], images, num_classes)
    if _is_torch(given):
        from purify_jax.bridges.from_torch import defense_from_torch

        return defense_from_torch(given, num_classes, images=images)
    if isinstance(given, (Defense, Whole)) or (callable(given) and _operands(given) >= 2):
        return given
    if callable(given) and not isinstance(given, type):
        return undefended(given)
    raise InputError(f"defense: got {type(given).__name__}, expected {EXPECTED}")


def _pair(purifier: Any, classifier: Any, images: np.ndarray, num_classes: int | None) -> Defense:
    if _is_torch(purifier):
        from purify_jax.bridges.from_torch import purifier_from_torch

        purifier = purifier_from_torch(purifier, images=images)
    if _is_torch(classifier):
        from purify_jax.bridges.from_torch import logits_from_torch

        keys = jax.random.split(jax.random.key(0), len(images))
        # Measured in [0, 1], which a purifier may leave.
        purified = np.clip(purifier(keys, jnp.asarray(images))[0][0], 0, 1)
        classifier = logits_from_torch(classifier, num_classes, images=purified)
    for name, part in (("purifier", purifier), ("classifier", classifier)):
        if not callable(part):
            raise InputError(f"defense: its {name} is a {type(part).__name__}, expected a function")
    return Defense(purifier, classifier)


def _is_torch(value: object) -> bool:
    """Whether this is a module of PyTorch, or an object with a method ``sample`` (a pipeline)."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.nn.Module):
        return True
    return not callable(value) and callable(getattr(value, "sample", None))


def _operands(function: Callable) -> int:
    """How many positional arguments a function requires."""
    try:
        given = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 2
    needed = [p for p in given if p.default is p.empty]
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in needed)
