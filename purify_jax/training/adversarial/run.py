"""Purifier-aware adversarial training: the attacks that train a defense go through all of it.

noise → one or two network calls → classifier, attacked by exact gradients; the denoising loss stays
as a second term, so that the purifier remains one. Without a purifier it is adversarial training of
the classifier alone (Madry et al. 2018, arXiv 1706.06083): the control of the experiment.
"""

import dataclasses
from dataclasses import KW_ONLY
from typing import NamedTuple

import numpy as np

from purify_jax.checks import InputError, check_at_least, check_choice, check_count, check_number
from purify_jax.data import Dataset
from purify_jax.devices.execution import Execution
from purify_jax.models.files import match_classes
from purify_jax.models.model import Model
from purify_jax.models.versions import versions
from purify_jax.training.adversarial.loss import Attack, DefenseLoss, parts_of, watch
from purify_jax.training.checkpoints import claim_inputs
from purify_jax.training.loop import minimise
from purify_jax.training.settings import Settings, run_key
from purify_jax.training.step import start_state
from purify_jax.types import Json

#: What may train.
TRAINABLE = ("both", "classifier", "purifier")


@dataclasses.dataclass(frozen=True)
class DefenseSettings(Settings):
    """How a defense is trained. Beside the fields of :class:`purify_jax.training.Settings`:

    attack: of every step, on fresh noise; the training pass draws noise of its own.
    trainable: "both", "classifier" or "purifier".
    denoising_weight: of the denoising loss, while the purifier trains.
    label_smoothing: in [0, 1). crop_padding: random shifts by up to so many pixels; 0 for none.
    probe_images: the data set's last so many images are not trained on; at every save, accuracy on them
      under PGD of ``probe_steps`` steps joins the metrics.

    Raises InputError for values outside their ranges.
    """

    _: KW_ONLY
    attack: Attack
    trainable: str = "both"
    denoising_weight: float = 1.0
    label_smoothing: float = 0.0
    crop_padding: int = 0
    probe_images: int = 128
    probe_steps: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("trainable", self.trainable, TRAINABLE)
        check_at_least("denoising_weight", self.denoising_weight, 0.0)
        check_number("label_smoothing", self.label_smoothing, 0.0, 1.0, open_high=True)
        check_count("crop_padding", self.crop_padding, 0)
        check_count("probe_steps", self.probe_steps)
        check_count("probe_images", self.probe_images)


class TrainedDefense(NamedTuple):
    """score_model: None for the control. Both have averaged parameters. finished: False after SIGTERM."""

    score_model: Model | None
    classifier: Model
    finished: bool


def train_defense(
    classifier: Model,
    dataset: Dataset,
    settings: DefenseSettings,
    *,
    score_model: Model | None = None,
    purification: Json | None = None,
    metadata: Json | None = None,
    execution: Execution = Execution(),
) -> TrainedDefense:
    """Trains a classifier, its purifier or both on attacks through the whole defense.

    Args:
      classifier: where the classifier starts.
      dataset: labelled images.
      settings: the attack, what trains, steps, batch size, learning rate and the like.
      score_model: the model of the purifier, or None for adversarial training of the classifier alone.
      purification: settings of the purifier in place of the model's own ("method", "noise_scale",
        ...), one restart. Choose one or two network calls ("tweedie"; "probability_flow" with
        num_steps 2): memory and time of a training step grow with them.
      metadata: more for the model files' headers.
      execution: see :func:`purify_jax.training.fit`.

    The data may hold some of the classifier's classes: they are matched by name.

    Raises Collapsed if the probe's accuracy falls below half of the best one so far: one-step attacks
    stop working suddenly (Wong et al. 2020), and what trains on against them is no defense. What was
    saved before is kept. Raises InputError for models that do not fit each other, a purifier that has no
    denoising loss, or a work directory whose training began with other weights.
    """
    trainable, probe_images = settings.trainable, settings.probe_images
    if score_model is None and trainable != "classifier":
        raise InputError(f"trainable: got {trainable!r} without a purifier, expected 'classifier'")
    if probe_images >= len(dataset):
        raise InputError(
            f"probe_images: got {probe_images}, expected fewer than the {len(dataset)} images"
        )
    dataset = match_classes(classifier, dataset)
    parts = parts_of(classifier, score_model, purification or {})
    everything = {"classifier": classifier.params}
    if score_model is not None:
        everything["purifier"] = score_model.params
    params = {part: p for part, p in everything.items() if trainable in ("both", part)}
    frozen = {part: p for part, p in everything.items() if part not in params}
    if "purifier" in params:
        parts.check_denoising()
    claim_inputs(execution.workdir, {"classifier": classifier, "score_model": score_model})
    loss = DefenseLoss(
        frozen,
        denoising_weight=settings.denoising_weight,
        label_smoothing=settings.label_smoothing,
        parts=parts,
        attack=settings.attack,
        crop_padding=settings.crop_padding,
    )
    count = len(dataset) - probe_images
    longer = dataclasses.replace(
        settings.attack, num_steps=settings.probe_steps, step_size=None, start_noise=0.0
    )
    stats = classifier.variables.get("batch_stats", {})
    state, finished = minimise(
        loss,
        start_state({"params": params, "batch_stats": stats}, settings.optimizer()),
        dataset.take(count),
        settings,
        run_key(settings.seed, "defense"),
        execution=execution,
        description="defense",
        watch=watch(
            loss,
            dataset.batch(np.arange(count, len(dataset))),
            longer,
            run_key(settings.seed, "probe"),
        ),
    )
    trained = {**frozen, **state.ema_params}
    used = None if score_model is None else dict(parts.purification)
    about = {
        "defense": {"purifier": used, **settings.recorded()},
        "versions": versions(),
        **(metadata or {}),
    }
    variables = {"params": trained["classifier"]}
    if state.ema_batch_stats:
        variables["batch_stats"] = state.ema_batch_stats
    named = {"class_names": list(dataset.class_names)} if dataset.class_names else {}
    made = _remade(classifier, variables, {**about, **named})
    if score_model is None:
        return TrainedDefense(None, made, finished)
    about = {**about, "purification": used}
    again = _remade(score_model, {"params": trained["purifier"]}, about)
    return TrainedDefense(again, made, finished)


def _remade(model: Model, variables: Json, about: Json) -> Model:
    return dataclasses.replace(model, variables=variables, metadata={**model.metadata, **about})
