"""The sizes of published networks, read off the names and shapes of their weights.

A damaged file should give a list of what is wrong with it, so sizes come from biases first, whose
shapes survive a transposition, and from any of several weights.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from purify_jax import networks
from purify_jax.checks import InputError
from purify_jax.networks.diffusion import ADM, DDPMpp, SongUNet

StateDict = Mapping[str, np.ndarray]
ImageShape = tuple[int, int, int]


def _shape(state: StateDict, key: str, kind: str) -> tuple[int, ...]:
    if key not in state:
        raise InputError(f"source: does not fit {kind}: missing {key}")
    return tuple(state[key].shape)


def _first(state: StateDict, kind: str, layer: str, *names: str) -> int:
    """Length of the first axis of the first of a layer's weights that is there."""
    there = [f"{layer}.{name}" for name in names if f"{layer}.{name}" in state]
    shape = _shape(state, there[0] if there else f"{layer}.{names[0]}", kind)
    return shape[0] if shape else 0


_BLOCK = {
    "edm": ("conv1.bias", "conv1.weight", "norm1.weight", "conv0.bias"),
    "score_sde": ("Conv_1.bias", "Conv_1.weight", "GroupNorm_1.weight", "Conv_0.bias"),
    "guided_diffusion": ("out_layers.3.bias", "out_layers.3.weight", "out_layers.0.weight"),
}


def _width(state: StateDict, block: str, kind: str) -> int:
    """Channels that a residual block puts out."""
    return _first(state, kind, block, *_BLOCK[kind])


def _numbers(state: StateDict, pattern: str) -> list[int]:
    """The distinct numbers that a pattern's group matches in the keys, ascending."""
    return sorted({int(match[1]) for key in state if (match := re.match(pattern, key))})


