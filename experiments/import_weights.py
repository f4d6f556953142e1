"""Imports published PyTorch weights as a model file, strictly, and checks one forward pass.

python -m experiments.import_weights --kind=ncsnv2 --source=checkpoint.pth --out=model.safetensors

Prints what went where. A missing, unexpected or misshapen key is an error, and nothing is written.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from absl import flags

import purify_jax as pj
from experiments.common import cli
from purify_jax.atomic import check_output
from purify_jax.checks import InputError

#: The names of ``models.torch_weights.KINDS``, here so that flags are read before JAX is loaded;
#: tests/project/test_start.py compares them.
NETWORKS = ("ncsnv2", "preact_resnet18", "resnet", "wide_resnet", "wide_resnet_bias")
DIFFUSIONS = ("edm", "guided_diffusion", "score_sde")

flags.DEFINE_enum(
    "kind",
    None,
    [*NETWORKS, *DIFFUSIONS],
    "Architecture.",
    required=True,
)
flags.DEFINE_string("source", None, "Weights: .pth, .pt, .npz or .safetensors.", required=True)
flags.DEFINE_integer(
    "head_channels", None, "Channels of an attention head of a guided_diffusion network (64)."
)
flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "What floating-point parameters are stored as."
)
flags.DEFINE_string("out", None, "Model file to write (.safetensors).", required=True)
flags.DEFINE_bool("ema", False, "Take the averaged weights, as a diffusion does by itself.")
flags.DEFINE_list("image_shape", ["32", "32", "3"], "height,width,channels of the images.")
flags.DEFINE_string(
    "class_names", None, "File with the name of a class per line, in the order of the outputs."
)
flags.DEFINE_bool("quiet", False, "Print the summary only.")
FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    """A checkpoint in, a model file out."""
    del argv
    check_output("out", FLAGS.out)
    if len(FLAGS.image_shape) != 3 or not all(part.isdigit() for part in FLAGS.image_shape):
        raise InputError(f"image_shape: got {FLAGS.image_shape}, expected height,width,channels")
    height, width, channels = map(int, FLAGS.image_shape)
    model, table = _import((height, width, channels))
    if FLAGS.class_names:
        model = _named(model, Path(FLAGS.class_names))
    if not FLAGS.quiet:
        print(pj.reporting.text_table(["published", "here", "shape there"], table))
    import jax

    parameters = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    print(f"{len(table)} tensors, {parameters:,} parameters")
    print(_forward(model))
    pj.models.save_model(FLAGS.out, model, FLAGS.dtype)
    print(f"written to {FLAGS.out}: the model ({Path(FLAGS.out).stat().st_size / 1e6:.1f} MB)")


def _import(image_shape: tuple[int, int, int]):
    """(model, table) of the flags: a diffusion takes the averaged weights wherever it has them."""
    fields = {} if FLAGS.head_channels is None else {"head_channels": FLAGS.head_channels}
    if fields and FLAGS.kind != "guided_diffusion":
        raise InputError(f"head_channels: {FLAGS.kind} has no such setting, expected none")
    averaged = FLAGS.ema or (None if FLAGS.kind in DIFFUSIONS else False)
    state = pj.models.torch_weights.read(FLAGS.source, averaged)
    return pj.models.torch_weights.import_model(FLAGS.kind, state, image_shape, **fields)


def _named(model: pj.models.Model, path: Path) -> pj.models.Model:
    """The model with the names of its classes, by which folders of images are matched with them."""
    if model.role != "classifier" or not path.is_file():
        raise InputError(
            f"class_names: got {path} for a {model.role}, expected a file, for a classifier"
        )
    names = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    outputs = pj.models.num_outputs(model.network, model.image_shape)
    if len(names) != outputs:
        raise InputError(
            f"class_names: got {len(names)} in {path}, expected one for each of {outputs} outputs"
        )
    return dataclasses.replace(model, metadata={**model.metadata, "class_names": names})


def _forward(model: pj.models.Model) -> str:
    """One forward pass: against the source's own x and y if it has them, else finite at least."""
    import jax
    import jax.numpy as jnp

    if model.role == "diffusion":
        return _denoised(model)
    run = jax.jit(lambda x: model.network.apply(model.variables, x))
    if FLAGS.source.endswith(".npz"):
        data = np.load(FLAGS.source)
        if {"x", "y"} <= set(data.files):
            found = np.asarray(run(np.moveaxis(data["x"], 1, -1)))
            expected = np.moveaxis(data["y"], 1, -1) if data["y"].ndim == 4 else data["y"]
            error = np.abs(found - expected).max() / np.abs(expected).max()
            if not error < 1e-3:
                raise InputError(
                    f"source: the output differs from its own y by {error:.2g} relative"
                )
            return f"forward pass: within {error:.1e} (relative) of the source's own output"
    output = run(jax.random.uniform(jax.random.key(0), (2, *model.image_shape), jnp.float32))
    if not bool(jnp.all(jnp.isfinite(output))):
        raise InputError("source: the output of a forward pass is not finite")
    spread = f"mean {float(output.mean()):.3g}, standard deviation {float(output.std()):.3g}"
    return f"forward pass: output {tuple(output.shape)}, finite, {spread}"


def _denoised(model: pj.models.Model) -> str:
    """One denoising of random images: it must be finite."""
    import jax
    import jax.numpy as jnp

    images = jax.random.uniform(jax.random.key(0), (1, *model.image_shape), jnp.float32)
    output = pj.jit(pj.models.diffusion(model))(images, jnp.full(1, 0.1))
    if not bool(jnp.all(jnp.isfinite(output))):
        raise InputError("source: the denoised images are not finite")
    return f"D(x; 0.1) of one random image: {tuple(output.shape)}, mean {float(output.mean()):.3g}"


if __name__ == "__main__":
    cli.run(main)
