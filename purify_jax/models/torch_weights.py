"""Published PyTorch weights ↔ this package's variables, strictly: every key used, every one filled.

Kinds are those of ``KINDS``: NCSNv2, classifiers, and the diffusion networks of EDM ("edm"), score_sde and
guided-diffusion. Sizes are read off the weights.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util

from purify_jax.checks import InputError, check_choice
from purify_jax.models.files import expected_shapes
from purify_jax.models.model import Model
from purify_jax.models.published_names import declared_order, layout, published_name
from purify_jax.models.published_sizes import KINDS, ImageShape, StateDict
from purify_jax.networks.diffusion import SongUNet
from purify_jax.types import Array, Params

#: Buffers that published files carry and that no computation here needs.
_UNUSED = re.compile(r"(^|\.)(sigmas|num_batches_tracked)$")
#: How an imported diffusion purifies unless told otherwise: DiffPure at t* = 0.1, that is σ = 0.17.
_PURIFICATION = {"method": "diffpure_sde", "noise_scale": 0.17, "num_steps": 100, "num_restarts": 1}


class Entry(NamedTuple):
    """One line of the table of what went where."""

    source: str
    target: str
    shape: tuple[int, ...]


# --- files ------------------------------------------------------------------------------------


def read(path: str | Path, ema: bool | None = False) -> StateDict:
    """A published checkpoint as a flat state_dict of numpy arrays.

    Args:
      path: ``.npz`` (keys may begin with "state_dict/" or "param/", other keys are then ignored),
        ``.safetensors``, or ``.pth``/``.pt`` (needs PyTorch; read with ``weights_only=True``, so that no
        code is ever unpickled). A list or tuple is taken as published NCSNv2 checkpoints are: the
        state_dict first, the averaged weights last. A dict may hold it under "state_dict" or "model", and the
        averaged weights under "ema": a state_dict, or score_sde's ``shadow_params`` in the model's order.
      ema: take the averaged weights; None for where the file has them.

    A ``module.`` prefix is removed. Raises InputError if the file cannot be read or has no weights, and for
    EDM's published ``.pkl`` files.
    """
    path = Path(path)
    if path.suffix == ".pkl":
        raise InputError(
            f"source: {path} is a pickle, which runs code when opened; expected its weights, saved where "
            "EDM's own code runs: torch.save(pickle.load(open(path, 'rb'))['ema'].state_dict(), 'edm.pt')"
        )
    if not path.is_file():
        raise InputError(f"source: {path} is not a file, expected .npz, .safetensors, .pth or .pt")
    try:
        found = _weights(path, _load(path), ema)
    except InputError:
        raise
    except Exception as error:  # each reader raises its own types for a damaged file
        reason = str(error).split("\n")[0][:200]
        raise InputError(f"source: {path} cannot be read: {reason}") from error
    return {k.removeprefix("module."): np.asarray(v) for k, v in found.items()}


def _load(path: Path) -> Any:
    if path.suffix == ".npz":
        loaded = dict(np.load(path, allow_pickle=False))
        for prefix in ("state_dict/", "param/"):
            if any(name.startswith(prefix) for name in loaded):
                return {
                    k.removeprefix(prefix): v for k, v in loaded.items() if k.startswith(prefix)
                }
        return loaded
    if path.suffix == ".safetensors":
        return safetensors.numpy.load_file(path)
    if path.suffix not in (".pth", ".pt"):
        raise InputError(
            f"source: {path} ends in {path.suffix!r}, expected .npz, .safetensors, .pth or .pt"
        )
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"source: {path} needs PyTorch to read, expected it installed (the torch extra), "
            "or the weights as .npz or .safetensors"
        ) from error
    return torch.load(path, map_location="cpu", weights_only=True)


def _weights(path: Path, loaded: object, ema: bool | None) -> Mapping[str, Any]:
    """The state_dict in what a file holds, or the averaged one."""
    plain: Any = None
    averaged: Any = None
    if isinstance(loaded, (list, tuple)):
        candidates = [entry for entry in loaded if _is_state_dict(entry)]
        plain = candidates[0] if candidates else None
        averaged = candidates[-1] if len(candidates) > 1 else None
    elif isinstance(loaded, Mapping):
        inner = next((loaded[k] for k in ("state_dict", "model") if k in loaded), None)
        plain, averaged = loaded if _is_state_dict(loaded) else inner, loaded.get("ema")
        if ema is not False and isinstance(averaged, Mapping) and "shadow_params" in averaged:
            if not isinstance(inner, Mapping):
                raise InputError(
                    f"source: {path} has averaged parameters but no model to name them"
                )
            averaged = with_averages(inner, averaged["shadow_params"])
    if ema or (ema is None and averaged is not None):
        plain = averaged
    if not _is_state_dict(plain):
        raise InputError(f"source: {path} holds no {'averaged ' if ema else ''}state_dict")
    return plain


def _is_state_dict(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(hasattr(v, "shape") for v in value.values())
    )


def with_averages(model: Mapping[str, Any], shadows: Sequence[Array]) -> StateDict:
    """score_sde's averaged parameters under their names.

    Args:
      model: the state_dict, for names and shapes; ``module.`` before a name is removed.
      shadows: the averages in the order of the network's parameters: by layer number and, inside
        a layer, as its code declares them.
    """
    shapes = {k.removeprefix("module."): tuple(v.shape) for k, v in model.items()}
    shapes = {k: shape for k, shape in shapes.items() if not _UNUSED.search(k)}
    faults = [f"unexpected {name}" for name in shapes if declared_order(name) is None]
    if faults:
        raise InputError(f"source: does not fit score_sde: {'; '.join(faults)}")
    names = sorted(shapes, key=declared_order)  # type: ignore[arg-type]
    arrays = [np.asarray(shadow) for shadow in shadows]
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


# --- conversion -------------------------------------------------------------------------------


def resample_filters(network: nn.Module, sources: Iterable[str]) -> dict[str, np.ndarray]:
    """The resampling filters that EDM's files carry beside the weights, by their names."""
    if not isinstance(network, SongUNet):
        return {}
    taps = np.asarray(network.resample_filter, np.float32)
    array = (np.outer(taps, taps) / taps.sum() ** 2)[None, None]
    pattern = r"(_(down|up)\.(conv0|skip)|_aux_residual)\.weight$"
    resampled = [name for name in sources if re.search(pattern, name)]
    return {name.replace(".weight", ".resample_filter"): array for name in resampled}


