"""Published PyTorch weights → this package's variables, strictly: every key used, every one filled."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util

from purify_jax import networks
from purify_jax.checks import InputError
from purify_jax.models.files import Model, expected_shapes

StateDict = Mapping[str, np.ndarray]

#: Buffers that published files carry and that no computation here needs.
_UNUSED = re.compile(r"(^|\.)(sigmas|num_batches_tracked)$")


class Entry(NamedTuple):
    """One line of the table of what went where."""

    source: str
    target: str
    shape: tuple[int, ...]


def read_state_dict(path: str | Path, ema: bool = False) -> StateDict:
    """Reads a ``state_dict`` as numpy arrays.

    Args:
      path: ``.npz`` (keys may begin with "state_dict/", other keys are then ignored),
        ``.safetensors``, or ``.pth``/``.pt`` (needs PyTorch; read with ``weights_only=True``, so no
        code is ever unpickled). A list or tuple is taken as published NCSNv2 checkpoints are: the
        state_dict first, the averaged weights last. A dict may hold it under "state_dict".
      ema: take the averaged weights of such a list, or of a dict under "ema".

    A ``module.`` prefix is removed. Raises InputError if the file cannot be read or has no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"source: {path} is not a file, expected .npz, .safetensors, .pth or .pt")
    try:
        if path.suffix == ".npz":
            loaded: Any = dict(np.load(path, allow_pickle=False))
            inner = {k[11:]: v for k, v in loaded.items() if k.startswith("state_dict/")}
            loaded = inner or loaded
        elif path.suffix == ".safetensors":
            loaded = safetensors.numpy.load_file(path)
        elif path.suffix in (".pth", ".pt"):
            loaded = _read_torch(path)
        else:
            raise InputError(
                f"source: {path} ends in {path.suffix!r}, expected .npz, .safetensors, .pth or .pt"
            )
    except InputError:
        raise
    except Exception as error:  # each reader raises its own types for a damaged file
        reason = str(error).split("\n")[0][:200]
        raise InputError(f"source: {path} cannot be read: {reason}") from error
    found = _weights(loaded, ema)
    if found is None:
        raise InputError(f"source: {path} holds no {'averaged ' if ema else ''}state_dict")
    arrays = {k.removeprefix("module."): np.asarray(v) for k, v in found.items()}
    return arrays


def _read_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"source: {path} needs PyTorch to read, expected it installed (the torch extra), "
            "or the weights as .npz or .safetensors"
        ) from error
    return torch.load(path, map_location="cpu", weights_only=True)


def _weights(loaded: Any, ema: bool) -> Mapping[str, Any] | None:
    if isinstance(loaded, (list, tuple)):
        candidates = [entry for entry in loaded if _is_state_dict(entry)]
        if not candidates or (ema and len(candidates) < 2):
            return None
        return candidates[-1 if ema else 0]
    if not isinstance(loaded, Mapping):
        return None
    if ema:
        inner = loaded.get("ema")
        return inner if _is_state_dict(inner) else None
    if _is_state_dict(loaded):
        return loaded
    inner = next((loaded[k] for k in ("state_dict", "model") if k in loaded), None)
    return inner if _is_state_dict(inner) else None


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(hasattr(v, "shape") for v in value.values())
    )


# --- names ------------------------------------------------------------------------------------

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def _published_name(kind: str, target: str) -> str:
    """The published key of one of our variables, "params/res1_0/conv1/kernel" → "res1.0.conv1.weight"."""
    *path, leaf = target.split("/")[1:]
    parts = [re.sub(r"^(res\d|layer\d|adapt_convs|convs)_(\d+)$", r"\1.\2", part) for part in path]
    name = ".".join([*parts, _LEAVES.get(leaf, leaf)])
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


def _to_ours(array: np.ndarray) -> np.ndarray:
    """Convolution OIHW → HWIO, linear OI → IO, vectors as they are."""
    return np.transpose(
        array, {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim, tuple(range(array.ndim)))
    )


def _shape_there(shape: tuple[int, ...]) -> tuple[int, ...]:
    return {4: lambda s: (s[3], s[2], s[0], s[1]), 2: lambda s: (s[1], s[0])}.get(
        len(shape), lambda s: s
    )(shape)


