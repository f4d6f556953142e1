"""The recipe that trains :class:`~purify_jax.networks.WhitenedConvNet` to 94% in 8 epochs.

Jordan 2024 (airbench94, arXiv 2404.00498), in its Muon form: whitened first layer, alternating
flips, reflected crops, label smoothing, orthogonalised momentum for the filters and plain momentum for
the rest, all decaying linearly to zero. Published with test-time augmentation, which is left
out here: a defense reports without.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from purify_jax.arrays import per_image
from purify_jax.checks import InputError, check_count
from purify_jax.data import Dataset, to_float
from purify_jax.keys import stream
from purify_jax.models.files import Model
from purify_jax.models.versions import versions
from purify_jax.pytrees import pytree, static
from purify_jax.training import settings as runs
from purify_jax.training.settings import Settings, Trained
from purify_jax.training.step import TrainState, classification_loss
from purify_jax.types import Array, Keys

#: Learning rates as published, for a loss that is summed over a batch of 2000.
FILTERS, BIASES, HEAD = 0.24, 0.053, 0.67
MOMENTUM, FILTER_MOMENTUM, DECAY = 0.85, 0.6, 2e-6
WHITENING_IMAGES = 5000


def whitening_kernel(images: np.ndarray, mean: Any, std: Any, size: int = 2) -> np.ndarray:
    """Filters ``[size, size, c, 2·size²·c]`` whose outputs on the images' patches are uncorrelated.

    The eigenvectors of the patches' covariance over √(eigenvalue + 5e-4), and their negatives.
    ``images`` are ``[n, h, w, c]`` in [0, 1]; mean and std are the network's.
    """
    normalised = (to_float(images) - np.asarray(mean)) / np.asarray(std)
    windows = np.lib.stride_tricks.sliding_window_view(normalised, (size, size), axis=(1, 2))
    patches = np.moveaxis(windows, 3, -1).reshape(-1, size * size * images.shape[-1])
    values, vectors = np.linalg.eigh(np.cov(patches.astype(np.float64), rowvar=False, bias=True))
    filters = (vectors / np.sqrt(values + 5e-4))[:, ::-1].reshape(size, size, images.shape[-1], -1)
    return np.concatenate([filters, -filters], axis=-1).astype(np.float32)


@pytree
class AlternatingFlipAndCrop:
    """(keys, images, indices, epoch) → images: the recipe's augmentation.

    Image i is mirrored at random in the first epoch and then every other epoch, so that each pair of
    epochs sees both (section 3.6); every epoch it is shifted by up to ``padding`` pixels,
    reflecting at the border.
    """

    key: Array
    padding: int = static(2)

    def __call__(self, keys: Keys, images: Array, indices: Array, epoch: Array) -> Array:
        own = jax.vmap(jax.random.fold_in, (None, 0))(self.key, indices)
        first = jax.vmap(jax.random.bernoulli)(own)
        flip = first ^ (epoch % 2 == 1)
        images = jnp.where(per_image(flip, images), images[:, :, ::-1], images)
        pad, (height, width) = self.padding, images.shape[1:3]
        around = ((0, 0), (pad, pad), (pad, pad), (0, 0))
        padded = jnp.pad(images, around, mode="reflect")
        draw = lambda key: jax.random.randint(key, (2,), 0, 2 * pad + 1)
        corners = jax.vmap(draw)(stream(keys, "crop"))
        cut = lambda image, at: jax.lax.dynamic_slice(
            image, (at[0], at[1], 0), (height, width, image.shape[-1])
        )
        return jax.vmap(cut)(padded, corners)


def orthogonalised(matrix: Array, steps: int = 3) -> Array:
    """About the nearest matrix with orthonormal rows or columns, by Newton-Schulz iterations.

    X ← aX + (bA + cA²)X with A = XXᵀ (Jordan et al. 2024, Muon), which brings singular values near 1.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / (jnp.linalg.norm(matrix) + 1e-7)
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def muon(schedule: optax.Schedule, momentum: float) -> optax.GradientTransformation:
    """Muon for convolution kernels ``[h, w, in, out]``, as the recipe has it.

    Nesterov momentum, orthogonalised as a matrix ``[out, h·w·in]``; before each step a kernel is
    rescaled to the norm √out.
    """

    def init(params: Any) -> Any:
        return optax.TraceState(jax.tree.map(jnp.zeros_like, params)), jnp.zeros((), jnp.int32)

    def update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        trace, count = state
        buffers = jax.tree.map(lambda g, b: momentum * b + g, grads, trace.trace)
        rate = schedule(count)

        def one(gradient: Array, buffer: Array, kernel: Array) -> Array:
            outputs = kernel.shape[-1]
            direction = (gradient + momentum * buffer).reshape(-1, outputs).T
            step = orthogonalised(direction).T.reshape(kernel.shape)
            rescaled = kernel * (math.sqrt(outputs) / jnp.linalg.norm(kernel))
            return rescaled - rate * step - kernel

        return jax.tree.map(one, grads, buffers, params), (optax.TraceState(buffers), count + 1)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def optimizer(
    num_steps: int, batch_size: int, steps_per_epoch: int
) -> optax.GradientTransformation:
    """Muon for the filters, momentum for biases and the head; the whitening's bias for 3 epochs.

    The loss is the mean over the batch; rates of plain momentum are multiplied by the batch size,
    which is the published summed loss.
    """
    whitening_steps = min(3 * steps_per_epoch, num_steps)

    def momentum(rate: float, steps: int) -> optax.GradientTransformation:
        decay = DECAY * batch_size / (rate * batch_size)
        schedule = optax.linear_schedule(rate * batch_size, 0.0, steps)
        return optax.chain(
            optax.add_decayed_weights(decay),
            optax.trace(MOMENTUM, nesterov=True),
            optax.scale_by_learning_rate(schedule),
        )

    transforms = {
        "frozen": optax.set_to_zero(),
        "whitening": momentum(BIASES, whitening_steps),
        "bias": momentum(BIASES, num_steps),
        "head": momentum(HEAD, num_steps),
        "filter": muon(optax.linear_schedule(FILTERS, 0.0, num_steps), FILTER_MOMENTUM),
    }
    return optax.multi_transform(transforms, _groups)  # type: ignore[arg-type]


