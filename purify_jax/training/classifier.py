"""Trains a classifier: one call."""

import dataclasses

import flax.linen as nn

from purify_jax.checks import check_count, check_number, check_outputs
from purify_jax.data import Batches, Dataset, as_training_data
from purify_jax.data.iterators import Source
from purify_jax.devices.execution import Execution
from purify_jax.keys import stream_key
from purify_jax.models.files import match_classes, num_outputs
from purify_jax.models.model import Model
from purify_jax.purifiers import Purifier
from purify_jax.training.augmentation import CropAndPurify
from purify_jax.training.checkpoints import claim_inputs
from purify_jax.training.loop import minimise
from purify_jax.training.settings import Settings, Trained, about_training, run_key
from purify_jax.training.step import ClassificationLoss, first_state
from purify_jax.types import Json


@dataclasses.dataclass(frozen=True)
class ClassifierSettings(Settings):
    """How a classifier is trained. Beside the fields of :class:`Settings`:

    label_smoothing: in [0, 1).
    crop_padding: random shifts by up to so many pixels; 0 for none.
    purified: the share of the training images that is purified first, in [0, 1].
    """

    label_smoothing: float = 0.0
    crop_padding: int = 0
    purified: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("label_smoothing", self.label_smoothing, 0.0, 1.0, open_high=True)
        check_count("crop_padding", self.crop_padding, 0)
        check_number("purified", self.purified, 0.0, 1.0)


def train_classifier(
    network: nn.Module,
    dataset: Dataset | Batches | Source,
    settings: ClassifierSettings,
    *,
    purifier: Purifier | None = None,
    start: Model | None = None,
    metadata: Json | None = None,
    execution: Execution = Execution(),
) -> Trained:
    """Cross-entropy training of a linen classifier on a data set.

    Args:
      network: a linen module, images → logits ``[batch, classes]``.
      dataset: labelled images: a data set, or batches of ``settings.batch_size`` images
        (:class:`purify_jax.data.Batches`).
      settings: steps, batch size, learning rate and the like.
      purifier: what purifies the share ``settings.purified`` of the images.
      start: a classifier of the same network whose parameters to go on from; None for random ones.
      metadata: more for the model file's header.
      execution: see :func:`purify_jax.training.fit`.

    Returns the model with averaged parameters and batch statistics, and whether training finished.
    Raises InputError for a share without a purifier, a network that has not one output for each class, a start of
    another network, image shape or other classes, or a work directory whose training began with other weights.
    """
    data = as_training_data(dataset, labeled=True)
    key, optimizer = run_key(settings.seed, "classifier"), settings.optimizer()
    first = stream_key(key, "initial parameters")
    state = first_state(network, optimizer, first, data.image_shape, start)
    if start is not None and isinstance(data, Dataset):
        data = match_classes(start, data)
    classes = num_outputs(network, data.image_shape)
    if isinstance(data, Dataset):
        check_outputs("network", (1, classes), data.num_classes)
    else:
        data.check_classes(classes)
    augment = CropAndPurify(purifier, share=settings.purified, crop_padding=settings.crop_padding)
    claim_inputs(execution.workdir, {"start": start, "purifier": augment.purifier})
    loss = ClassificationLoss(
        label_smoothing=settings.label_smoothing, augment=augment, network=network
    )
    state, finished = minimise(
        loss, state, data, settings, key, execution=execution, description="classifier"
    )
    variables = {"params": state.ema_params}
    if state.ema_batch_stats:
        variables["batch_stats"] = state.ema_batch_stats
    about = about_training(data, settings.recorded(), metadata, start, num_classes=classes)
    model = Model("classifier", network, variables, data.image_shape, about)
    return Trained(model, finished)
