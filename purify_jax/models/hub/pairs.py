"""A purifier and a classifier that belong together, read by the card that lies beside their files."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from purify_jax.checks import InputError, check_file_name
from purify_jax.defense import Defense
from purify_jax.models.files import load_model
from purify_jax.models.methods import model_purifier
from purify_jax.models.model import Model
from purify_jax.models.settings import logits_fn
from purify_jax.purifiers import Purifier
from purify_jax.pytrees import described
from purify_jax.types import LogitsFn

#: Role in a card → what its model may be.
ROLES = {"score_model": ("energy", "score"), "classifier": ("classifier",)}


class Pretrained(NamedTuple):
    """A purifier and a classifier, as functions and as models; ``card`` says where they are from."""

    purifier: Purifier
    logits_fn: LogitsFn
    score_model: Model
    classifier: Model
    card: Mapping[str, Any]

    def __repr__(self) -> str:
        purifier, logits_fn = described(self.purifier), described(self.logits_fn)
        return f"Pretrained(data={self.card.get('data')!r}, purifier={purifier}, logits_fn={logits_fn})"

    @property
    def defense(self) -> Defense:
        """The purifier before the classifier."""
        return Defense(self.purifier, self.logits_fn)


def load_pair(path: Path) -> Pretrained:
    """The models of the card at ``path``, which lie beside it.

    Every file's SHA-256 is compared with the card's. Raises InputError for a card or a file that is
    missing or damaged, which it names, and for two models of different image shapes.
    """
    card, files = _read_card(path)
    found = {}
    for role, file in files.items():
        place = path.parent / file["name"]
        if not place.is_file():
            raise InputError(f"pretrained: {place} is missing, expected beside its card {path}")
        if digest(place) != file["sha256"]:
            raise InputError(
                f"pretrained: {place} is damaged (its SHA-256 is not the card's), expected the "
                "file as published"
            )
        found[role] = load_model(place, ROLES[role])
    score_model, classifier = found["score_model"], found["classifier"]
    check_same_images(score_model, classifier)
    return Pretrained(
        model_purifier(score_model), logits_fn(classifier), score_model, classifier, card
    )


def check_same_images(score_model: Model, classifier: Model) -> None:
    """Raises InputError unless both are made for images of one shape."""
    if tuple(score_model.image_shape) != tuple(classifier.image_shape):
        raise InputError(
            f"score_model: made for images {score_model.image_shape}, expected the classifier's "
            f"{classifier.image_shape}"
        )


def _read_card(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    """(the card, role → name and digest of its file); InputError if the card is damaged."""
    try:
        card = json.loads(path.read_text())
        files = {r: {k: card["files"][r][k] for k in ("name", "sha256")} for r in ROLES}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(
            f"pretrained: the card {path} is damaged ({type(error).__name__}: {error}), expected it "
            "as published"
        ) from error
    for role, file in files.items():
        check_file_name(f"pretrained: {role} of the card {path}", file["name"])
    return card, files


def digest(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