def convert(
    kind: str, state: StateDict, network: nn.Module, image_shape: ImageShape
) -> tuple[dict[str, Any], list[Entry]]:
    """A published state_dict → (variables, table of what went where).

    Raises one InputError that lists every missing, unexpected and misshapen key by its published
    name, with the shape there, and every resampling filter that is not the network's.
    """
    expected = expected_shapes(network, image_shape)
    sources = {published_name(kind, target): target for target in expected}
    filters = resample_filters(network, sources)
    known = {*sources, *filters}
    faults = [f"missing {name}" for name in known if name not in state]
    faults += [f"unexpected {k}" for k in state if k not in known and not _UNUSED.search(k)]
    faults += [
        f"different {name}: expected the filter {tuple(getattr(network, 'resample_filter', ()))}"
        for name, array in filters.items()
        if name in state and not np.array_equal(np.asarray(state[name], np.float32), array)
    ]
    flat, table = {}, []
    for source, target in sources.items():
        if source not in state:
            continue
        array = np.asarray(state[source])
        form = layout(kind, source, len(expected[target]))
        shape = form.published_shape(expected[target])
        if array.shape != shape:
            faults.append(f"misshapen {source}: {array.shape}, expected {shape}")
            continue
        flat[target] = jnp.asarray(form.to_ours(array), jnp.float32)
        table.append(Entry(source, target, array.shape))
    if faults:
        raise InputError(f"source: does not fit {kind}: {'; '.join(sorted(faults))}")
    return traverse_util.unflatten_dict(flat, sep="/"), table


def export(kind: str, network: nn.Module, variables: Mapping[str, Params]) -> dict[str, np.ndarray]:
    """The published state_dict of our variables: the inverse of :func:`convert`, bit for bit."""
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    state = {}
    for target, array in flat.items():
        source = published_name(kind, target)
        state[source] = layout(kind, source, array.ndim).to_published(np.asarray(array))
    return {**state, **resample_filters(network, state)}


def import_model(
    kind: str, state: StateDict, image_shape: ImageShape = (32, 32, 3), **fields: Any
) -> tuple[Model, list[Entry]]:
    """A published state_dict of a known kind → (model, table of what went where).

    Args:
      kind: "ncsnv2", "wide_resnet_bias" (convolutions with bias, own normalisation), "wide_resnet"
        (RobustBench's, without), "preact_resnet18", "resnet" (torchvision's with bottlenecks:
        ResNet-50, WideResNet-50-2), "edm", "score_sde" or "guided_diffusion".
      state: from :func:`read`.
      image_shape: (height, width, channels) that the model takes.
      fields: of the network, in place of what the weights suggest; needed for what they do not
        show (an ADM's ``head_channels`` where they are not 64, ``num_heads``, ``joint_heads``).

    Raises InputError for an unknown kind or weights that do not fit it.
    """
    check_choice("kind", kind, sorted(KINDS))
    if kind == "edm" and not any(key.startswith("model.") for key in state):
        state = {f"model.{key}": array for key, array in state.items()}
    role, build, form, sigma_min = KINDS[kind]
    try:
        network = build(state, image_shape).clone(**fields)
        expected_shapes(network, image_shape)
    except (ArithmeticError, IndexError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = str(error).split("\n")[0][:200]
        raise InputError(
            f"source: does not fit {kind}: its sizes make no network: {reason}"
        ) from error
    variables, table = convert(kind, state, network, image_shape)
    metadata: dict[str, Any] = {"imported": kind}
    if form is not None:
        metadata["diffusion"] = {"form": form}
        metadata["training"] = {"sigma_min": sigma_min}
        metadata["purification"] = dict(_PURIFICATION)
    return Model(role, network, variables, image_shape, metadata), table
