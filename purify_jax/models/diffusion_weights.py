"""Published diffusion networks ↔ this package's variables, strictly: every key used, every one filled.

Three kinds: "edm" (SongUNet), "score_sde" (DDPM++, its averaged weights) and "guided_diffusion"
(ADM). Names are those of ``purify_jax.models.diffusion_names``, sizes are read off the weights.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from purify_jax.checks import InputError
from purify_jax.models import files
from purify_jax.models.diffusion_names import declared_order, layout, published_name
from purify_jax.models.diffusion_sizes import KINDS
from purify_jax.models.files import Model
from purify_jax.models.torch_weights import Entry, StateDict, read_state_dict
from purify_jax.models.torch_weights import _read_torch as read_torch
from purify_jax.models.torch_weights import _weights as find_weights
from purify_jax.networks.diffusion import SongUNet

#: score_sde's table of noise levels, which no computation here needs.
_UNUSED = re.compile(r"(^|\.)sigmas$")


# --- files ------------------------------------------------------------------------------------


def read(path: str | Path) -> StateDict:
    """A published diffusion checkpoint as a flat state_dict of numpy arrays.

    Args:
      path: as for ``torch_weights.read_state_dict``. Besides a plain state_dict, a score_sde
        checkpoint: a dict of "model" (with or without ``module.``) and "ema", whose
        ``shadow_params`` are the averaged weights in the model's order, or a dict with a state_dict
        under "ema"; the averaged weights are taken.
        In an ``.npz``, keys that begin with "param/" are the weights and all others are ignored.

    Raises InputError for a file that cannot be read, and for EDM's published ``.pkl`` files.
    """
    path = Path(path)
    if path.suffix == ".pkl":
        raise InputError(
            f"source: {path} is a pickle, which runs code when opened; expected its weights, saved where "
            "EDM's own code runs: torch.save(pickle.load(open(path, 'rb'))['ema'].state_dict(), 'edm.pt')"
        )
    if path.suffix in (".pth", ".pt") and path.is_file():
        state = _read_checkpoint(path)
    else:
        state = read_state_dict(path)
    weights = {k.removeprefix("param/"): v for k, v in state.items() if k.startswith("param/")}
    return {k.removeprefix("module."): np.asarray(v) for k, v in (weights or state).items()}


def _read_checkpoint(path: Path) -> Mapping[str, Any]:
    """The weights of a PyTorch file, the averaged ones where it has them; no code is unpickled."""
    try:
        loaded = read_torch(path)
    except InputError:
        raise
    except Exception as error:  # PyTorch raises its own types for a damaged or unsafe file
        reason = str(error).split("\n")[0][:200]
        raise InputError(f"source: {path} cannot be read: {reason}") from error
    ema = loaded.get("ema") if isinstance(loaded, Mapping) else None
    if isinstance(ema, Mapping) and "shadow_params" in ema:
        if not isinstance(loaded.get("model"), Mapping):
            raise InputError(f"source: {path} has averaged parameters but no model to name them")
        return with_averages(loaded["model"], ema["shadow_params"])
    found = find_weights(loaded, ema is not None)
    if found is None:
        raise InputError(f"source: {path} holds no state_dict")
    return found


def with_averages(model: Mapping[str, Any], shadows: Sequence[Any]) -> StateDict:
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


@lru_cache(maxsize=16)
def _shapes(network: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    return files.expected_shapes(network, image_shape)


def expected_shapes(
    network: nn.Module, image_shape: tuple[int, int, int]
) -> dict[str, tuple[int, ...]]:
    """``{"params/...": shape}`` of all variables of a diffusion network on images of a shape."""
    return dict(_shapes(network, tuple(image_shape)))


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
    kind: str, state: StateDict, network: nn.Module, image_shape: tuple[int, int, int]
) -> tuple[dict[str, Any], list[Entry]]:
    """A published state_dict → (variables, table of what went where).

    Raises one InputError that lists every missing, unexpected and misshapen key by its published
    name, with the shape there, and every resampling filter that is not the network's.
    """
    if kind == "edm" and not any(key.startswith("model.") for key in state):
        state = {f"model.{key}": array for key, array in state.items()}
    expected = expected_shapes(network, image_shape)
    sources = {published_name(kind, target): target for target in expected}
    filters = resample_filters(network, sources)
    known = {*sources, *filters}
    faults = [f"missing {name}" for name in known if name not in state]
    faults += [f"unexpected {k}" for k in state if k not in known and not _UNUSED.search(k)]
    faults += [
        f"different {name}: expected the filter {tuple(network.resample_filter)}"
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


def export(kind: str, network: nn.Module, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The published state_dict of our variables: the inverse of :func:`convert`, bit for bit."""
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    state = {}
    for target, array in flat.items():
        source = published_name(kind, target)
        state[source] = layout(kind, source, array.ndim).to_published(np.asarray(array))
    return {**state, **resample_filters(network, state)}


#: kind → what its file predicts (``models.DIFFUSIONS``), the smallest σ it was trained at in pixel units.
_FORMS = {
    "edm": ("edm", 0.001),
    "score_sde": ("vp", 0.005),
    "guided_diffusion": ("discrete_vp", 0.005),
}
#: How an imported diffusion purifies unless told otherwise: DiffPure at t* = 0.1, that is σ = 0.17.
_PURIFICATION = {"method": "diffpure_sde", "noise_scale": 0.17, "num_steps": 100, "num_restarts": 1}


def import_diffusion(
    kind: str,
    state: StateDict,
    image_shape: tuple[int, int, int] = (32, 32, 3),
    **fields: Any,
) -> tuple[Model, list[Entry]]:
    """:func:`import_network` as a model of the role "diffusion" → (model, table)."""
    network, variables, table = import_network(kind, state, image_shape, **fields)
    form, smallest = _FORMS[kind]
    metadata = {
        "imported": kind,
        "diffusion": {"form": form},
        "training": {"sigma_min": smallest},
        "purification": dict(_PURIFICATION),
    }
    return Model("diffusion", network, variables, image_shape, metadata), table


def import_network(
    kind: str,
    state: StateDict,
    image_shape: tuple[int, int, int] = (32, 32, 3),
    **fields: Any,
) -> tuple[nn.Module, dict[str, Any], list[Entry]]:
    """A published state_dict of a known kind → (network, variables, table).

    Args:
      kind: "edm", "score_sde" or "guided_diffusion".
      state: from :func:`read`.
      image_shape: (height, width, channels) that the network takes.
      fields: of the network, in place of what the weights suggest; needed for what they do not
        show (an ADM's ``head_channels`` where they are not 64, ``num_heads``, ``joint_heads``).

    Raises InputError for an unknown kind or weights that do not fit it.
    """
    if kind not in KINDS:
        raise InputError(f"kind: got {kind!r}, expected one of {sorted(KINDS)}")
    if kind == "edm" and not any(key.startswith("model.") for key in state):
        state = {f"model.{key}": array for key, array in state.items()}
    try:
        network = KINDS[kind](state, image_shape).clone(**fields)
        expected_shapes(network, image_shape)
    except (ArithmeticError, IndexError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = str(error).split("\n")[0][:200]
        raise InputError(
            f"source: does not fit {kind}: its sizes make no network: {reason}"
        ) from error
    variables, table = convert(kind, state, network, image_shape)
    return network, variables, table
