"""A defense as one file that runs without the model's code, at any batch size (jax.export)."""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import export

from purify_jax.checkpoints import write_atomically
from purify_jax.types import Array, InputError, Keys, PredictFn, check_images

#: jax.export's names of platforms.
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export_defense(
    path: str | Path,
    defense: PredictFn,
    image_shape: tuple[int, int, int],
    platforms: Sequence[str] = ("cpu",),
) -> int:
    """Writes a defense as StableHLO with its parameters inside; returns the file's size in bytes.

    The batch size is symbolic. The first derivative is stored too, so the file can be attacked by
    exact gradients like the defense it was made from. Runs on the ``platforms`` it was made for;
    none of them needs to be present now.

    Raises InputError for an unknown platform, or a defense that needs a fixed batch size.
    """
    unknown = sorted(set(platforms) - set(PLATFORMS))
    if unknown or not platforms:
        raise InputError(f"platforms: got {list(platforms)}, expected some of {list(PLATFORMS)}")

    def predict(key_data: Array, images: Array) -> Array:
        return defense(jax.random.wrap_key_data(key_data), images)

    (batch,) = export.symbolic_shape("batch")
    arguments = (
        jax.ShapeDtypeStruct((batch, 2), jnp.uint32),
        jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32),
    )
    exported = export.export(jax.jit(predict), platforms=list(platforms))(*arguments)
    content = bytes(exported.serialize(vjp_order=1))
    write_atomically(path, content)
    return len(content)


def load_exported(path: str | Path) -> PredictFn:
    """The exported defense: (keys ``[batch]``, images) → log-probabilities, jit-able, with gradients.

    Needs jax alone; this function is no more than ``jax.export.deserialize(bytes).call`` on
    (``jax.random.key_data(keys)``, images). Raises InputError for a missing or damaged file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"exported: {path} is not a file, expected one made by export_defense")
    try:
        exported = export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:  # flatbuffers raises many kinds of error
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"exported: {path} is damaged: {reason}") from error
    shape = tuple(exported.in_avals[1].shape[1:])

    def predict(keys: Keys, images: Array) -> Array:
        check_images(images, shape=shape)
        return exported.call(jax.random.key_data(keys), images)

    return predict
