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
    try:
        before = _flatten(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise InputError(
            f"workdir: {path} is damaged ({error}), expected the config of an earlier run; another "
            "folder starts anew"
        ) from error
    now = _flatten(json.loads(text))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise InputError(
                f"workdir: {workdir} belongs to another config ({key}: {before.get(key)!r} there, "
                f"{now.get(key)!r} now), expected an empty folder or the same config"
            )
    return workdir


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {
        k: v for name, sub in tree.items() for k, v in _flatten(sub, f"{prefix}{name}.").items()
    }
