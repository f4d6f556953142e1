"""Networks as linen modules, and their description as plain data for the header of a model file.

Each has a field ``dtype``, in which it computes ("bfloat16", say); parameters, statistics and output stay float32.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from purify_jax.checks import InputError, check_choice
from purify_jax.networks.diffusion import ADM, DDPMpp, SongUNet
from purify_jax.networks.fields import check_fields
from purify_jax.networks.ncsnv2 import NCSNv2
from purify_jax.networks.residual import PreActResNet18, ResNet, WideResNet
from purify_jax.networks.shuffled_unet import NoiseConditionalUNet, ShuffledUNet
from purify_jax.networks.small import MLP, ConvNet, UNet
from purify_jax.networks.whitened_convnet import WhitenedConvNet
from purify_jax.types import Json

_NETWORKS = (
    MLP, ConvNet, UNet, NCSNv2, ShuffledUNet, NoiseConditionalUNet, SongUNet, DDPMpp, ADM,
    WhitenedConvNet, WideResNet, PreActResNet18, ResNet,
)  # fmt: skip
#: What a model file may name as its network.
BY_NAME: Mapping[str, type[nn.Module]] = MappingProxyType({n.__name__: n for n in _NETWORKS})


def describe(network: nn.Module) -> dict[str, Any]:
    """``{"name": class name, field: value, ...}``, from which :func:`build` makes an equal module."""
    fields = {
        f.name: getattr(network, f.name)
        for f in dataclasses.fields(network)
        if f.init and f.name not in ("parent", "name")
    }
    plain = {k: list(v) if isinstance(v, (tuple, list)) else v for k, v in fields.items()}
    return {"name": type(network).__name__, **plain}


def build(description: Json) -> nn.Module:
    """The linen module of a description; InputError for an unknown name or field, or a bad value."""
    name = str(description.get("name"))
    check_choice("network", name, sorted(BY_NAME))
    plain = {k: v for k, v in description.items() if k != "name"}
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
    check_fields(BY_NAME[name], fields)
    try:
        return BY_NAME[name](**fields)
    except TypeError as error:  # a field that has no default is missing
        raise InputError(f"network {name}: {error}") from error


def example_inputs(
    network: nn.Module, image_shape: tuple[int, ...]
) -> tuple[jax.ShapeDtypeStruct, ...]:
    """What a network is called with, as shapes: images, and a condition ``[1]`` if it takes one."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    if getattr(network, "takes_condition", False):
        return images, jax.ShapeDtypeStruct((1,), jnp.float32)
    return (images,)


__all__ = [
    "ADM",
    "BY_NAME",
    "MLP",
    "ConvNet",
    "DDPMpp",
    "NCSNv2",
    "NoiseConditionalUNet",
    "PreActResNet18",
    "ResNet",
    "ShuffledUNet",
    "SongUNet",
    "UNet",
    "WhitenedConvNet",
    "WideResNet",
    "build",
    "describe",
    "example_inputs",
]
