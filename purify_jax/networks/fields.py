"""The fields of a network checked by their types, before anything is built of them."""

import dataclasses
import types
import typing
from collections.abc import Sequence

import flax.linen as nn

from purify_jax.checks import InputError, check_choice, check_count, check_number, shown
from purify_jax.types import Json

#: Bounds of what a description may ask for: channels or outputs, and layers in a row.
MOST_FEATURES, MOST_LAYERS = 2**16, 1024
#: Fields that are numbers of layers; all other whole numbers are widths.
_LAYERS = ("blocks", "depth", "num_blocks")
#: Fields that may be 0, and sequences that may be empty: there is none of it.
_OPTIONAL = ("num_classes", "augment_dim", "attention_resolutions", "attention_rates")
_DTYPES = ("float32", "bfloat16", "float16", "float64")


def check_fields(network: type[nn.Module], fields: Json) -> None:
    """Raises InputError that names the field, unless each has the type and range of its annotation.

    Whole numbers are ≥ 1 and bounded, other numbers finite (and positive but for a mean), sequences
    not empty, and a ``dtype`` a floating-point type.
    """
    hints = typing.get_type_hints(network)
    own = {f.name for f in dataclasses.fields(network) if f.init} - {"parent", "name"}
    unknown = sorted(map(str, fields.keys() - own))
    if unknown:
        raise InputError(
            f"network {network.__name__}: unexpected {shown(unknown)}, expected some of {sorted(own)}"
        )
    for name, value in fields.items():
        _check(f"network {network.__name__}: {name}", name, hints[name], value)


def _check(label: str, name: str, hint: object, value: object) -> None:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return
    kind = next(o for o in options if o is not type(None))
    if typing.get_origin(kind) is Sequence:
        least = 0 if name in _OPTIONAL else 1
        if not isinstance(value, (tuple, list)) or not least <= len(value) <= MOST_LAYERS:
            wanted = f"{least} to {MOST_LAYERS} numbers"
            raise InputError(f"{label}: got {shown(value)}, expected {wanted}")
        for item in value:
            _check(label, name, typing.get_args(kind)[0], item)
    elif kind is bool:
        if not isinstance(value, bool):
            raise InputError(f"{label}: got {shown(value)}, expected true or false")
    elif kind is int:
        most = MOST_LAYERS if name in _LAYERS else MOST_FEATURES
        check_count(label, value, 0 if name in _OPTIONAL else 1, most)
    elif kind is float:
        low = float("-inf") if name == "mean" else 0.0
        check_number(label, value, low, open_low=True)
    elif name == "dtype":
        check_choice(label, value, _DTYPES)


def least_layers(fields: Json) -> int:
    """How many layers with parameters a network of these fields has at least."""
    features = fields.get("features")
    levels = len(features) if isinstance(features, (tuple, list)) else 1
    return levels * max(1, *(int(fields.get(name, 1)) // 3 for name in _LAYERS))
