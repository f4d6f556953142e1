"""Models that are ready: those that ship, by name; a folder; the Hugging Face hub. Checked when loaded."""

from pathlib import Path

from purify_jax.checks import InputError, shown
from purify_jax.models.hub import Pretrained, digest, download, is_hub_name, load_pair, save

__all__ = ["Pretrained", "available", "digest", "folders", "load", "save"]


def folders() -> list[Path]:
    """Where models that ship are looked for: the checkout's pretrained/, then the installed copy."""
    package = Path(__file__).parents[1]
    return [package.parent / "pretrained", package / "shipped"]


def available() -> list[str]:
    """The names of the models that ship."""
    return sorted({p.stem for folder in folders() for p in folder.glob("*.json")})


def load(name: str | Path) -> Pretrained:
    """A purifier and its classifier.

    Args:
      name: of a model that ships ("digits", "digits_best", "mnist", "cifar10", "cifar10_adp"); a folder that
        :func:`save` wrote; or ``hf:owner/name[@revision]``, which is fetched from the Hugging Face hub and needs the
        package huggingface_hub (``pip install 'purify_jax[hf]'``).

    Every file's SHA-256 is compared with the card's. Raises InputError for what is none of these, for a file
    that is missing or damaged, which it names, and for a repository that cannot be fetched.
    """
    known = available()
    if isinstance(name, str) and name in known:
        cards = [path for folder in folders() if (path := folder / f"{name}.json").is_file()]
        return load_pair(cards[0])
    if isinstance(name, str) and is_hub_name(name):
        return load_pair(_config(download(name), name))
    if isinstance(name, str | Path) and (found := _config_of(name)):
        return load_pair(found)
    raise InputError(
        f"pretrained: got {shown(str(name) if isinstance(name, Path) else name)}, expected one of {known}, "
        "a folder with config.json, or hf:OWNER/NAME"
    )


def _config_of(folder: str | Path) -> Path | None:
    try:
        path = Path(folder) / "config.json"
        return path if str(folder) and path.is_file() else None
    except (OSError, ValueError):  # a name too long for a file, or one with a zero byte
        return None


def _config(folder: Path, name: str) -> Path:
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(
            f"pretrained: {name} has no config.json, expected a folder of this package"
        )
    return path