def song_unet(state: StateDict, image_shape: ImageShape) -> SongUNet:
    """EDM's network: all of its settings are in its weights."""
    sides = _numbers(state, r"model\.enc\.(\d+)x\d+_")[::-1]
    if not sides:
        raise InputError("source: does not fit edm: missing model.enc.32x32_conv.weight")
    if sides[0] != image_shape[0]:
        raise InputError(f"image_shape: got {image_shape}, expected the weights' {sides[0]} pixels")
    at = lambda side: f"model.enc.{side}x{side}"
    features = _first(state, "edm", f"{at(sides[0])}_conv", "bias", "weight")
    widths = [_width(state, f"{at(side)}_block0", "edm") for side in sides]
    attending = [side for side in sides if f"{at(side)}_block0.qkv.weight" in state]
    labels = state.get("model.map_label.weight")
    augment = state.get("model.map_augment.weight")
    taps: tuple[int, ...] = (1, 1)
    if len(sides) > 1:
        # The published filter is the outer product of the taps, divided by the square of their sum.
        line = np.asarray(state.get(f"{at(sides[1])}_down.conv0.resample_filter", np.ones(2)))
        line = line.sum(axis=tuple(range(line.ndim - 1)))
        if line.size % 2 == 0 and line.size and line.min() > 0:
            taps = tuple(round(float(tap)) for tap in line / line.min())
    return SongUNet(
        features=features,
        multipliers=tuple(width // features for width in widths),
        num_blocks=len(_numbers(state, rf"model\.enc\.{sides[0]}x\d+_block(\d+)\.")),
        attention_resolutions=tuple(attending),
        num_classes=0 if labels is None else labels.shape[1],
        augment_dim=0 if augment is None else augment.shape[1],
        fourier="model.map_noise.freqs" in state,
        residual_input=any("_aux_residual." in key for key in state),
        resample_filter=taps,
    )


def ddpmpp(state: StateDict, image_shape: ImageShape) -> DDPMpp:
    """score_sde's network, from the kinds and shapes of its numbered layers."""
    features = _first(state, "score_sde", "all_modules.2", "bias", "weight")
    blocks = set(_numbers(state, r"all_modules\.(\d+)\.(?:Conv_0|GroupNorm_1|Dense_0)\."))
    attentions = set(_numbers(state, r"all_modules\.(\d+)\.NIN_\d\."))

    def resamples(index: int) -> bool:
        # A block projects its skip path if the channels change, or if the resolution does.
        skip = state.get(f"all_modules.{index}.Conv_2.weight")
        return skip is not None and skip.ndim > 1 and skip.shape[0] == skip.shape[1]

    halvings = sum(map(resamples, blocks)) // 2
    levels = halvings + 1
    # n blocks a level downwards, two in the middle, n + 1 a level upwards.
    num_blocks = ((len(blocks) - 2 * halvings - 2) // levels - 1) // 2
    widths: list[int] = []
    attending: set[int] = set()
    index = 3
    for level in range(levels):
        for _ in range(num_blocks):
            widths[level:] = [_width(state, f"all_modules.{index}", "score_sde")]
            index += 1
            if index in attentions:
                attending.add(image_shape[0] >> level)
                index += 1
        index += 1
    return DDPMpp(
        features=features,
        multipliers=tuple(width // features for width in widths),
        num_blocks=num_blocks,
        attention_resolutions=tuple(sorted(attending, reverse=True)),
    )


def adm(state: StateDict, image_shape: ImageShape) -> ADM:
    """guided-diffusion's network, but for the channels of an attention head (its default is 64)."""
    kind = "guided_diffusion"
    features = _first(state, kind, "time_embed.0", "bias", "weight") // 4
    ups = [k for k in state if re.match(r"output_blocks\.\d+\.[12]\.in_layers\.0\.weight$", k)]
    levels, blocks = 1 + len(ups), len(_numbers(state, r"input_blocks\.(\d+)\."))
    per_level = blocks // levels - 1
    firsts = [1 + level * (per_level + 1) for level in range(levels)]
    widths = [_width(state, f"input_blocks.{first}.0", kind) for first in firsts]
    multiples = [width / features for width in widths]
    labels = state.get("label_emb.weight")
    return ADM(
        features=features,
        multipliers=tuple(int(m) if m == int(m) else m for m in multiples),
        num_blocks=per_level,
        attention_rates=tuple(
            2**level
            for level, first in enumerate(firsts)
            if f"input_blocks.{first}.1.qkv.weight" in state
        ),
        num_classes=0 if labels is None else labels.shape[0],
        learned_variance=_first(state, kind, "out.2", "bias", "weight") == 2 * image_shape[2],
    )


def ncsnv2(state: StateDict, image_shape: ImageShape) -> nn.Module:
    """NCSNv2, the deeper one where there is a fifth group of blocks."""
    features = _shape(state, "begin_conv.weight", "ncsnv2")[0]
    return networks.NCSNv2(features=features, deeper=any(k.startswith("res5.") for k in state))


def wide_resnet(state: StateDict, image_shape: ImageShape) -> nn.Module:
    """RobustBench's WideResNet, without biases of convolutions; the images are normalised outside."""
    bare = {"use_bias": False, "mean": None, "std": None}
    return _wide_resnet(state, "wide_resnet", "block1.layer.", "fc", **bare)


def wide_resnet_bias(state: StateDict, image_shape: ImageShape) -> nn.Module:
    """A WideResNet whose convolutions have biases, and that normalises the images itself."""
    return _wide_resnet(state, "wide_resnet_bias", "layer1.", "linear", use_bias=True)


def _wide_resnet(
    state: StateDict, kind: str, prefix: str, linear: str, **options: Any
) -> nn.Module:
    blocks = _numbers(state, rf"{re.escape(prefix)}(\d+)\.")
    width = _shape(state, f"{prefix}0.conv1.weight", kind)[0] // 16
    outputs = _shape(state, f"{linear}.weight", kind)[0]
    return networks.WideResNet(6 * len(blocks) + 4, width, outputs, **options)


def preact_resnet(state: StateDict, image_shape: ImageShape) -> nn.Module:
    """A pre-activation ResNet-18."""
    outputs = _shape(state, "linear.weight", "preact_resnet18")[0]
    features = _shape(state, "conv1.weight", "preact_resnet18")[0]
    return networks.PreActResNet18(outputs, features, final_norm="bn.weight" in state)


def resnet(state: StateDict, image_shape: ImageShape) -> nn.Module:
    """torchvision's ResNet with bottlenecks."""
    outputs = _shape(state, "fc.weight", "resnet")[0]
    features, inner = (
        _shape(state, key, "resnet")[0] for key in ("conv1.weight", "layer1.0.conv2.weight")
    )
    groups = _numbers(state, r"layer(\d+)\.")
    blocks = [len(_numbers(state, rf"layer{group}\.(\d+)\.")) for group in groups]
    return networks.ResNet(outputs, tuple(blocks), features, max(1, inner // max(1, features)))


class Kind(NamedTuple):
    """A kind of published network: how it becomes a model.

    build: (state_dict, image shape) → network with the sizes that the weights have.
    form: what a diffusion's network predicts (``models.DIFFUSIONS``). sigma_min: the smallest σ that it was
      trained at, in pixel units.
    """

    role: str
    build: Callable[[StateDict, ImageShape], nn.Module]
    form: str | None = None
    sigma_min: float | None = None


KINDS: Mapping[str, Kind] = {
    "ncsnv2": Kind("score", ncsnv2),
    "wide_resnet_bias": Kind("classifier", wide_resnet_bias),
    "wide_resnet": Kind("classifier", wide_resnet),
    "preact_resnet18": Kind("classifier", preact_resnet),
    "resnet": Kind("classifier", resnet),
    "edm": Kind("diffusion", song_unet, "edm", 0.001),
    "score_sde": Kind("diffusion", ddpmpp, "vp", 0.005),
    "guided_diffusion": Kind("diffusion", adm, "discrete_vp", 0.005),
}
