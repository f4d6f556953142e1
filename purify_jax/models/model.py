"""A network with its weights and what is needed to use it."""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn

from purify_jax.checks import InputError
from purify_jax.data import known_class_names
from purify_jax.pytrees import described
from purify_jax.types import Json, Params


@dataclasses.dataclass(frozen=True, repr=False)
class Model:
    """A network with its variables and what is needed to use it.

    role: what the network's output is: "energy", "score", "classifier", or "diffusion": what the
      diffusion that the metadata name predicts (``models.diffusion``).
    variables: ``{"params": ...}`` and, where the network has them, ``{"batch_stats": ...}``.
    image_shape: ``(height, width, channels)`` that it was trained on.
    metadata: anything else worth keeping, as JSON: data set, purification settings, versions.
    """

    role: str
    network: nn.Module
    variables: Mapping[str, Params]
    image_shape: tuple[int, int, int]
    metadata: Json = dataclasses.field(default_factory=dict)
    __repr__ = described

    @property
    def params(self) -> Params:
        """The trainable parameters."""
        return self.variables["params"]

    @property
    def class_names(self) -> tuple[str, ...]:
        """What a classifier's outputs are called: by its metadata, or by its data set; () if neither says it."""
        given = self.metadata.get("class_names")
        return tuple(given or known_class_names(str(self.metadata.get("dataset"))))


def check_same_images(score_model: Model, classifier: Model) -> None:
    """Raises InputError unless both are made for images of one shape."""
    if tuple(score_model.image_shape) != tuple(classifier.image_shape):
        raise InputError(
            f"score_model: made for images {score_model.image_shape}, expected the classifier's "
            f"{classifier.image_shape}"
        )
