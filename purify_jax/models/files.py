"""Models as files: safetensors with the architecture in the header."""

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open

from purify_jax import data, networks
from purify_jax.atomic import write_atomically
from purify_jax.checks import InputError, check_outputs, shown
from purify_jax.data import Dataset
from purify_jax.models.headers import ROLES, Header
from purify_jax.models.model import Model
from purify_jax.networks.fields import least_layers
from purify_jax.types import Params


def save_model(path: str | Path, model: Model, dtype: DTypeLike | None = None) -> None:
    """Writes a model as one safetensors file, with its architecture in the header, atomically.

    ``dtype`` (bfloat16, say) is what floating-point parameters are stored as; as they are by default.
    The same model is the same bytes. Raises InputError for a header or for weights that
    :func:`load_model` would refuse.
    """
    height, width, channels = model.image_shape
    header = Header(model.role, model.network, (height, width, channels), model.metadata)
    flat = traverse_util.flatten_dict(dict(model.variables), sep="/")
    tensors = {name: np.array(jax.device_get(value), order="C") for name, value in flat.items()}
    if dtype is not None:
        floating = lambda array: np.issubdtype(array.dtype, np.floating)
        tensors = {n: a.astype(dtype) if floating(a) else a for n, a in tensors.items()}
    check_finite(path, tensors)
    Header.read(header.texts())
    write_atomically(path, _serialized(tensors, header.texts()))


def _serialized(tensors: Mapping[str, np.ndarray], texts: Mapping[str, str]) -> bytes:
    """safetensors with its header in one order; its own writer's is another one in every process."""
    content = safetensors.numpy.save(dict(tensors), metadata=dict(texts))
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def load_model(path: str | Path, roles: tuple[str, ...] = ROLES) -> Model:
    """Reads a model file; parameters are filled strictly, narrower ones widened to float32.

    The header is checked first (``purify_jax.models.headers``), then the shapes of the
    tensors; their numbers are read last. Raises InputError if the file is missing, damaged, not of
    this package, of another role than expected, if its tensors do not fit the architecture in its
    own header, or are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"model: {path} is not a file, expected a safetensors model")
    with _opened(path) as file:
        try:
            header = Header.read(file.metadata() or {})
        except InputError as error:
            raise InputError(f"model: {path} {error}") from error
        if header.role not in roles:
            raise InputError(f"model: {path} is a {header.role}, expected {' or '.join(roles)}")
        found = {name: _described(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
        check_size(path, header.network, len(found))
        check_tensors(path, found, header.network, header.image_shape)
        check_output(path, header)
        tensors = {name: file.get_tensor(name) for name in found}
    with np.errstate(over="ignore"):  # infinity is refused next
        tensors = {name: array.astype(np.float32) for name, array in tensors.items()}
    check_finite(path, tensors)
    variables = jax.device_put(tensors)
    return Model(
        header.role,
        header.network,
        traverse_util.unflatten_dict(variables, sep="/"),
        header.image_shape,
        header.metadata,
    )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"model: {path} is damaged or not safetensors: {error}") from error


#: safetensors' names of what parameters are stored as.
_STORED = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}


def _described(tensor: Any) -> jax.ShapeDtypeStruct:
    """Shape and type of a tensor that is not read yet; a type that no parameter has is bool."""
    dtype = _STORED.get(tensor.get_dtype(), np.bool_)
    return jax.ShapeDtypeStruct(tuple(tensor.get_shape()), dtype)


def check_finite(source: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Raises InputError that lists the tensors with NaN or infinity."""
    bad = [name for name, array in tensors.items() if not np.isfinite(array).all()]
    if bad:
        raise InputError(
            f"model: {source}: NaN or infinity in {'; '.join(bad[:5])} ({len(bad)} of "
            f"{len(tensors)} tensors), expected finite weights"
        )


def check_size(source: str | Path, network: nn.Module, tensors: int) -> None:
    """Raises InputError for a network of more layers than there are tensors, before it is traced."""
    layers = least_layers(networks.describe(network))
    if layers > tensors:
        raise InputError(
            f"model: {source}: its header describes at least {layers} layers, but it holds "
            f"{tensors} tensors"
        )


def check_output(source: str | Path, header: Header) -> None:
    """Raises InputError unless a classifier answers classes, and the others images.

    An energy may also be one number per image, and a diffusion predict a variance beside them.
    """
    images = networks.example_inputs(header.network, header.image_shape)[0]
    shape = _traced(header.network, header.image_shape)[0].shape
    like_images = shape == images.shape
    with_variance = shape == (*images.shape[:-1], 2 * images.shape[-1])
    fits = {
        "classifier": len(shape) == 2,
        "energy": like_images or shape in ((1,), (1, 1)),
        "score": like_images,
        "diffusion": like_images or with_variance,
    }
    if not fits[header.role]:
        raise InputError(
            f"model: {source}: {type(header.network).__name__} answers shape {shape} for "
            f"{images.shape}, expected that of a {header.role}"
        )
    names = header.metadata.get("class_names", [])
    if header.role == "classifier" and names and len(names) != shape[-1]:
        raise InputError(
            f"model: {source}: {len(names)} class names for {shape[-1]} outputs, expected one for each"
        )


@functools.lru_cache(maxsize=4)
def _traced(
    network: nn.Module, image_shape: tuple[int, ...]
) -> tuple[jax.ShapeDtypeStruct, Params]:
    """(output, variables) of a network, as shapes; a file is checked for both."""
    run = lambda *inputs: network.init_with_output(jax.random.key(0), *inputs)
    return jax.eval_shape(run, *networks.example_inputs(network, image_shape))


def num_outputs(network: nn.Module, image_shape: tuple[int, ...]) -> int:
    """How many classes a classifier tells apart; InputError for one output, and for other outputs than classes."""
    run = lambda *inputs: network.init_with_output(jax.random.key(0), *inputs)[0]
    shape = jax.eval_shape(run, *networks.example_inputs(network, image_shape)).shape
    check_outputs("classifier", shape)
    return shape[-1]


def match_classes(model: Model, dataset: Dataset) -> Dataset:
    """The data set with the labels of a classifier model: :func:`purify_jax.data.match_classes`."""
    outputs = num_outputs(model.network, model.image_shape)
    # Names that follow from a data set alone are not a model's of other classes of it.
    names = model.class_names if len(model.class_names) == outputs else ()
    return data.match_classes(dataset, names, outputs)


def expected_shapes(network: nn.Module, image_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """``{"params/...": shape}`` of all variables of a network on images of a shape.

    Raises InputError for a network that cannot be built for them.
    """
    try:
        variables = _traced(network, tuple(image_shape))[1]
    except Exception as error:  # whatever a layer says of sizes that do not fit
        reason = f"{type(error).__name__} {error}"
        raise InputError(
            f"network: {type(network).__name__} cannot be built for images {tuple(image_shape)}: "
            f"{shown(reason)}"
        ) from error
    return {k: v.shape for k, v in traverse_util.flatten_dict(variables, sep="/").items()}


def check_tensors(
    source: str | Path,
    tensors: Mapping[str, np.ndarray | jax.ShapeDtypeStruct],
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
    faults += [
        f"no floating-point numbers in {name}"
        for name, tensor in tensors.items()
        if not jnp.issubdtype(tensor.dtype, jnp.floating)
    ]
    if faults:
        raise InputError(
            f"model: {source} does not fit {type(network).__name__} on {tuple(image_shape)}: "
            + "; ".join(faults)
        )
