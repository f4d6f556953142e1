"""Published PyTorch weights ↔ this package's variables, strictly: every key used, every one filled.

Kinds are those of ``KINDS``: NCSNv2, classifiers, and the diffusion networks of EDM ("edm"), score_sde and
guided-diffusion. Sizes are read off the weights.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util

from purify_jax.checks import InputError, check_choice, check_number
from purify_jax.models.files import expected_shapes
from purify_jax.models.model import Model
from purify_jax.models.published_names import (
    MACHINES,
    UNUSED,
    as_array,
    layout,
    published_name,
    unwrapped,
    weights_in,
    without_normalisation,
)
from purify_jax.models.published_sizes import KINDS, ImageShape, StateDict
from purify_jax.networks.diffusion import SongUNet
from purify_jax.types import Params

#: Names of files that torch.load reads.
_TORCH = (".pth", ".pt", ".ckpt", ".tar")
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
        ``.safetensors``, or ``.pth``, ``.pt``, ``.ckpt``, ``.tar`` (needs PyTorch; read with
        ``weights_only=True``, so that no code is ever unpickled). A list or tuple is taken as published NCSNv2
        checkpoints are: the state_dict first, the averaged weights last. A dict may hold it under one of
        ``published_names.CONTAINERS`` ("state_dict", "model", "net", ...), also one inside the other, and the
        averaged weights under one of ``AVERAGES`` ("ema", ...): a state_dict, or score_sde's ``shadow_params``
        in the model's order. Tensors of any floating-point type, and ``torch.nn.Parameter``.
      ema: take the averaged weights; None for where the file has them. A file that holds nothing else gives
        them in any case.

    ``module.`` and ``_orig_mod.`` before names are removed. Raises InputError if the file cannot be read or has
    no weights, and for EDM's published ``.pkl`` files.
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
        found = weights_in(path, _load(path), ema)
    except InputError:
        raise
    except Exception as error:  # each reader raises its own types for a damaged file
        reason = str(error).split("\n")[0][:200]
        if "weights_only" in str(error) or "Unsupported" in reason:
            reason = (
                "it holds more than tensors, whose code is not run; expected the weights alone, saved where that "
                "code runs: torch.save(model.state_dict(), path)"
            )
        raise InputError(f"source: {path} cannot be read: {reason}") from error
    return {name: as_array(value) for name, value in unwrapped(found, MACHINES).items()}


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
    if path.suffix not in _TORCH:
        raise InputError(
            f"source: {path} ends in {path.suffix!r}, expected one of "
            f"{['.npz', '.safetensors', *_TORCH]}"
        )
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"source: {path} needs PyTorch to read, expected it installed (the torch extra), "
            "or the weights as .npz or .safetensors"
        ) from error
    return torch.load(path, map_location="cpu", weights_only=True)


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
    unexpected = [k for k in state if k not in known and not UNUSED.search(k)]
    faults = [f"missing {name}{nearest(name, unexpected)}" for name in known if name not in state]
    faults += [f"unexpected {name}" for name in unexpected]
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
        lost = any(fault.startswith("missing") for fault in faults)
        fits = f"; {len(table)} of the file's {len(state)} tensors fit" if lost else ""
        raise InputError(f"source: does not fit {kind}: {'; '.join(sorted(faults))}{fits}")
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

    A mean and a standard deviation of the data among the buffers (RobustBench's ``mu`` and ``sigma``, a
    normalisation layer before the network) become the classifier's ``mean`` and ``std``, unless ``fields`` has
    others.

    Args:
      kind: "ncsnv2", "wide_resnet_bias" (convolutions with bias, own normalisation), "wide_resnet"
        (RobustBench's, without), "preact_resnet18", "resnet" (torchvision's with bottlenecks:
        ResNet-50, WideResNet-50-2), "edm", "score_sde" or "guided_diffusion".
      state: from :func:`read`; ``model.`` and ``net.`` before names are removed too.
      image_shape: (height, width, channels) that the model takes.
      fields: of the network, in place of what the weights suggest; needed for what they do not
        show (an ADM's ``head_channels`` where they are not 64, ``num_heads``, ``joint_heads``; a
        classifier's ``mean`` and ``std``, which many authors apply outside the network).

    Raises InputError for an unknown kind or weights that do not fit it, with every name that is missing or
    unexpected and its nearest match.
    """
    check_choice("kind", kind, sorted(KINDS))
    if KINDS[kind].role == "classifier":
        state, own = without_normalisation(state)
        fields = _normalised_fields({**own, **fields}, image_shape[-1])
    state = unwrapped(state)
    if kind == "edm":
        state = {f"model.{key}": array for key, array in state.items()}
    if KINDS[kind].role == "classifier":
        state, own = without_normalisation(state)
        fields = _normalised_fields({**own, **fields}, image_shape[-1])
    if kind == "edm" and not any(key.startswith("model.") for key in state):
        state = {f"model.{key}": array for key, array in state.items()}
    role, build, form, sigma_min = KINDS[kind]
    try:
        network = build(state, image_shape).clone(**fields)
        expected_shapes(network, image_shape)
    except (ArithmeticError, IndexError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            held = (
                f"; the file holds {', '.join(state) or 'nothing'}"
                if "missing" in str(error)
                else ""
            )
            raise InputError(f"{error}{held}") from None
        reason = str(error).split("\n")[0][:200]
        raise InputError(
            f"source: does not fit {kind}: its sizes make no network: {reason}"
        ) from error
    variables, table = convert(kind, state, network, image_shape)
    metadata: dict[str, object] = {"imported": kind}
    if form is not None:
        metadata["diffusion"] = {"form": form}
        metadata["training"] = {"sigma_min": sigma_min}
        metadata["purification"] = dict(_PURIFICATION)
    return Model(role, network, variables, image_shape, metadata), table


def nearest(name: str, others: Iterable[str]) -> str:
    """`` (nearest: OTHER)``, the most similar of the other names, or nothing.

    >>> nearest("layer1.0.conv1.weight", ["layers1.0.conv1.weight", "fc.bias"])
    ' (nearest: layers1.0.conv1.weight)'
    """
    found = difflib.get_close_matches(name, list(others), 1, cutoff=0.7)
    return f" (nearest: {found[0]})" if found else ""


def _normalised_fields(fields: dict[str, Any], channels: int) -> dict[str, Any]:
    """The fields with ``mean`` and ``std`` checked, one number a channel; InputError for one without the other."""
    given = {name: fields[name] for name in ("mean", "std") if fields.get(name) is not None}
    if len(given) == 1:
        raise InputError(f"{next(iter(given))}: got it alone, expected mean and std together")
    for name, values in given.items():
        for value in values:
            check_number(name, value, 0.0, 1.0, open_low=name == "std")
        if len(values) not in (1, channels):
            raise InputError(
                f"{name}: got {len(values)} numbers, expected one, or one for each of {channels} channels"
            )
        fields[name] = tuple(values) * (channels if len(values) == 1 else 1)
    return fields
