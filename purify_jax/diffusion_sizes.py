"""The sizes of published diffusion networks, read off the names and shapes of their weights."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from purify_jax.networks.diffusion import ADM, DDPMpp, SongUNet
from purify_jax.types import InputError

StateDict = Mapping[str, np.ndarray]


def _shape(state: StateDict, key: str, kind: str) -> tuple[int, ...]:
    if key not in state:
        raise InputError(f"source: does not fit {kind}: missing {key}")
    return tuple(state[key].shape)


def _width(state: StateDict, block: str, kind: str) -> int:
    """Channels that a block puts out, by any weight that has them: a damaged file may lack some."""
    names = {
        "edm": ("conv1.weight", "conv1.bias", "norm1.weight", "conv0.bias"),
        "score_sde": ("Conv_1.weight", "Conv_1.bias", "GroupNorm_1.weight", "Conv_0.bias"),
        "guided_diffusion": ("out_layers.3.weight", "out_layers.3.bias", "out_layers.0.weight"),
    }[kind]
    there = [f"{block}.{name}" for name in names if f"{block}.{name}" in state]
    return _shape(state, there[0] if there else f"{block}.{names[0]}", kind)[0]


def _numbers(state: StateDict, pattern: str) -> list[int]:
    """The distinct numbers that a pattern's group matches in the keys, ascending."""
    return sorted({int(match[1]) for key in state if (match := re.match(pattern, key))})


def song_unet(state: StateDict, side: int) -> SongUNet:
    """EDM's network for images of ``side`` pixels: all of its settings are in its weights."""
    sides = _numbers(state, r"model\.enc\.(\d+)x\d+_")[::-1]
    if not sides:
        raise InputError("source: does not fit edm: missing model.enc.32x32_conv.weight")
    if sides[0] != side:
        raise InputError(f"image_shape: got {side} pixels, expected the weights' {sides[0]}")
    at = lambda side: f"model.enc.{side}x{side}"
    shape = lambda key: _shape(state, key, "edm")
    features = shape(f"{at(sides[0])}_conv.weight")[0]
    widths = [_width(state, f"{at(side)}_block0", "edm") for side in sides]
    attending = [side for side in sides if f"{at(side)}_block0.qkv.weight" in state]
    labels = state.get("model.map_label.weight")
    augment = state.get("model.map_augment.weight")
    taps: tuple[int, ...] = (1, 1)
    if len(sides) > 1:
        # The published filter is the outer product of the taps, divided by the square of their sum.
        filter_2d = np.asarray(
            state.get(f"{at(sides[1])}_down.conv0.resample_filter", np.ones((2, 2)))
        )
        line = filter_2d.reshape(filter_2d.shape[-2:]).sum(axis=0)
        taps = tuple(round(float(tap)) for tap in line / line[line > 0].min())
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


def ddpmpp(state: StateDict, side: int) -> DDPMpp:
    """score_sde's network for images of ``side`` pixels, from the shapes of its numbered layers."""
    features = _shape(state, "all_modules.2.weight", "score_sde")[0]
    blocks = set(_numbers(state, r"all_modules\.(\d+)\.(?:Conv_0|GroupNorm_1|Dense_0)\."))
    attentions = set(_numbers(state, r"all_modules\.(\d+)\.NIN_\d\."))

    def resamples(index: int) -> bool:
        # A block projects its skip path if the channels change, or if the resolution does.
        skip = state.get(f"all_modules.{index}.Conv_2.weight")
        return skip is not None and skip.shape[0] == skip.shape[1]

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
                attending.add(side >> level)
                index += 1
        index += 1
    return DDPMpp(
        features=features,
        multipliers=tuple(width // features for width in widths),
        num_blocks=num_blocks,
        attention_resolutions=tuple(sorted(attending, reverse=True)),
    )


def adm(state: StateDict, side: int) -> ADM:
    """guided-diffusion's network, but for the channels of an attention head (its default is 64)."""
    del side  # nothing of it depends on the image size
    shape = lambda key: _shape(state, key, "guided_diffusion")
    features = shape("time_embed.0.weight")[1]
    ups = [k for k in state if re.match(r"output_blocks\.\d+\.[12]\.in_layers\.0\.weight$", k)]
    levels, blocks = 1 + len(ups), len(_numbers(state, r"input_blocks\.(\d+)\."))
    per_level = blocks // levels - 1
    firsts = [1 + level * (per_level + 1) for level in range(levels)]
    widths = [_width(state, f"input_blocks.{first}.0", "guided_diffusion") for first in firsts]
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
        learned_variance=shape("out.2.weight")[0] == 2 * shape("input_blocks.0.0.weight")[1],
    )


#: kind → (state_dict, image side) → network with the sizes that the weights have.
KINDS: Mapping[str, Callable[[StateDict, int], Any]] = {
    "edm": song_unet,
    "score_sde": ddpmpp,
    "guided_diffusion": adm,
}
