"""A purifier and a classifier → a folder in Hugging Face's layout.

``config.json`` (the card as JSON), ``model.safetensors`` (the purifier's energy or score model),
``classifier.safetensors`` and ``README.md`` (the card for people, its metadata as YAML).
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from purify_jax.atomic import check_output, write_atomically
from purify_jax.checks import InputError
from purify_jax.models.files import save_model
from purify_jax.models.hub.cards import LIBRARY, readme
from purify_jax.models.hub.pairs import Pretrained, check_same_images, digest
from purify_jax.models.model import Model

#: Role → its file's name.
NAMES = {"score_model": "model.safetensors", "classifier": "classifier.safetensors"}
CONFIG = "config.json"


def save(
    folder: str | Path,
    models: Pretrained | tuple[Model, Model],
    *,
    license: str | None = None,
) -> Path:
    """Writes a folder that ``pretrained.load`` and ``--model=`` take; returns the path of its config.json.

    Args:
      folder: where; it may hold an earlier version, and other files stay as they are. Nothing is sent
        anywhere: ``hf upload OWNER/NAME FOLDER`` does that.
      models: what ``pretrained.load`` returned, or (energy or score model, classifier).
      license: for the card's metadata, as the hub writes it ("mit", "apache-2.0"); none says nothing.

    A model is stored as its card says that it was ("bfloat16", or as it is). Raises InputError for models of
    different image shapes, or a folder whose config.json is of something else.
    """
    folder = Path(folder)
    card: Mapping[str, Any] = models.card if isinstance(models, Pretrained) else {}
    score_model, classifier = models[2:4] if isinstance(models, Pretrained) else models
    check_same_images(score_model, classifier)
    if "data" not in card:
        card = _card_of(score_model, classifier)
    check_output("folder", folder, folder=True)
    _check_own(folder)
    files = {}
    for role, model in (("score_model", score_model), ("classifier", classifier)):
        known = dict(card.get("files", {}).get(role, {}))
        bfloat16 = known.get("stored_as") == "bfloat16"
        path = folder / NAMES[role]
        save_model(path, model, jnp.bfloat16 if bfloat16 else None)
        files[role] = {
            **known,
            "name": path.name,
            "sha256": digest(path),
            "bytes": path.stat().st_size,
            "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(model.variables)),
            "role": model.role,
        }
    everything = {**card, "files": files, "image_shape": list(score_model.image_shape)}
    try:
        text = readme(everything, license)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"models: their card cannot be read ({type(error).__name__}: {error}), expected one as published"
        ) from error
    write_atomically(folder / "README.md", text)
    # Last, as it is what makes the folder one: until then a reader is told that there is none, or that a
    # file is not the one that the earlier config.json names.
    content = {"library_name": LIBRARY, **everything}
    write_atomically(folder / CONFIG, json.dumps(content, indent=2) + "\n")
    return folder / CONFIG


def _card_of(score_model: Model, classifier: Model) -> dict[str, Any]:
    """What the models' own files say, as a card."""
    name = classifier.metadata.get("dataset", score_model.metadata.get("dataset"))
    card = {"data": name, "purification": dict(score_model.metadata.get("purification", {}))}
    training = {
        r: m.metadata.get("training")
        for r, m in (("score_model", score_model), ("classifier", classifier))
    }
    return {**card, "files": {role: {"training": how} for role, how in training.items() if how}}


def _check_own(folder: Path) -> None:
    path = folder / CONFIG
    if not path.exists():
        return
    try:
        ours = json.loads(path.read_text()).get("library_name") == LIBRARY
    except (ValueError, AttributeError, OSError):
        ours = False
    if not ours:
        raise InputError(
            f"folder: {path} is not of this package, expected an empty folder or an earlier version"
        )
