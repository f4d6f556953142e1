"""Imports published PyTorch weights as a model file, strictly, and checks one forward pass.

purify-jax import_weights --kind=ncsnv2 --source=checkpoint.pth --out=model.safetensors

Prints what went where. A missing, unexpected or misshapen key is an error, and nothing is written. A classifier
whose normalisation is outside its weights needs --mean and --std; a few labelled images tell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

import purify_jax as pj
from experiments.common import cli
from purify_jax.atomic import check_output
from purify_jax.checks import InputError, number

#: The names of ``models.torch_weights.KINDS``, here so that flags are read before JAX is loaded;
#: tests/project/test_start.py compares them.
NETWORKS = ("ncsnv2", "preact_resnet18", "resnet", "wide_resnet", "wide_resnet_bias")
DIFFUSIONS = ("edm", "guided_diffusion", "score_sde")
#: Those with a mean and a standard deviation of the data.
CLASSIFIERS = NETWORKS[1:]

flags.DEFINE_enum(
    "kind",
    None,
    [*NETWORKS, *DIFFUSIONS],
    "Architecture.",
    required=True,
)
flags.DEFINE_string("source", None, "Weights: .pth, .pt, .npz or .safetensors.", required=True)
flags.DEFINE_list("mean", None, "The data's mean, each channel: 0.485,0.456,0.406 or 124/255.")
flags.DEFINE_list("std", None, "The data's standard deviation, each channel.")
flags.DEFINE_string(
    "dataset",
    None,
    "Labelled images that test mean and std (default for 32,32,3: those that ship).",
)
flags.DEFINE_string("data_dir", None, "Folder of prepared tensorflow-datasets or of images.")
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
    checked = _check_of_normalisation(model)
    if not FLAGS.quiet:
        print(pj.reporting.text_table(["published", "here", "shape there"], table))
    import jax

    parameters = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    print(f"{len(table)} tensors, {parameters:,} parameters")
    print(_forward(model))
    for line in checked:
        print(line)
    pj.models.save_model(FLAGS.out, model, FLAGS.dtype)
    print(f"written to {FLAGS.out}: the model ({Path(FLAGS.out).stat().st_size / 1e6:.1f} MB)")


def _import(image_shape: tuple[int, int, int]):
    """(model, table) of the flags: a diffusion takes the averaged weights wherever it has them."""
    given = {"head_channels": FLAGS.head_channels, "mean": _numbers("mean"), "std": _numbers("std")}
    fields = {name: value for name, value in given.items() if value is not None}
    for name in fields:
        known = (
            FLAGS.kind == "guided_diffusion"
            if name == "head_channels"
            else FLAGS.kind in CLASSIFIERS
        )
        if not known:
            raise InputError(f"{name}: {FLAGS.kind} has no such setting, expected none")
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


def _numbers(name: str) -> tuple[float, ...] | None:
    """The numbers or fractions of a list flag."""
    given = FLAGS[name].value
    try:
        return None if given is None else tuple(map(number, given))
    except ValueError as error:
        raise InputError(f"{name}: {error}, expected numbers or fractions") from error


def _check_of_normalisation(model: pj.models.Model) -> list[str]:
    """What accuracy on a few images says of a classifier's mean and std: lines to print."""
    if model.role != "classifier":
        return []
    photographs = FLAGS.dataset is None and tuple(model.image_shape) == (32, 32, 3)
    name = "cifar10_photos" if photographs else FLAGS.dataset
    mean, std = model.network.mean, model.network.std
    is_said = f"mean {_shown(mean)}, std {_shown(std)}" if mean else "no normalisation"
    if name is None:
        return [f"normalisation: {is_said}, not tested; --dataset=NAME tests it on labelled images"]
    data = pj.load_split(name, "test", FLAGS.data_dir).take(64)
    outputs = model.network.num_outputs
    data = data if photographs else pj.models.match_classes(model, data)
    if data.image_shape != tuple(model.image_shape) or data.num_classes != outputs:
        if photographs:
            return [f"normalisation: {is_said}, not tested: the images that ship have 10 classes"]
        raise InputError(
            f"dataset: got images {data.image_shape} of {data.num_classes} classes, expected the model's "
            f"{tuple(model.image_shape)} and {outputs}"
        )
    found = pj.models.accuracies_by_normalisation(model, *data.batch(range(len(data))))
    own, bare = found.pop("as imported"), found["no normalisation"]
    lines = [f"normalisation: {is_said}; {own:.3f} of {len(data)} images of {name} are right"]
    if mean and abs(bare - own) > 0.1:
        lines.append(f"without normalisation: {bare:.3f}")
    best = max(found, key=lambda other: found[other])
    if found[best] > own + 0.1:
        lines.append(f"warning: {found[best]:.3f} with {best}; the weights seem to expect it")
    return lines


def _shown(values: Sequence[float]) -> str:
    return ",".join(f"{value:.4g}" for value in values)


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
            images = np.moveaxis(data["x"], 1, -1)
            if FLAGS.mean:  # y is that of the weights alone
                images = images * np.float32(model.network.std) + np.float32(model.network.mean)
            found = np.asarray(run(images))
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
