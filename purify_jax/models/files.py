"""Models as files: safetensors with the architecture in the header."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors.numpy
from flax import traverse_util
from safetensors import safe_open

from purify_jax import networks
from purify_jax.atomic import write_atomically
from purify_jax.checks import InputError
from purify_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Model:
    """A network with its variables and what is needed to use it.

    role: what the network's output is: "energy", "score", "classifier", or "diffusion": what the
      diffusion that the metadata name predicts (``models.diffusion``).
    variables: ``{"params": ...}`` and, where the network has them, ``{"batch_stats": ...}``.
    image_shape: ``(height, width, channels)`` that it was trained on.
    metadata: anything else worth keeping, as JSON: data set, purification settings, versions.
    """

    role: str
    network: nn.Module
    variables: Mapping[str, Params]
    image_shape: tuple[int, int, int]
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def params(self) -> Params:
        """The trainable parameters."""
        return self.variables["params"]


#: The roles of models that purify.
SCORE_ROLES = ("energy", "score", "diffusion")
ROLES = (*SCORE_ROLES, "classifier")


def save_model(path: str | Path, model: Model, dtype: Any = None) -> None:
    """Writes a model as one safetensors file, with its architecture in the header, atomically.

    ``dtype`` (bfloat16, say) is what floating-point parameters are stored as; as they are by default.
    """
    if model.role not in ROLES:
        raise InputError(f"role: got {model.role!r}, expected one of {ROLES}")
    flat = traverse_util.flatten_dict(dict(model.variables), sep="/")
    tensors = {name: np.array(jax.device_get(value), order="C") for name, value in flat.items()}
    if dtype is not None:
        floating = lambda array: np.issubdtype(array.dtype, np.floating)
        tensors = {n: a.astype(dtype) if floating(a) else a for n, a in tensors.items()}
    header = {
        "format": "purify_jax",
        "role": model.role,
        "network": json.dumps(networks.describe(model.network)),
        "image_shape": json.dumps(list(model.image_shape)),
        "metadata": json.dumps(dict(model.metadata)),
    }
    write_atomically(path, safetensors.numpy.save(tensors, metadata=header))


def load_model(path: str | Path, roles: tuple[str, ...] = ROLES) -> Model:
    """Reads a model file; parameters are filled strictly, bfloat16 ones widened to float32.

    Raises InputError if the file is missing, damaged, not of this package, of another role than
    expected, or its tensors do not fit the architecture in its own header.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"model: {path} is not a file, expected a safetensors model")
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
        tensors = safetensors.numpy.load_file(path)
    except Exception as error:  # safetensors raises its own error type for every defect
        raise InputError(f"model: {path} is damaged or not safetensors: {error}") from error
    if header.get("format") != "purify_jax":
        raise InputError(
            f"model: {path} has no purify_jax header, expected a model saved by save_model"
        )
    if header["role"] not in roles:
        raise InputError(f"model: {path} is a {header['role']}, expected {' or '.join(roles)}")
    network = networks.build(json.loads(header["network"]))
    image_shape = tuple(json.loads(header["image_shape"]))
    check_tensors(path, tensors, network, image_shape)
    variables = traverse_util.unflatten_dict({k: _widen(v) for k, v in tensors.items()}, sep="/")
    return Model(header["role"], network, variables, image_shape, json.loads(header["metadata"]))


def _widen(array: np.ndarray) -> jax.Array:
    return jnp.asarray(array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array)


def expected_shapes(network: nn.Module, image_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """``{"params/...": shape}`` of all variables of a network on images of a shape."""
    inputs = networks.example_inputs(network, image_shape)
    variables = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    return {k: v.shape for k, v in traverse_util.flatten_dict(variables, sep="/").items()}


def check_tensors(
    source: str | Path,
    tensors: Mapping[str, Any],
    network: nn.Module,
    image_shape: tuple[int, ...],
) -> None:
    """Raises one InputError that lists every missing, unexpected and misshapen tensor."""
    expected = expected_shapes(network, image_shape)
    faults = [f"missing {name}" for name in expected if name not in tensors]
    faults += [f"unexpected {name}" for name in tensors if name not in expected]
    faults += [
        f"misshapen {name}: {tuple(tensors[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if faults:
        raise InputError(
            f"model: {source} does not fit {type(network).__name__} on {tuple(image_shape)}: "
            + "; ".join(faults)
        )
