"""Models that are ready, a purifier and its classifier: those that ship, a folder, the Hugging Face hub.

A folder has Hugging Face's layout: ``config.json`` (the card as JSON), ``model.safetensors`` (the purifier's energy
or score model), ``classifier.safetensors`` and ``README.md`` (the card for people, its metadata as YAML).
"""

import hashlib
import json
import math
import re
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from purify_jax.atomic import check_output, write_atomically
from purify_jax.checks import InputError, check_file_name, shown
from purify_jax.defense import Defense
from purify_jax.models.cards import LIBRARY, readme
from purify_jax.models.files import load_model, save_model
from purify_jax.models.methods import model_purifier
from purify_jax.models.model import Model, check_same_images
from purify_jax.models.settings import logits_fn
from purify_jax.purifiers import Purifier
from purify_jax.pytrees import described
from purify_jax.types import Json, LogitsFn

__all__ = ["Pretrained", "available", "digest", "folders", "load", "save"]

#: Role in a card → what its model may be, and the name of its file in a folder.
_ROLES = {"score_model": ("energy", "score"), "classifier": ("classifier",)}
_NAMES = {"score_model": "model.safetensors", "classifier": "classifier.safetensors"}
_CONFIG = "config.json"
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.)){0,95}"
_HUB_NAME = re.compile(rf"hf:({_PART}/{_PART})(?:@([A-Za-z0-9][A-Za-z0-9_.-]{{0,99}}))?")
#: What is fetched of a repository on the hub, whatever else lies there.
_FETCHED = (_CONFIG, "README.md", "*.safetensors")


class Pretrained(NamedTuple):
    """A purifier and a classifier, as functions and as models; ``card`` says where they are from."""

    purifier: Purifier
    logits_fn: LogitsFn
    score_model: Model
    classifier: Model
    card: Json

    def __repr__(self) -> str:
        purifier, logits_fn = described(self.purifier), described(self.logits_fn)
        return f"Pretrained(data={self.card.get('data')!r}, purifier={purifier}, logits_fn={logits_fn})"

    @property
    def defense(self) -> Defense:
        """The purifier before the classifier."""
        return Defense(self.purifier, self.logits_fn)


def folders() -> list[Path]:
    """Where models that ship are looked for: the checkout's pretrained/, then the installed copy."""
    package = Path(__file__).parents[1]
    return [package.parent / "pretrained", package / "shipped"]


def available() -> list[str]:
    """The names of the models that ship."""
    return sorted({p.stem for folder in folders() for p in folder.glob("*.json")})


def digest(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


# --- loading ------------------------------------------------------------------------------------


def load(name: str | Path) -> Pretrained:
    """A purifier and its classifier.

    Args:
      name: of a model that ships ("digits", "digits_best", "mnist", "cifar10", "cifar10_adp"); a folder that
        :func:`save` wrote; or ``hf:owner/name[@revision]``, which is fetched from the Hugging Face hub and needs the
        package huggingface_hub (``pip install 'purify_jax[hf]'``).

    Every file's SHA-256 is compared with the card's. Raises InputError for what is none of these, for a file
    that is missing or damaged, which it names, for models of different image shapes, and for a repository
    that cannot be fetched.
    """
    known = available()
    if isinstance(name, str) and name in known:
        cards = [path for folder in folders() if (path := folder / f"{name}.json").is_file()]
        return _load_pair(cards[0])
    if isinstance(name, str) and name.startswith("hf:"):
        card = _download(name) / _CONFIG
        if not card.is_file():
            raise InputError(
                f"pretrained: {name} has no {_CONFIG}, expected a folder of this package"
            )
        return _load_pair(card)
    try:
        card = Path(name) / _CONFIG
        found = name != "" and card.is_file()
    except (OSError, TypeError, ValueError):  # no path, or one that the system refuses
        found = False
    if found:
        return _load_pair(card)
    raise InputError(
        f"pretrained: got {shown(str(name) if isinstance(name, Path) else name)}, expected one of {known}, "
        "a folder with config.json, or hf:OWNER/NAME"
    )


def _download(name: str) -> Path:
    """The folder of ``hf:owner/name[@revision]``, fetched or from the hub's own cache."""
    match = _HUB_NAME.fullmatch(name)
    if match is None:
        raise InputError(f"pretrained: got {shown(name)}, expected hf:OWNER/NAME[@REVISION]")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise InputError(
            f"pretrained: {name} needs the package huggingface_hub (pip install 'purify_jax[hf]'), "
            "expected it installed, or a local folder"
        ) from error
    try:
        return Path(snapshot_download(match[1], revision=match[2], allow_patterns=list(_FETCHED)))
    except Exception as error:  # the hub's own errors, and those of whatever HTTP library it uses
        reason = " ".join(str(error).split())[:200] or "nothing said why"
        raise InputError(
            f"pretrained: {name} cannot be fetched ({type(error).__name__}: {reason}), expected a "
            "repository that is there and a network, or a local folder"
        ) from error


def _load_pair(path: Path) -> Pretrained:
    """The models of the card at ``path``, which lie beside it."""
    try:
        card = json.loads(path.read_text())
        files = {r: (card["files"][r]["name"], card["files"][r]["sha256"]) for r in _ROLES}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(
            f"pretrained: the card {path} is damaged ({type(error).__name__}: {error}), expected it "
            "as published"
        ) from error
    for role, (name, _) in files.items():
        check_file_name(f"pretrained: {role} of the card {path}", name)
    found = {}
    for role, (name, sha256) in files.items():
        place = path.parent / name
        if not place.is_file():
            raise InputError(f"pretrained: {place} is missing, expected beside its card {path}")
        if digest(place) != sha256:
            raise InputError(
                f"pretrained: {place} is damaged (its SHA-256 is not the card's), expected the "
                "file as published"
            )
        found[role] = load_model(place, _ROLES[role])
    score_model, classifier = found["score_model"], found["classifier"]
    check_same_images(score_model, classifier)
    return Pretrained(
        model_purifier(score_model), logits_fn(classifier), score_model, classifier, card
    )


# --- saving -------------------------------------------------------------------------------------


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
    card: Json = models.card if isinstance(models, Pretrained) else {}
    score_model, classifier = models[2:4] if isinstance(models, Pretrained) else models
    check_same_images(score_model, classifier)
    roles = {"score_model": score_model, "classifier": classifier}
    if "data" not in card:  # what the models' own files say
        training = {role: model.metadata.get("training") for role, model in roles.items()}
        card = {
            "data": classifier.metadata.get("dataset", score_model.metadata.get("dataset")),
            "purification": dict(score_model.metadata.get("purification", {})),
            "files": {role: {"training": how} for role, how in training.items() if how},
        }
    check_output("folder", folder, folder=True)
    _check_own(folder / _CONFIG)
    files = {}
    for role, model in roles.items():
        known = dict(card.get("files", {}).get(role, {}))
        path = folder / _NAMES[role]
        save_model(path, model, jnp.bfloat16 if known.get("stored_as") == "bfloat16" else None)
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
    write_atomically(folder / _CONFIG, json.dumps(content, indent=2) + "\n")
    return folder / _CONFIG


def _check_own(path: Path) -> None:
    """Raises InputError if there is a config.json that :func:`save` has not written."""
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
