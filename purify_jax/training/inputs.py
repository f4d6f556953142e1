"""The weights that a training begins with: a work directory is for one set of them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from purify_jax.atomic import write_atomically
from purify_jax.checks import InputError
from purify_jax.models.files import Model

_NAME = "inputs.json"


def digest(weights: Any) -> str:
    """SHA-256 of a pytree: paths, dtypes, shapes and values of its arrays and numbers."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(weights)[0]:
        array = np.asarray(leaf)
        about = f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape} "
        found.update(about.encode() + array.tobytes())
    return found.hexdigest()


def claim_inputs(workdir: str | Path, inputs: Mapping[str, Any]) -> None:
    """Writes the digests of what a training starts from, or checks that they are those of before.

    Checkpoints hold what became of these weights; a training that continued them would silently ignore
    the weights that it is given now.

    Args:
      workdir: of the training.
      inputs: models or other pytrees by name; None for what is not given.

    Raises InputError, naming the first that differs.
    """
    path = Path(workdir) / _NAME
    weights = {n: dict(v.variables) if isinstance(v, Model) else v for n, v in inputs.items()}
    now = {name: digest(value) for name, value in weights.items() if value is not None}
    try:
        before = json.loads(path.read_text()) if path.is_file() else None
    except ValueError as error:
        raise InputError(f"workdir: {path} is damaged ({error}), expected it as written") from error
    if before is None and now and jax.process_index() == 0:
        write_atomically(path, json.dumps(now, indent=2))
    for name in sorted({**(before or now), **now}):
        if before is not None and before.get(name) != now.get(name):
            raise InputError(
                f"{name}: its weights are not those that the training in {workdir} began with, expected "
                "the same, or another workdir"
            )
