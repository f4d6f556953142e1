"""What published PyTorch networks call our variables, and how they lay them out."""

import re
from typing import NamedTuple

import numpy as np

_LEAVES = {
    "kernel": "weight", "scale": "weight", "embedding": "weight",
    "mean": "running_mean", "var": "running_var",
}  # fmt: skip
_SCORE_SDE = {
    "norm0": "GroupNorm_0", "conv0": "Conv_0", "affine": "Dense_0", "norm1": "GroupNorm_1",
    "conv1": "Conv_1", "skip": "Conv_2", "norm": "GroupNorm_0",
    "q": "NIN_0", "k": "NIN_1", "v": "NIN_2", "proj": "NIN_3",
}  # fmt: skip
_ADM = {
    "norm0": "in_layers.0", "conv0": "in_layers.2", "affine": "emb_layers.1",
    "norm1": "out_layers.0", "conv1": "out_layers.3", "skip": "skip_connection",
    "proj": "proj_out",
}  # fmt: skip
#: 1×1 convolutions, linear layers here: (names, number of published axes of length 1).
_POINTWISE = {
    "edm": ((r"\.(skip|qkv|proj)\.weight$", 2),),
    "score_sde": ((r"\.Conv_2\.weight$", 2),),
    "guided_diffusion": ((r"\.skip_connection\.weight$", 2), (r"\.(qkv|proj_out)\.weight$", 1)),
}
#: Matrices that are published as [in, out], as here.
_UNTURNED = re.compile(r"\.W$|^label_emb\.weight$")


def published_name(kind: str, target: str) -> str:
    """The published key of one of our variables.

    >>> published_name("edm", "params/enc_8x8_block0/conv0/kernel")
    'model.enc.8x8_block0.conv0.weight'
    >>> published_name("score_sde", "params/all_modules_6/q/kernel")
    'all_modules.6.NIN_0.W'
    >>> published_name("guided_diffusion", "params/middle_block_0/affine/bias")
    'middle_block.0.emb_layers.1.bias'
    >>> published_name("ncsnv2", "params/res1_0/conv1/kernel")
    'res1.0.conv1.weight'
    """
    if target == "constants/map_noise_freqs":
        return "model.map_noise.freqs"
    first, *inner, leaf = target.split("/")[1:]
    leaf = _LEAVES.get(leaf, leaf)
    if kind == "edm":
        first = re.sub(r"^(enc|dec)_", r"model.\1.", first)
        first = re.sub(r"^map_", "model.map_", first)
        if first.endswith("_attention"):
            first = first.removesuffix("_attention")
            inner = ["norm2" if part == "norm" else part for part in inner]
    elif kind == "score_sde":
        first = re.sub(r"^all_modules_", "all_modules.", first)
        inner = [_SCORE_SDE[part] for part in inner]
        if inner and inner[0].startswith("NIN"):
            leaf = {"weight": "W", "bias": "b"}[leaf]
    elif kind == "guided_diffusion":
        first = re.sub(r"_(\d+)", r".\1", first)
        inner = [_ADM.get(part, part) for part in inner]
    else:
        return _name_of_a_block(kind, [first, *inner, leaf])
    return ".".join([first, *inner, leaf])


def _name_of_a_block(kind: str, path: list[str]) -> str:
    """The key of NCSNv2 and of the classifiers, which number their blocks alike."""
    parts = [re.sub(r"^(res\d|layer\d|adapt_convs|convs)_(\d+)$", r"\1.\2", part) for part in path]
    name = ".".join(parts)
    if kind in ("wide_resnet_bias", "preact_resnet18"):
        name = name.replace(".shortcut.", ".shortcut.0.")
    if kind == "resnet":
        name = name.replace(".downsample_conv.", ".downsample.0.")
        name = name.replace(".downsample_norm.", ".downsample.1.")
    if kind == "wide_resnet":
        name = re.sub(r"^layer(\d)\.(\d+)\.", r"block\1.layer.\2.", name)
        name = name.replace(".shortcut.", ".convShortcut.")
        name = re.sub(r"^linear\.", "fc.", name)
    return name


class Layout(NamedTuple):
    """How a published array relates to ours: drop ``ones`` last axes, then permute by ``axes``."""

    axes: tuple[int, ...]
    ones: int = 0

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(array.shape[: len(self.axes)]).transpose(self.axes)

    def to_published(self, array: np.ndarray) -> np.ndarray:
        turned = array.transpose(tuple(np.argsort(self.axes)))
        return turned.reshape(turned.shape + (1,) * self.ones)

    def published_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(shape[axis] for axis in np.argsort(self.axes)) + (1,) * self.ones


def layout(kind: str, source: str, rank: int) -> Layout:
    """The layout of a variable of ``rank`` axes here and the name ``source`` there."""
    if rank == 4:
        return Layout((2, 3, 1, 0))
    if rank != 2 or _UNTURNED.search(source):
        return Layout(tuple(range(rank)))
    ones = [count for pattern, count in _POINTWISE.get(kind, ()) if re.search(pattern, source)]
    return Layout((1, 0), *ones)


#: The order in which score_sde's layers declare their parts, hence that of the averaged weights.
_DECLARED = list(dict.fromkeys(_SCORE_SDE.values()))


def declared_order(name: str) -> tuple[int, int, int] | None:
    """Sorts names of score_sde's parameters as its network lists them; None for other names."""
    parts = name.split(".")
    if parts[0] != "all_modules" or len(parts) not in (3, 4) or not parts[1].isdigit():
        return None
    if len(parts) == 4 and parts[2] not in _DECLARED:
        return None
    inner = _DECLARED.index(parts[2]) if len(parts) == 4 else 0
    return int(parts[1]), inner, int(parts[-1] in ("bias", "b"))
