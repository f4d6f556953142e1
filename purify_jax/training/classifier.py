"""Trains a classifier: one call."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from purify_jax import networks
from purify_jax.checks import InputError, check_number
from purify_jax.data import Batches, Dataset, as_training_data
from purify_jax.data.iterators import Source
from purify_jax.models.files import Model
from purify_jax.models.versions import versions
from purify_jax.purifiers import Purifier
from purify_jax.training import settings as runs
from purify_jax.training.augmentation import crop_and_purify
from purify_jax.training.inputs import claim_inputs
from purify_jax.training.settings import Settings, Trained
from purify_jax.training.step import classification_loss


def train_classifier(
    network: nn.Module,
    dataset: Dataset | Batches | Source,
    settings: Settings,
    *,
    label_smoothing: float = 0.0,
    crop_padding: int = 0,
    purifier: Purifier | None = None,
    purified: float = 0.0,
    start: Model | None = None,
    metadata: Mapping[str, Any] | None = None,
    workdir: str | Path | None = None,
    progress: bool = True,
    stream: bool | None = None,
    shard_parameters: bool = False,
    tensorboard: bool = False,
) -> Trained:
    """Cross-entropy training of a linen classifier on a data set.

    Args:
      network: a linen module, images → logits ``[batch, classes]``.
      dataset: labelled images. A data set, or anybody's batches of ``settings.batch_size`` images
        (:class:`purify_jax.data.Batches` says what they may be).
      settings: steps, batch size, learning rate and the like.
      label_smoothing: in [0, 1).
      crop_padding: random shifts by up to so many pixels; 0 for none.
      purifier, purified: purify this share of the training images first, in [0, 1].
      start: a classifier of the same network whose parameters to go on from; None for random ones.
      metadata: more for the model file's header.
      workdir: a folder for checkpoints and metrics; a run that was killed continues from it.
      progress, stream, shard_parameters, tensorboard: see :func:`purify_jax.training.fit`.

    Returns the model with averaged parameters and batch statistics, and whether training finished.
    Raises InputError for a share without a purifier, a value outside its range, or a start of another
    network or image shape.
    """
    if start is not None and start.network != network:
        raise InputError(
            f"start: got the network {networks.describe(start.network)}, expected the one that is "
            f"trained, {networks.describe(network)}"
        )
    data = as_training_data(dataset, labeled=True)
    if start is not None and tuple(start.image_shape) != tuple(data.image_shape):
        raise InputError(
            f"start: made for images {start.image_shape}, expected the data's {data.image_shape}"
        )
    check_number("label_smoothing", label_smoothing, 0.0, 1.0, open_high=True)
    classes = data.num_classes if isinstance(data, Dataset) else _outputs(network, data)
    augment = crop_and_purify(crop_padding, purifier, purified)
    if workdir is not None:
        claim_inputs(workdir, {"start": start, "purifier": purifier if purified else None})
    state, finished = runs.run(
        classification_loss(network, label_smoothing, augment),
        network,
        data,
        settings,
        runs.run_key(settings.seed, "classifier"),
        workdir=workdir,
        description="classifier",
        progress=progress,
        stream=stream,
        shard_parameters=shard_parameters,
        start=None if start is None else start.variables,
        tensorboard=tensorboard,
    )
    variables = {"params": state.ema_params}
    if state.ema_batch_stats:
        variables["batch_stats"] = state.ema_batch_stats
    training = {
        "label_smoothing": label_smoothing,
        "crop_padding": crop_padding,
        "purified": purified,
        **dataclasses.asdict(settings),
    }
    about = {
        **runs.name_of(data),
        "num_classes": classes,
        "training": training,
        "versions": versions(),
        **(metadata or {}),
    }
    model = Model("classifier", network, variables, data.image_shape, about)
    return Trained(model, finished)


def _outputs(network: nn.Module, batches: Batches) -> int:
    """How many classes a network tells apart; from then on the batches' labels are checked to be among them."""
    images = jnp.zeros((1, *batches.image_shape))
    run = lambda x: network.init_with_output(jax.random.key(0), x)[0]
    classes = jax.eval_shape(run, images).shape[-1]
    batches.check_classes(classes)
    return classes