def _groups(params: Any) -> Any:
    names = {"whitening": "frozen", "whitening_bias": "whitening", "bias": "bias"}
    group = lambda path: "head" if path[0] == "head" else names.get(path[-1], "filter")
    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({path: group(path) for path in flat})


def train_airbench(
    network: nn.Module,
    dataset: Dataset,
    *,
    epochs: int = 8,
    batch_size: int = 2000,
    seed: int = 0,
    label_smoothing: float = 0.2,
    workdir: str | Path | None = None,
    steps_per_dispatch: int = 5,
    progress: bool = True,
    metadata: Mapping[str, Any] | None = None,
) -> Trained:
    """Trains a :class:`~purify_jax.networks.WhitenedConvNet` by the recipe, in ``epochs`` epochs.

    Args:
      network: the module; its whitening kernel is computed from the first 5000 images.
      dataset: CIFAR-10's training images, or others of 22×22 and more.
      epochs, batch_size, label_smoothing: as published by default; a batch takes about 5 GB at 2000.
      workdir: a folder for checkpoints; a run that was killed continues from it, to the bit.
      steps_per_dispatch: steps in one compiled program, at the end of which a checkpoint may be saved.

    Returns the model of the last step (nothing is averaged), and whether training finished.
    Raises InputError for no epoch, or a batch larger than the data set.
    """
    check_count("epochs", epochs)
    check_count("batch_size", batch_size)
    if batch_size > len(dataset):
        raise InputError(f"batch_size: got {batch_size}, expected at most {len(dataset)} images")
    per_epoch = len(dataset) // batch_size
    settings = Settings(
        num_steps=epochs * per_epoch,
        batch_size=batch_size,
        ema_decay=0.0,
        seed=seed,
        steps_per_dispatch=steps_per_dispatch,
        checkpoint_every=per_epoch,
    )
    whitening = whitening_kernel(
        dataset.images[:WHITENING_IMAGES],
        network.mean,  # type: ignore[attr-defined]
        network.std,  # type: ignore[attr-defined]
    )

    def prepare(state: TrainState) -> TrainState:
        with_kernel = lambda tree: {**tree, "whitening": jnp.asarray(whitening)}
        return state.replace(  # type: ignore[attr-defined]
            params=with_kernel(state.params), ema_params=with_kernel(state.ema_params)
        )

    key = runs.run_key(settings, 1)
    state, finished = runs.run(
        classification_loss(network, label_smoothing),
        network,
        dataset,
        settings,
        key,
        workdir=workdir,
        description="classifier",
        progress=progress,
        stream=False,
        shard_parameters=False,
        optimizer=optimizer(settings.num_steps, batch_size, per_epoch),
        prepare=prepare,
        augment=AlternatingFlipAndCrop(key=jax.random.fold_in(key, 2)),
    )
    about = {
        "dataset": dataset.name,
        "num_classes": dataset.num_classes,
        "training": {"recipe": "airbench94 (Muon)", "epochs": epochs, "batch_size": batch_size,
                     "label_smoothing": label_smoothing, "seed": seed, "split": dataset.split},
        "versions": versions(),
        **(metadata or {}),
    }  # fmt: skip
    variables = {"params": state.ema_params, "batch_stats": state.ema_batch_stats}
    return Trained(Model("classifier", network, variables, dataset.image_shape, about), finished)
