"""Names of models on the Hugging Face hub, ``hf:owner/name``, and their folders on this machine."""

import re
from pathlib import Path

from purify_jax.checks import InputError, shown

PREFIX = "hf:"
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.)){0,95}"
_NAME = re.compile(rf"hf:({_PART}/{_PART})(?:@([A-Za-z0-9][A-Za-z0-9_.-]{{0,99}}))?")
#: What is fetched of a repository, whatever else lies there.
FILES = ("config.json", "README.md", "*.safetensors")


def is_hub_name(name: str) -> bool:
    """Whether a name means the hub.

    >>> is_hub_name("hf:owner/name"), is_hub_name("digits")
    (True, False)
    """
    return name.startswith(PREFIX)


def download(name: str) -> Path:
    """The folder of ``hf:owner/name`` or ``hf:owner/name@revision``, fetched or from the hub's own cache.

    Raises InputError for what is no such name, without the package huggingface_hub, and when the
    repository cannot be fetched: not there, private, or no network and nothing kept.
    """
    match = _NAME.fullmatch(name)
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
        return Path(snapshot_download(match[1], revision=match[2], allow_patterns=list(FILES)))
    except Exception as error:  # the hub's own errors, and those of whatever HTTP library it uses
        reason = " ".join(str(error).split())[:200] or "nothing said why"
        raise InputError(
            f"pretrained: {name} cannot be fetched ({type(error).__name__}: {reason}), expected a "
            "repository that is there and a network, or a local folder"
        ) from error