def convert(
    kind: str, state: StateDict, network: nn.Module, image_shape: tuple[int, int, int]
) -> tuple[dict[str, Any], list[Entry]]:
    """A published state_dict → (variables, table of what went where).

    Raises one InputError that lists every missing, unexpected and misshapen key by its published
    name, with the shape there.
    """
    expected = expected_shapes(network, image_shape)
    sources = {_published_name(kind, target): target for target in expected}
    faults = [f"missing {source}" for source in sources if source not in state]
    faults += [
        f"unexpected {key}" for key in state if key not in sources and not _UNUSED.search(key)
    ]
    flat, table = {}, []
    for source, target in sources.items():
        if source not in state:
            continue
        array, shape = state[source], _shape_there(expected[target])
        if tuple(array.shape) != shape:
            faults.append(f"misshapen {source}: {tuple(array.shape)}, expected {shape}")
            continue
        flat[target] = jnp.asarray(_to_ours(array), jnp.float32)
        table.append(Entry(source, target, tuple(array.shape)))
    if faults:
        raise InputError(f"source: does not fit {kind}: {'; '.join(faults)}")
    return traverse_util.unflatten_dict(flat, sep="/"), table


# --- kinds ------------------------------------------------------------------------------------


def _first_shape(state: StateDict, key: str, kind: str) -> tuple[int, ...]:
    if key not in state:
        raise InputError(f"source: does not fit {kind}: missing {key}")
    return tuple(state[key].shape)


def _ncsnv2(state: StateDict) -> nn.Module:
    features = _first_shape(state, "begin_conv.weight", "ncsnv2")[0]
    return networks.NCSNv2(features=features, deeper=any(k.startswith("res5.") for k in state))


def _wide_resnet(state: StateDict, kind: str, prefix: str, linear: str, bias: bool) -> nn.Module:
    blocks = {m[1] for k in state if (m := re.match(rf"{prefix}(\d+)\.", k))}
    width = _first_shape(state, f"{prefix}0.conv1.weight", kind)[0] // 16
    outputs = _first_shape(state, f"{linear}.weight", kind)[0]
    options: dict[str, Any] = {} if bias else {"mean": None, "std": None}
    depth = 6 * len(blocks) + 4
    return networks.WideResNet(depth, width, outputs, use_bias=bias, **options)


def _preact(state: StateDict) -> nn.Module:
    outputs = _first_shape(state, "linear.weight", "preact_resnet18")[0]
    features = _first_shape(state, "conv1.weight", "preact_resnet18")[0]
    return networks.PreActResNet18(outputs, features, final_norm="bn.weight" in state)


def _resnet(state: StateDict) -> nn.Module:
    outputs = _first_shape(state, "fc.weight", "resnet")[0]
    features, inner = (
        _first_shape(state, key, "resnet")[0] for key in ("conv1.weight", "layer1.0.conv2.weight")
    )
    groups = {int(m[1]) for k in state if (m := re.match(r"layer(\d+)\.", k))}
    blocks = [
        len({m[1] for k in state if (m := re.match(rf"layer{group}\.(\d+)\.", k))})
        for group in sorted(groups)
    ]
    return networks.ResNet(outputs, tuple(blocks), features, max(1, inner // max(1, features)))


#: kind → (role, state_dict → network with the sizes that the weights have).
KINDS = {
    "ncsnv2": ("score", _ncsnv2),
    "wide_resnet_bias": (
        "classifier",
        lambda state: _wide_resnet(state, "wide_resnet_bias", r"layer1.", "linear", True),
    ),
    "wide_resnet": (
        "classifier",
        lambda state: _wide_resnet(state, "wide_resnet", r"block1.layer.", "fc", False),
    ),
    "preact_resnet18": ("classifier", _preact),
    "resnet": ("classifier", _resnet),
}


def import_model(
    kind: str, state: StateDict, image_shape: tuple[int, int, int] = (32, 32, 3)
) -> tuple[Model, list[Entry]]:
    """A published state_dict of a known kind → (model, table); sizes are read off the weights.

    Args:
      kind: "ncsnv2", "wide_resnet_bias" (convolutions with bias, own normalisation), "wide_resnet"
        (RobustBench's, without), "preact_resnet18", or "resnet" (torchvision's with bottlenecks:
        ResNet-50, WideResNet-50-2).
      state: from :func:`read_state_dict`.
      image_shape: (height, width, channels) that the model takes.

    Raises InputError for an unknown kind or weights that do not fit it.
    """
    if kind not in KINDS:
        raise InputError(f"kind: got {kind!r}, expected one of {sorted(KINDS)}")
    role, build = KINDS[kind]
    network = build(state)
    variables, table = convert(kind, state, network, image_shape)
    metadata = {"imported": kind}
    return Model(role, network, variables, image_shape, metadata), table
