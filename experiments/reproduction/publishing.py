"""Trained models and their results → pretrained/: model files and a card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import purify_jax as pj
from experiments.reproduction.figures import hours, read
from experiments.reproduction.plans import Plan
from purify_jax.atomic import write_atomically
from purify_jax.checks import InputError

#: From this size in float32 the parameters are stored as bfloat16 (and widened when loaded).
LARGE = 2**20


def publish(plan: Plan, results: Path, folder: Path) -> list[Path]:
    """Writes the two models, under the names that their trainings ship them by, and ``<model>.json``.

    Of a suite whose demo trains both: ``<model>_ebm.safetensors`` and ``<model>_classifier.safetensors``.
    """
    if plan.ebm is None:
        raise InputError(f"publish: {plan.model} has no purifier, expected a suite with one")
    written, files = [], {}
    names = {part.folder / file: n for part in plan.parts for file, n in part.shipped.items()}
    for role, source in (("ebm", plan.ebm), ("classifier", plan.classifier)):
        path = folder / names.get(source, f"{plan.model}_{role}.safetensors")
        files[role] = publish_network(source, path)
        written.append(path)
    parts = read(results)
    if not parts:
        raise InputError(f"results: {results} has no results, expected those of this suite")
    model = pj.models.load_model(plan.ebm)
    card = {
        "data": model.metadata["dataset"],
        "budget": plan.note,
        "limits": plan.limits,
        "training": _trainings(plan, results),
        "purification": model.metadata["purification"],
        "commands": {name: part["command"] for name, part in parts.items()},
        "commits": sorted({part["commit"] for part in parts.values()}),
        "figures": {name: _headline(part) for name, part in parts.items() if _headline(part)},
        "files": files,
    }
    path = folder / f"{plan.model}.json"
    write_atomically(path, json.dumps(card, indent=2) + "\n")
    return [*written, path]


def publish_network(source: Path, path: Path) -> dict[str, Any]:
    """Stores a trained network as it ships, large ones as bfloat16; returns what a card says of it."""
    import jax
    import ml_dtypes

    model = pj.models.load_model(source)
    count = int(sum(np.size(x) for x in jax.tree.leaves(model.variables)))
    large = 4 * count > LARGE
    # A file of 0.2 written anew would differ in the order of its header, and have another digest.
    dtype = ml_dtypes.bfloat16 if large else None
    if not _is_there(path, model, dtype):
        pj.models.save_model(path, model, dtype)
    return {
        "name": path.name,
        "sha256": pj.pretrained.digest(path),
        "bytes": path.stat().st_size,
        "parameters": count,
        "stored_as": "bfloat16" if large else "float32",
        # A network that adversarial training went on with has both records.
        **{k: model.metadata[k] for k in ("training", "defense") if k in model.metadata},
    }


def _trainings(plan: Plan, results: Path) -> dict[str, Any]:
    """Training → its command, commit and hours, of those that have a record."""
    found = {}
    for part in plan.parts:
        folder = results.parent / part.shared if part.shared else results
        record = folder / f"{part.name}.json"
        if not part.is_training or not record.is_file():
            continue
        made = json.loads(record.read_text())
        taken = hours(made)
        device = made["versions"]["device"]
        found[part.name] = {
            "command": made["command"],
            "commit": made["commit"],
            "hours": None if taken is None else round(taken, 2),
            "device": "two CPU cores" if device == "cpu" else device,
            **({"note": made["note"]} if "note" in made else {}),
        }
    return found


def _is_there(path: Path, model: pj.models.Model, dtype: Any) -> bool:
    """Whether the file holds this model already, as it would be stored."""
    if not path.is_file():
        return False
    found = pj.models.load_model(path)
    stored = lambda x: np.asarray(x) if dtype is None else np.asarray(x).astype(dtype)
    same = lambda a, b: np.array_equal(a, stored(b).astype(np.float32))
    import jax

    trees = jax.tree.structure(found.variables) == jax.tree.structure(model.variables)
    return (
        trees
        and (found.role, found.metadata) == (model.role, model.metadata)
        and all(map(same, *map(jax.tree.leaves, (found.variables, model.variables))))
    )


def _headline(part: dict[str, Any]) -> dict[str, Any]:
    """The figures of an evaluation: clean accuracy, average, worst of several draws, worst case, with intervals."""
    if "worst_case" not in part:
        return {}
    clean = {label: rows[0]["one_draw"] for label, rows in part["rows"].items()}
    figures = {
        label: {name: found[name] for name in ("average", "worst", "draws", "cost")}
        for label, found in part.get("figures", {}).items()
    }
    return {
        "clean": clean,
        "worst_case": part["worst_case"],
        **({"figures": figures} if figures else {}),
    }
