"""The short recipe for classifiers of small photographs (Jordan 2024, arXiv 2404.00498).

Whitening filters from the training images, flips that alternate between epochs, summed
cross-entropy with smoothed labels, and the optimisers of :mod:`purify_jax.training.muon`. Published
with test-time augmentation, which is left out here: a defense reports without.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from purify_jax.checks import InputError, check_at_least, check_count, check_number, check_seed
from purify_jax.data import Dataset, to_float
from purify_jax.keys import image_keys, stream_key
from purify_jax.models.files import Model
from purify_jax.models.versions import versions
from purify_jax.training.loop import fit
from purify_jax.training.muon import optimizer
from purify_jax.training.settings import Trained, run_key
from purify_jax.training.step import TrainState, init_state
from purify_jax.types import Array, Keys, Params

# --- whitening --------------------------------------------------------------------------------


def whitening_filters(images: Any, epsilon: float = 5e-4) -> Array:
    """Filters ``[2, 2, c, 8c]`` whose first half whitens the 2×2 patches of ``images``.

    The eigenvectors of the patches' covariance, the largest eigenvalue λ first, over √(λ + ε);
    the second half are the negatives of the first. With ε = 0 the responses of the first half
    have the identity as second moment.

    Args:
      images: ``[n, h, w, c]`` as the filters will see them, that is, normalised.
      epsilon: keeps directions that hardly vary from being blown up.
    """
    values64 = np.asarray(images, np.float64)
    height, width, channels = values64.shape[1:]
    taps = [values64[:, i : height - 1 + i, j : width - 1 + j] for i in (0, 1) for j in (0, 1)]
    patches = np.stack(taps, axis=-2).reshape(-1, 4 * channels)
    values, vectors = np.linalg.eigh(patches.T @ patches / len(patches))
    basis = (vectors / np.sqrt(values + epsilon))[:, ::-1]
    both = np.concatenate([basis, -basis], axis=1)
    return jnp.asarray(both.reshape(2, 2, channels, 8 * channels), jnp.float32)


def with_whitening(state: TrainState, network: nn.Module, images: Any) -> TrainState:
    """The state with the whitening filters of ``images`` ``[n, h, w, c]`` in [0, 1]."""
    normalised = (np.asarray(images) - np.asarray(network.mean)) / np.asarray(network.std)
    filters = whitening_filters(normalised)
    return state.replace(  # type: ignore[attr-defined]
        batch_stats={**state.batch_stats, "whitening": filters}
    )


# --- augmentation -----------------------------------------------------------------------------


def alternating_flip(key: Array, images: Array, indices: Array, epochs: Array) -> Array:
    """Mirrors image i at random in epoch 0 and the other way round from one epoch to the next.

    So two epochs in a row always show an image both ways, which chance does half of the time.

    Args:
      key: of the run; whether an image starts mirrored depends on it and on its index alone.
      images: ``[batch, h, w, c]``.
      indices: ``[batch]``, of the images in their data set.
      epochs: ``[batch]``, counted from 0.
    """
    starts_mirrored = jax.vmap(jax.random.bernoulli)(image_keys(key, indices))
    mirrored = starts_mirrored ^ (epochs % 2 == 1)
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def reflecting_crop(keys: Keys, images: Array, padding: int = 2) -> Array:
    """Shifts each image by up to ``padding`` pixels each way, filling in its own reflection."""
    pad = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = jnp.pad(images, pad, mode="reflect")
    corner = lambda key: jax.random.randint(key, (2,), 0, 2 * padding + 1)

    def cut(image: Array, start: Array) -> Array:
        return jax.lax.dynamic_slice(image, (*start, 0), images.shape[1:])

    return jax.vmap(cut)(padded, jax.vmap(corner)(keys))


# --- training ---------------------------------------------------------------------------------


def summed_loss(
    network: nn.Module,
    params: Params,
    batch_stats: Params,
    images: Array,
    labels: Array,
    label_smoothing: float = 0.2,
) -> tuple[Array, tuple[Array, Params]]:
    """(cross-entropy summed over the batch, (logits, new batch statistics))."""
    variables = {"params": params, "batch_stats": batch_stats}
    logits, updated = network.apply(variables, images, train=True, mutable=["batch_stats"])
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
    loss = optax.softmax_cross_entropy(logits, targets).sum()
    return loss, (logits, updated["batch_stats"])


def scan_steps(
    network: nn.Module,
    transform: optax.GradientTransformation,
    key: Array,
    *,
    label_smoothing: float = 0.2,
    crop_padding: int = 2,
    microbatches: int = 1,
) -> Callable[[TrainState, Array, Array, Array], tuple[TrainState, dict[str, Array]]]:
    """A jitted (state, images, labels, indices ``[K, batch]``) → (state, mean metrics).

    For ``training.fit``; images are uint8 or float ``[n, h, w, c]`` and stay on the device. K
    steps are one dispatch. No moving average is kept: the rates fall to 0 instead.

    A step's batch is worked on in ``microbatches`` equal parts, which bounds memory and is faster
    on a CPU. Their gradients are added; each part is normalised by its own statistics, and the
    running ones move by the parts' mean.
    """
    flip_key, crop_key = jax.random.split(key)
    gradient = jax.value_and_grad(summed_loss, argnums=1, has_aux=True)

    def accumulated(state: TrainState, images: Array, labels: Array) -> tuple:
        """(summed loss, accuracy, new batch statistics) and gradients of one batch."""

        def part(total: tuple, given: tuple[Array, Array]) -> tuple[tuple, None]:
            (loss, (logits, batch_stats)), grads = gradient(
                network, state.params, state.batch_stats, *given, label_smoothing
            )
            correct = jnp.sum(jnp.argmax(logits, axis=-1) == given[1])
            share = jax.tree.map(lambda a: a / microbatches, batch_stats)
            return jax.tree.map(jnp.add, total, (loss, correct, share, grads)), None

        zero = jax.tree.map(jnp.zeros_like, (state.batch_stats, state.params))
        none = (jnp.zeros(()), jnp.zeros((), jnp.int32), *zero)
        parts = jax.tree.map(lambda a: a.reshape(microbatches, -1, *a.shape[1:]), (images, labels))
        return jax.lax.scan(part, none, parts)[0]

    def one(carry: tuple, indices: Array) -> tuple[tuple, dict[str, Array]]:
        state, images, labels = carry
        batch, size = indices.shape[0], images.shape[0]
        epochs = (state.step * batch + jnp.arange(batch)) // size
        chosen = images[indices]
        if chosen.dtype == jnp.uint8:
            chosen = chosen.astype(jnp.float32) / 255
        chosen = alternating_flip(flip_key, chosen, indices, epochs)
        keys = image_keys(jax.random.fold_in(crop_key, state.step), jnp.arange(batch))
        chosen = reflecting_crop(keys, chosen, crop_padding)
        loss, correct, batch_stats, grads = accumulated(state, chosen, labels[indices])
        updates, opt_state = transform.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss / batch, "accuracy": correct / batch}
        state = TrainState(state.step + 1, params, {}, batch_stats, opt_state, {})
        return (state, images, labels), metrics

    def run(state: TrainState, images: Array, labels: Array, indices: Array):
        (state, _, _), metrics = jax.lax.scan(one, (state, images, labels), indices)
        return state, jax.tree.map(jnp.mean, metrics)

    return jax.jit(run, donate_argnums=0)


def train_airbench(
    network: nn.Module,
    dataset: Dataset,
    *,
    num_steps: int = 200,
    batch_size: int = 2000,
    microbatches: int = 8,
    whitening_images: int = 5000,
    whitening_steps: int = 75,
    label_smoothing: float = 0.2,
    crop_padding: int = 2,
    filter_rate: float = 0.24,
    bias_rate: float = 0.053,
    head_rate: float = 0.67,
    weight_decay: float = 2e-6,
    seed: int = 0,
    workdir: str | Path | None = None,
    steps_per_dispatch: int = 5,
    checkpoint_every: int = 10,
    progress: bool = True,
    tensorboard: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> Trained:
    """Trains a ``WhitenedConvNet`` by the recipe: by default 8 epochs of CIFAR-10, 0.3 PFLOP.

    Args:
      network: the module; its whitening filters come from the first ``whitening_images`` images.
      dataset: labelled colour images of at least 22×22.
      num_steps, batch_size: of the optimisers; ``whitening_steps`` of the whitening layer's bias.
      microbatches: parts that a batch is worked on in, for memory's sake; a divisor of it.
      workdir: a folder for checkpoints; a run that was killed continues from it, to the bit.
      tensorboard: see :func:`purify_jax.training.fit`.
      label_smoothing, crop_padding and the rates: as published.

    Returns the model of the last step (nothing is averaged), and whether training finished. Raises
    InputError for parts that do not divide a batch, or a count below 1.
    """
    for name, value in (("microbatches", microbatches), ("whitening_images", whitening_images)):
        check_count(name, value)
    for name, value in (("num_steps", num_steps), ("batch_size", batch_size)):
        check_count(name, value)
    for name, value in (("whitening_steps", whitening_steps), ("crop_padding", crop_padding)):
        check_count(name, value, 0)
    rates = {"filter_rate": filter_rate, "bias_rate": bias_rate, "head_rate": head_rate}
    for name, rate in {**rates, "weight_decay": weight_decay}.items():
        check_at_least(name, rate, 0.0)
    check_number("label_smoothing", label_smoothing, 0.0, 1.0, open_high=True)
    check_seed(seed)
    if batch_size % microbatches:
        raise InputError(
            f"microbatches: got {microbatches}, expected a divisor of the batch size {batch_size}"
        )
    transform = optimizer(
        num_steps,
        batch_size,
        whitening_steps=whitening_steps,
        filter_rate=filter_rate,
        bias_rate=bias_rate,
        head_rate=head_rate,
        weight_decay=weight_decay,
    )
    key = run_key(seed, "classifier")
    first = stream_key(key, "initial parameters")
    state = init_state(network, transform, first, dataset.image_shape)
    state = state.replace(ema_params={}, ema_batch_stats={})  # type: ignore[attr-defined]
    shown = to_float(dataset.images[: min(whitening_images, len(dataset))])
    state, finished = fit(
        scan_steps(
            network,
            transform,
            stream_key(key, "steps"),
            label_smoothing=label_smoothing,
            crop_padding=crop_padding,
            microbatches=microbatches,
        ),
        with_whitening(state, network, shown),
        dataset,
        num_steps=num_steps,
        batch_size=batch_size,
        seed=seed,
        workdir=workdir,
        checkpoint_every=checkpoint_every,
        steps_per_dispatch=steps_per_dispatch,
        description="classifier",
        progress=progress,
        stream=False,
        tensorboard=tensorboard,
    )
    about = {
        "dataset": dataset.name,
        "num_classes": dataset.num_classes,
        "training": {
            "recipe": "airbench",
            "steps": num_steps,
            "batch_size": batch_size,
            "seed": seed,
        },
        "versions": versions(),
        **(metadata or {}),
    }
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return Trained(Model("classifier", network, variables, dataset.image_shape, about), finished)
