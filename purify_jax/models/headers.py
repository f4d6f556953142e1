"""What a model file says of itself: one schema, checked before anything is allocated."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Self

import flax.linen as nn

from purify_jax import networks, noise
from purify_jax.checks import InputError, check_choice, check_count, check_number, shown
from purify_jax.models.methods import check_settings
from purify_jax.types import Json

FORMAT = "purify_jax"
#: The roles of models that purify, and all.
SCORE_ROLES = ("energy", "score", "diffusion")
ROLES = (*SCORE_ROLES, "classifier")
#: Largest side and most channels of images that a file may be for.
MOST_PIXELS, MOST_CHANNELS = 4096, 64


@dataclasses.dataclass(frozen=True)
class Header:
    """The header of a model file.

    role: one of :data:`ROLES`. network: a linen module of ``networks.BY_NAME``.
    image_shape: ``(height, width, channels)``.
    metadata: JSON; where there are any, its data set is a text, its number of classes a count,
      its class names texts, its
      "purification" settings of a purifier, and its "training" names a known scale and noise levels.

    Raises InputError that names the field.
    """

    role: str
    network: nn.Module
    image_shape: tuple[int, int, int]
    metadata: Json

    def __post_init__(self) -> None:
        check_choice("role", self.role, ROLES)
        if not isinstance(self.image_shape, tuple) or len(self.image_shape) != 3:
            raise InputError(
                f"image_shape: got {shown(self.image_shape)}, expected height, width, channels"
            )
        for size, most in zip(
            self.image_shape, (MOST_PIXELS, MOST_PIXELS, MOST_CHANNELS), strict=True
        ):
            check_count("image_shape", size, 1, most)
        _check_metadata(self.metadata)

    @classmethod
    def read(cls, texts: Mapping[str, str]) -> Self:
        """The header in the texts of a safetensors file; InputError that names the field."""
        if texts.get("format") != FORMAT:
            raise InputError("has no purify_jax header, expected a model saved by save_model")
        missing = [name for name in _FIELDS if name not in texts]
        if missing:
            raise InputError(f"lacks {missing}, expected {list(_FIELDS)}")
        shape = _parsed("image_shape", texts["image_shape"], list)
        description = _parsed("network", texts["network"], dict)
        metadata = _parsed("metadata", texts["metadata"], dict)
        return cls(texts["role"], networks.build(description), tuple(shape), metadata)

    def texts(self) -> dict[str, str]:
        """The header as the texts of a safetensors file, in the order of their names."""
        return {
            "format": FORMAT,
            "image_shape": _text("image_shape", list(self.image_shape)),
            "metadata": _text("metadata", dict(self.metadata)),
            "network": _text("network", networks.describe(self.network)),
            "role": self.role,
        }


_FIELDS = tuple(field.name for field in dataclasses.fields(Header))


def _parsed(name: str, text: str, kind: type) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        value = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: got {shown(text)}, expected JSON ({error})") from error
    if not isinstance(value, kind):
        wanted = {"list": "a list", "dict": "an object"}[kind.__name__]
        raise InputError(f"{name}: got {shown(value)}, expected {wanted}")
    return value


def _text(name: str, value: object) -> str:
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: cannot be written as JSON: {error}") from error


def _check_metadata(metadata: object) -> None:
    if not isinstance(metadata, Mapping):
        raise InputError(f"metadata: got {shown(metadata)}, expected an object")
    if not isinstance(metadata.get("dataset", ""), str):
        raise InputError(f"metadata.dataset: got {shown(metadata['dataset'])}, expected a name")
    if "num_classes" in metadata:
        check_count("metadata.num_classes", metadata["num_classes"])
    names = metadata.get("class_names", [])
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise InputError(f"metadata.class_names: got {shown(names)}, expected a list of names")
    for name in ("purification", "training"):
        if not isinstance(metadata.get(name, {}), Mapping):
            raise InputError(f"metadata.{name}: got {shown(metadata[name])}, expected an object")
    check_settings(metadata.get("purification", {}), "metadata.purification")
    training = metadata.get("training", {})
    if "scale" in training:
        check_choice("metadata.training.scale", training["scale"], sorted(noise.SCALES))
    for name in ("sigma_min", "sigma_max"):
        if name in training:
            check_number(f"metadata.training.{name}", training[name], 0.0, open_low=True)
