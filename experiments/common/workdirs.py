"""A work directory belongs to one config; it is never emptied, and never shared."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.common.locks import hold
from purify_jax.atomic import write_atomically
from purify_jax.checks import InputError


def claim_workdir(
    workdir: str | Path, config: Mapping[str, Any], name: str = "config.json"
) -> Path:
    """Makes ``workdir`` and writes the config into it, or checks that it belongs to that config.

    No other process can claim it until this one ends. Raises InputError that names the first
    difference if the folder belongs to another config, or that says so if it cannot be written or
    another process works in it.
    """
    workdir = Path(workdir)
    text = json.dumps(config, indent=2, sort_keys=True, default=str)
    path = workdir / name
    hold("workdir", workdir)
    if not path.exists():
        write_atomically(path, text)
        return workdir
    from purify_jax.evaluation.identity import difference  # loads JAX, which flags do not need

    try:
        before = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"workdir: {path} is damaged ({error}), expected the config of an earlier run; another "
            "folder starts anew"
        ) from error
    if (differs := difference(before, json.loads(text))) is not None:
        raise InputError(
            f"workdir: {workdir} belongs to another config ({differs}), expected the same config or "
            "another --workdir"
        )
    return workdir
