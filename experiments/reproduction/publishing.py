"""Trained models and their results → pretrained/: model files and a card."""

import json
from pathlib import Path
from typing import Any

import purify_jax as pj
from experiments.reproduction.parts import Plan
from experiments.reproduction.results import Result, hours, is_evaluation, read
from purify_jax.atomic import write_atomically
from purify_jax.checks import InputError

#: From this size in float32 the parameters are stored as bfloat16 (and widened when loaded).
LARGE = 2**20


def publish(plan: Plan, results: Path, folder: Path) -> list[Path]:
    """Writes the two models, under the names that their trainings ship them by, and ``<model>.json``.

    Of a suite whose demo trains both: ``<model>_score_model.safetensors`` and ``<model>_classifier.safetensors``.
    """
    if plan.score_model is None:
        raise InputError(f"publish: {plan.model} has no purifier, expected a suite with one")
    written, files = [], {}
    names = {part.folder / file: n for part in plan.parts for file, n in part.shipped.items()}
    for role, source in (("score_model", plan.score_model), ("classifier", plan.classifier)):
        path = folder / names.get(source, f"{plan.model}_{role}.safetensors")
        files[role] = publish_network(source, path)
        written.append(path)
    parts = read(results)
    if not parts:
        raise InputError(f"results: {results} has no results, expected those of this suite")
    model = pj.models.load_model(plan.score_model)
    card = {
        "data": model.metadata["dataset"],
        "budget": plan.note,
        "limits": plan.limits,
        "training": _trainings(plan, results),
        "purification": model.metadata["purification"],
        "commands": {name: part["command"] for name, part in parts.items()},
        "commits": sorted({part["commit"] for part in parts.values()}),
        "evaluations": {n: _headline(part) for n, part in parts.items() if is_evaluation(part)},
        "files": files,
    }
    path = folder / f"{plan.model}.json"
    write_atomically(path, json.dumps(card, indent=2) + "\n")
    return [*written, path]


def publish_network(source: Path, path: Path) -> dict[str, Any]:
    """Stores a trained network as it ships, large ones as bfloat16; returns what a card says of it."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    model = pj.models.load_model(source)
    count = int(sum(np.size(x) for x in jax.tree.leaves(model.variables)))
    large = 4 * count > LARGE
    pj.models.save_model(path, model, jnp.bfloat16 if large else None)
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


def _headline(part: Result) -> dict[str, Any]:
    """What an evaluation found, with intervals: clean accuracy, and the summary of all attacks."""
    names = ("average", "all_draws", "draws", "cost")
    return {
        "clean": {label: rows[0]["one_draw"] for label, rows in part["rows"].items()},
        "union_accuracy": part["union_accuracy"],
        "summary": {
            label: {name: found[name] for name in names} for label, found in part["summary"].items()
        },
    }
