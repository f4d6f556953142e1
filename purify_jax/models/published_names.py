"""What published PyTorch networks call our variables, how they lay them out, and where files hold them."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from purify_jax.checks import InputError
from purify_jax.types import Array

#: Buffers that published files carry and that no computation here needs.
UNUSED = re.compile(r"(^|\.)(sigmas|num_batches_tracked|n_averaged)$|^attacker\.")

#: Under which key a file holds its state_dict, in the order of preference, and under which the averaged one.
CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "params")
AVERAGES = ("ema", "ema_state_dict", "state_dict_ema", "model_ema", "ema_model")
#: What DataParallel, torch.compile, Lightning and others put before every name.
_MACHINES = "module|_orig_mod|_forward_module|_fsdp_wrapped_module"
_WRAPPERS = re.compile(rf"^(({_MACHINES}|model|net|network)\.)+")
#: Those of them that no network has in a name of its own (EDM's begin with ``model.``).
MACHINES = re.compile(rf"^(({_MACHINES})\.)+")
#: The mean and standard deviation of the data: RobustBench's buffers, and those of a layer before the network.
_NORMALISATION = re.compile(
    r"^(?:(?:normali[sz]er?|normali[sz]ation|norm|preprocess|0)\.)?"
    r"(?:(?P<mean>mu|mean|new_mean)|(?P<std>sigma|std|new_std))$"
)

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


def unwrapped(state: Mapping[str, object], wrappers: re.Pattern = _WRAPPERS) -> dict[str, Any]:
    """The same weights without what wrappers put before their names.

    >>> unwrapped({"module.conv1.weight": 1, "module._orig_mod.fc.bias": 2})
    {'conv1.weight': 1, 'fc.bias': 2}

    Names stay as they are where two of them would become one.
    """
    names = {name: wrappers.sub("", name) for name in state}
    if len(set(names.values())) < len(names):
        return dict(state)
    return {names[name]: value for name, value in state.items()}


def without_normalisation(
    state: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, tuple[float, ...]]]:
    """(the weights, {"mean": ..., "std": ...} of the data that are buffers among them, or nothing).

    Raises InputError for one of the two without the other.
    """
    found = {}
    for name, array in state.items():
        if (match := _NORMALISATION.match(name)) is not None and np.size(array) <= 4:
            found[match.lastgroup or ""] = (name, tuple(map(float, np.ravel(array))))
    if not found:
        return dict(state), {}
    if len(found) == 1:
        ((kind, (name, _)),) = found.items()
        raise InputError(f"source: holds {name}, the {kind} of the data, expected both or none")
    held = {name for name, _ in found.values()}
    rest = {name: array for name, array in state.items() if name not in held}
    # torch.nn.Sequential(normalisation, network)
    if any(name.startswith("0.") for name in held) and all(name.startswith("1.") for name in rest):
        rest = {name.removeprefix("1."): array for name, array in rest.items()}
    return unwrapped(rest), {kind: values for kind, (_, values) in found.items()}


def as_array(value: Any) -> np.ndarray:
    """A tensor, a Parameter or an array as NumPy's; a type that NumPy lacks (bfloat16, float8) as float32."""
    if hasattr(value, "detach"):  # PyTorch's
        value = value.detach()
        try:
            return np.asarray(value)
        except TypeError:
            return np.asarray(value.float())
    array = np.asarray(value)
    if array.dtype.str == "|V2":  # how .npz files hold bfloat16
        array = array.view(jnp.bfloat16)
    return array.astype(np.float32) if array.dtype == jnp.bfloat16 else array


def weights_in(path: Path, loaded: object, ema: bool | None) -> Mapping[str, Any]:
    """The state_dict in what a file holds, or the averaged one, see ``torch_weights.read``."""
    plain: Any = None
    averaged: object = None
    if isinstance(loaded, (list, tuple)):
        candidates = [entry for entry in loaded if _is_state_dict(entry)]
        plain = candidates[0] if candidates else None
        averaged = candidates[-1] if len(candidates) > 1 else None
    elif isinstance(loaded, Mapping):
        plain = loaded if _is_state_dict(loaded) else _held(loaded, CONTAINERS)
        averaged = _held(loaded, AVERAGES)
        shadows: Mapping[str, Any] = next(
            (loaded[k] for k in AVERAGES if "shadow_params" in _mapping(loaded, k)), {}
        )
        if ema is not False and shadows:
            if plain is None:
                raise InputError(
                    f"source: {path} has averaged parameters but no model to name them"
                )
            averaged = with_averages(plain, shadows["shadow_params"])
        if plain is None and ema is False:
            plain = averaged
    if ema or (ema is None and averaged is not None):
        plain = averaged
    if plain is None:
        raise InputError(
            f"source: {path} holds no {'averaged ' if ema else ''}state_dict, but {_contents(loaded)}; expected "
            f"one at its top, or under one of {list(AVERAGES if ema else CONTAINERS)}"
        )
    return {name: value for name, value in plain.items() if hasattr(value, "shape")}


def _mapping(holder: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return holder[name] if isinstance(holder.get(name), Mapping) else {}


def _held(holder: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Any] | None:
    """The first state_dict under one of ``names``, or inside what is there; else the only one there is."""
    for name in names:
        inner = _mapping(holder, name)
        found = inner if _is_state_dict(inner) else _held(inner, CONTAINERS) if inner else None
        if found is not None:
            return found
    others = [name for name in holder if name not in AVERAGES and _is_state_dict(holder[name])]
    return holder[others[0]] if names is CONTAINERS and len(others) == 1 else None


def _is_state_dict(value: object) -> bool:
    """Whether it maps names to arrays; numbers and None may stand among them, but nothing with parts."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return False
    parts = (Mapping, list, tuple)
    return any(np.ndim(v) > 0 for v in value.values() if hasattr(v, "shape")) and not any(
        isinstance(v, parts) for v in value.values()
    )


def _contents(loaded: object) -> str:
    """What a file holds, in a few words."""
    if not isinstance(loaded, Mapping):
        return f"a {type(loaded).__name__}"
    return (
        ", ".join(f"{name} ({type(value).__name__})" for name, value in loaded.items()) or "nothing"
    )


def with_averages(model: Mapping[str, object], shadows: Sequence[Array]) -> dict[str, np.ndarray]:
    """score_sde's averaged parameters under their names.

    Args:
      model: the state_dict, for names and shapes; what wrappers put before names is removed.
      shadows: the averages in the order of the network's parameters: by layer number and, inside
        a layer, as its code declares them.
    """
    shapes = {k: tuple(v.shape) for k, v in unwrapped(model).items()}
    shapes = {k: shape for k, shape in shapes.items() if not UNUSED.search(k)}
    faults = [f"unexpected {name}" for name in shapes if declared_order(name) is None]
    if faults:
        raise InputError(f"source: does not fit score_sde: {'; '.join(faults)}")
    names = sorted(shapes, key=declared_order)  # type: ignore[arg-type]
    arrays = [as_array(shadow) for shadow in shadows]
    if len(names) != len(arrays):
        raise InputError(
            f"source: {len(arrays)} averaged parameters, expected the model's {len(names)}"
        )
    faults = [
        f"misshapen {name}: {array.shape}, expected {shapes[name]}"
        for name, array in zip(names, arrays, strict=True)
        if array.shape != shapes[name]
    ]
    if faults:
        raise InputError(f"source: averages do not fit the model: {'; '.join(faults)}")
    return dict(zip(names, arrays, strict=True))
