"""Models that ship with the project: a purifier and a classifier by name, checked and ready."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from purify_jax.checks import InputError, check_choice, check_file_name
from purify_jax.defense import Defense, defend
from purify_jax.models.files import Model, load_model
from purify_jax.models.methods import model_purifier
from purify_jax.models.settings import logits_fn
from purify_jax.purifiers import Purifier
from purify_jax.types import LogitsFn


class Pretrained(NamedTuple):
    """A purifier and a classifier, as functions and as models; ``card`` says where they are from."""

    purifier: Purifier
    logits_fn: LogitsFn
    ebm: Model
    classifier: Model
    card: Mapping[str, Any]

    @property
    def defense(self) -> Defense:
        """The purifier before the classifier."""
        return defend(self.purifier, self.logits_fn)


def folders() -> list[Path]:
    """Where models are looked for: the checkout's pretrained/, then the installed copy."""
    package = Path(__file__).parents[1]
    return [package.parent / "pretrained", package / "shipped"]


def available() -> list[str]:
    """The names that :func:`load` knows."""
    return sorted({p.stem for folder in folders() for p in folder.glob("*.json")})


def load(name: str) -> Pretrained:
    """The purifier and the classifier of a data set: "digits", "mnist" or "cifar10".

    Every file's SHA-256 is compared with the card's. Raises InputError for an unknown name, and
    for a file that is missing or damaged, which it names.
    """
    check_choice("pretrained", name, available())
    cards = [path for folder in folders() if (path := folder / f"{name}.json").is_file()]
    card, files = _read_card(cards[0])
    found = {}
    for role, file in files.items():
        path = cards[0].parent / file["name"]
        if not path.is_file():
            raise InputError(f"pretrained: {path} is missing, expected beside its card {cards[0]}")
        if digest(path) != file["sha256"]:
            raise InputError(
                f"pretrained: {path} is damaged (its SHA-256 is not the card's), expected the "
                "file as published"
            )
        found[role] = load_model(path, _ROLES[role])
    return Pretrained(
        model_purifier(found["ebm"]),
        logits_fn(found["classifier"]),
        found["ebm"],
        found["classifier"],
        card,
    )


#: Role in a card → what its model may be.
_ROLES = {"ebm": ("energy", "score"), "classifier": ("classifier",)}


def _read_card(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    """(the card, role → name and digest of its file); InputError if the card is damaged."""
    try:
        card = json.loads(path.read_text())
        files = {r: {k: card["files"][r][k] for k in ("name", "sha256")} for r in _ROLES}
    except (ValueError, LookupError, TypeError) as error:
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
