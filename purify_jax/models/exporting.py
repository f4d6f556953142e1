"""A defense as one file that runs without the model's code, at any batch size (jax.export)."""

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from purify_jax.atomic import write_atomically
from purify_jax.checks import InputError, check_choice, check_images
from purify_jax.pytrees import Pytree, as_pytree, static
from purify_jax.types import Array, Keys, PredictFn

#: jax.export's names of platforms.
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
#: Implementations of random keys, as ``jax.random.key(seed, impl=...)`` takes them.
IMPLEMENTATIONS = ("threefry2x32", "rbg", "unsafe_rbg")


def export_defense(
    path: str | Path,
    defense: PredictFn,
    image_shape: tuple[int, int, int],
    platforms: Sequence[str] = ("cpu",),
    implementation: str | None = None,
) -> int:
    """Writes a defense's program and its parameters; returns the file's size in bytes.

    The file is a numpy archive (.npz): ``program``, StableHLO whose first arguments are the arrays
    ``leaf_0``, ``leaf_1``, … beside it. So the parameters are stored once, and are no constants that
    a compiler has to carry. The batch size is symbolic. The first derivative is stored too, so the
    file can be attacked by exact gradients like the defense it was made from. Runs on the
    ``platforms`` it was made for; none of them needs to be present now.

    The program takes random keys of one ``implementation``, which the file names: JAX's default one
    (``jax_default_prng_impl``) unless another of :data:`IMPLEMENTATIONS` is given.

    Raises InputError for an unknown platform or implementation, or a defense that needs a fixed batch size.
    """
    _check_installed()
    unknown = sorted(set(platforms) - set(PLATFORMS))
    if unknown or not platforms:
        raise InputError(f"platforms: got {list(platforms)}, expected some of {list(PLATFORMS)}")
    default = str(jax.random.key_impl(jax.random.key(0)))
    implementation = default if implementation is None else implementation
    check_choice("implementation", implementation, IMPLEMENTATIONS)
    leaves, structure = jax.tree.flatten(as_pytree(defense))
    leaves = [jnp.asarray(leaf) for leaf in leaves]

    def predict(leaves: list[Array], key_data: Array, images: Array) -> Array:
        keys = jax.random.wrap_key_data(key_data, impl=implementation)
        return jax.tree.unflatten(structure, leaves)(keys, images)

    (batch,) = export.symbolic_shape("batch")
    key_data = jax.random.key_data(jax.random.key(0, impl=implementation))
    arguments = (
        [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves],
        jax.ShapeDtypeStruct((batch, *key_data.shape), key_data.dtype),
        jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32),
    )
    exported = export.export(jax.jit(predict), platforms=list(platforms))(*arguments)
    program = np.frombuffer(exported.serialize(vjp_order=1), np.uint8)
    buffer = io.BytesIO()
    named = {f"leaf_{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    named |= {"program": program, "implementation": np.asarray(implementation)}
    np.savez(buffer, allow_pickle=False, **named)
    write_atomically(path, buffer.getvalue())
    return buffer.tell()


class ExportedDefense(Pytree):
    """What :func:`load_exported` returns.

    leaves: the parameters, first argument of the program.
    program: of (leaves, key data, images).
    implementation: of the keys that it takes.
    """

    leaves: list[Array]
    program: export.Exported = static()
    implementation: str = static()

    def __call__(self, keys: Keys, images: Array) -> Array:
        """(keys ``[batch]``, images) → log-probabilities ``[batch, classes]``.

        Raises InputError for images of another shape, or keys of another implementation.
        """
        check_images(images, shape=tuple(self.program.in_avals[-1].shape[1:]))
        given = str(jax.random.key_impl(keys))
        if given != self.implementation:
            raise InputError(
                f"keys: got {given} keys, expected {self.implementation}, which was exported"
            )
        return self.program.call(self.leaves, jax.random.key_data(keys), images)


def _check_installed() -> None:
    if importlib.util.find_spec("flatbuffers") is None:
        raise InputError(
            "exported: needs the package flatbuffers (pip install 'purify_jax[export]'), expected it installed"
        )


def load_exported(path: str | Path) -> ExportedDefense:
    """The exported defense: (keys ``[batch]``, images) → log-probabilities, jit-able, with gradients.

    Needs jax alone: this function is no more than ``jax.export.deserialize(program).call`` on
    (the leaves, ``jax.random.key_data(keys)``, images), with keys of the file's ``implementation``.
    Raises InputError for a missing or damaged file.
    """
    path = Path(path)
    _check_installed()
    if not path.is_file():
        raise InputError(f"exported: {path} is not a file, expected one made by export_defense")
    try:
        with np.load(path, allow_pickle=False) as archive:
            program = export.deserialize(bytearray(archive["program"].tobytes()))
            implementation = str(archive["implementation"])
            leaves = [jnp.asarray(archive[f"leaf_{i}"]) for i in range(len(archive.files) - 2)]
    except Exception as error:  # zipfile, numpy and flatbuffers raise many kinds of error
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"exported: {path} is damaged: {reason}") from error
    return ExportedDefense(leaves, program=program, implementation=implementation)
