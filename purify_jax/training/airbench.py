"""The short recipe for classifiers of small photographs (Jordan 2024, arXiv 2404.00498).

Whitening filters from the training images, flips that alternate between epochs, summed
cross-entropy with smoothed labels, and the update rules of :mod:`purify_jax.training.optimizers`. Published
with test-time augmentation, which is left out here: a defense reports without.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from purify_jax.checks import (
    InputError,
    check_at_least,
    check_count,
    check_number,
    check_outputs,
)
from purify_jax.data import Dataset, to_float
from purify_jax.devices import sharding
from purify_jax.devices.execution import Execution
from purify_jax.keys import stream_key
from purify_jax.models.files import num_outputs
from purify_jax.models.model import Model
from purify_jax.pytrees import Jitted, Pytree, static
from purify_jax.training.augmentation import alternating_flip, random_crop
from purify_jax.training.loop import fit
from purify_jax.training.optimizers import KERNELS, filter_muon, nesterov
from purify_jax.training.settings import RunSettings, Trained, about_training, run_key
from purify_jax.training.step import (
    ClassificationLoss,
    TrainState,
    init_state,
    scan_steps,
)
from purify_jax.types import Array, Json, Keys, Params


@dataclasses.dataclass(frozen=True)
class AirbenchSettings(RunSettings):
    """How the recipe trains: by default 8 epochs of CIFAR-10, 0.3 PFLOP. Beside the fields of ``RunSettings``:

    microbatches: parts that a batch is worked on in, which bounds memory and is faster on a CPU; a divisor
      of ``batch_size``.
    whitening_images: the first so many images give the whitening filters.
    whitening_steps: after which the rate of the whitening layer's bias is 0.
    label_smoothing, crop_padding: as published.
    filter_rate, bias_rate, head_rate: learning rates, for losses that are summed over batches of 2,000.
    weight_decay: per image; the batch's is ``batch_size`` times as large.

    Raises InputError for a value outside its range, and for parts that do not divide a batch.
    """

    num_steps: int = 200
    batch_size: int = 2000
    steps_per_dispatch: int = 5
    checkpoint_every: int = 10
    microbatches: int = 8
    whitening_images: int = 5000
    whitening_steps: int = 75
    label_smoothing: float = 0.2
    crop_padding: int = 2
    filter_rate: float = 0.24
    bias_rate: float = 0.053
    head_rate: float = 0.67
    weight_decay: float = 2e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("microbatches", "whitening_images", "whitening_steps"):
            check_count(name, getattr(self, name))
        check_count("crop_padding", self.crop_padding, 0)
        for name in ("filter_rate", "bias_rate", "head_rate", "weight_decay"):
            check_at_least(name, getattr(self, name), 0.0)
        check_number("label_smoothing", self.label_smoothing, 0.0, 1.0, open_high=True)
        if self.batch_size % self.microbatches:
            raise InputError(
                f"microbatches: got {self.microbatches}, expected a divisor of the batch size "
                f"{self.batch_size}"
            )

    def optimizer(self) -> optax.GradientTransformation:
        """Muon for the filters, SGD for biases and head; every rate falls linearly to 0.

        The published rates are for a summed loss, so the gradient of the mean is multiplied by the batch
        size. The published momenta are 0.6 and 0.85.
        """
        falling = lambda rate, steps=self.num_steps: optax.linear_schedule(rate, 0.0, steps)
        sgd = lambda schedule: nesterov(schedule, 0.85, self.weight_decay * self.batch_size)
        rules = {
            KERNELS: filter_muon(falling(self.filter_rate), 0.6),
            "head": sgd(falling(self.head_rate)),
            "whitening_bias": sgd(falling(self.bias_rate, self.whitening_steps)),
            "biases": sgd(falling(self.bias_rate)),
        }
        return optax.chain(optax.scale(self.batch_size), optax.multi_transform(rules, _groups))

    def steps(self, network: nn.Module, key: Array, data_size: int, execution: Execution) -> Jitted:
        """``scan_steps`` of the recipe. No moving average is kept: the rates fall to 0 instead."""
        flip_key, crop_key = jax.random.split(key)
        return scan_steps(
            ClassificationLoss(label_smoothing=self.label_smoothing, network=network),
            self.optimizer(),
            crop_key,
            augment=FlipAndCrop(flip_key, data_size=data_size, crop_padding=self.crop_padding),
            ema_decay=0.0,
            microbatches=self.microbatches,
            mesh=execution.mesh or sharding.default_mesh(),
            shard_parameters=execution.shard_parameters,
        )


def _groups(params: Params) -> Params:
    def group(path: tuple[str, ...], value: Array) -> str:
        if value.ndim == 4:
            return KERNELS
        return path[0] if path[0] in ("head", "whitening_bias") else "biases"

    return traverse_util.path_aware_map(group, params)  # type: ignore[arg-type]


class FlipAndCrop(Pytree):
    """Flips that alternate between epochs, then crops filled with the image's reflection.

    key: of the flips. data_size: of the data set, which tells the epochs apart.
    """

    key: Array
    data_size: int = static()
    crop_padding: int = static(default=2)

    def __call__(self, keys: Keys, images: Array, indices: Array, step: Array) -> Array:
        batch = indices.shape[0]
        epochs = (step * batch + jnp.arange(batch)) // self.data_size
        flipped = alternating_flip(self.key, images, indices, epochs)
        return random_crop(keys, flipped, self.crop_padding, "reflect")


def whitening_filters(images: np.ndarray, epsilon: float = 5e-4) -> Array:
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


def with_whitening(state: TrainState, network: nn.Module, images: np.ndarray) -> TrainState:
    """The state with the whitening filters of ``images`` ``[n, h, w, c]`` in [0, 1]."""
    normalised = (np.asarray(images) - np.asarray(network.mean)) / np.asarray(network.std)
    stats = {**state.batch_stats, "whitening": whitening_filters(normalised)}
    return dataclasses.replace(
        state, batch_stats=stats, ema_batch_stats=jax.tree.map(jnp.array, stats)
    )


def train_airbench(
    network: nn.Module,
    dataset: Dataset,
    settings: AirbenchSettings = AirbenchSettings(),
    *,
    metadata: Json | None = None,
    execution: Execution = Execution(),
) -> Trained:
    """Trains a ``WhitenedConvNet`` by the recipe.

    Args:
      network: the module.
      dataset: labelled colour images of at least 22×22.
      settings: steps, batch size, rates and the like.
      metadata: more for the model file's header.
      execution: see :func:`purify_jax.training.fit`.

    Returns the model of the last step (nothing is averaged), and whether training finished.
    """
    outputs = num_outputs(network, dataset.image_shape)
    check_outputs("network", (1, outputs), dataset.num_classes)
    key = run_key(settings.seed, "classifier")
    first = stream_key(key, "initial parameters")
    state = init_state(network, settings.optimizer(), first, dataset.image_shape)
    shown = to_float(dataset.images[: min(settings.whitening_images, len(dataset))])
    state, finished = fit(
        settings.steps(network, stream_key(key, "steps"), len(dataset), execution),
        with_whitening(state, network, shown),
        dataset,
        settings,
        execution=execution,
        description="classifier",
    )
    recorded = {"steps": settings.num_steps, "batch_size": settings.batch_size}
    training = {"recipe": "airbench", **recorded, "seed": settings.seed}
    about = about_training(dataset, training, metadata, num_classes=dataset.num_classes)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return Trained(Model("classifier", network, variables, dataset.image_shape, about), finished)
