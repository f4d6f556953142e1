"""Purifier-aware adversarial training: the attacks that train a defense go through all of it.

noise → one or two network calls → classifier, attacked by exact gradients; the denoising loss stays
as a second term, so that the purifier remains one. Without a purifier it is adversarial training of
the classifier alone (Madry et al. 2018, arXiv 1706.06083): the control of the experiment.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from purify_jax.checks import InputError, check_at_least, check_count
from purify_jax.data import Dataset
from purify_jax.models.files import Model
from purify_jax.models.versions import versions
from purify_jax.training import settings as runs
from purify_jax.training.adversarial.loss import Attack, DefenseLoss, parts_of, watch
from purify_jax.training.inputs import claim_inputs
from purify_jax.training.settings import Settings
from purify_jax.training.step import start_state

#: What may train.
TRAINABLE = ("both", "classifier", "purifier")


class TrainedDefense(NamedTuple):
    """ebm: None for the control. Both with averaged parameters. finished: False after SIGTERM."""

    ebm: Model | None
    classifier: Model
    finished: bool


def train_defense(
    classifier: Model,
    dataset: Dataset,
    settings: Settings,
    attack: Attack,
    *,
    ebm: Model | None = None,
    trainable: str = "both",
    purification: Mapping[str, Any] | None = None,
    denoising_weight: float = 1.0,
    label_smoothing: float = 0.0,
    crop_padding: int = 0,
    probe_images: int = 128,
    probe_steps: int = 10,
    metadata: Mapping[str, Any] | None = None,
    workdir: str | Path | None = None,
    progress: bool = True,
    stream: bool | None = None,
    shard_parameters: bool = False,
    tensorboard: bool = False,
) -> TrainedDefense:
    """Trains a classifier, its purifier or both on attacks through the whole defense.

    Args:
      classifier: where the classifier starts.
      dataset: labelled images; its last ``probe_images`` are not trained on but probed.
      settings: steps, batch size, learning rate and the like.
      attack: of every step, on fresh noise; the training pass draws noise of its own.
      ebm: the model of the purifier, or None for adversarial training of the classifier alone.
      trainable: "both", "classifier" or "purifier".
      purification: settings of the purifier in place of the model's own ("method", "noise_scale",
        ...), one restart. Choose one or two network calls ("tweedie"; "probability_flow" with
        num_steps 2): memory and time of a training step grow with them.
      denoising_weight: of the denoising loss, while the purifier trains.
      label_smoothing, crop_padding: see :func:`purify_jax.training.train_classifier`.
      probe_images, probe_steps: at every save, accuracy under PGD of so many steps.
      metadata: more for the model files' headers.
      workdir, progress, stream, shard_parameters, tensorboard: see :func:`purify_jax.training.fit`.

    Raises Collapsed if the probe's accuracy falls below half of the best one so far: one-step attacks
    stop working suddenly (Wong et al. 2020), and what trains on against them is no defense. What was
    saved before is kept. Raises InputError for values outside their ranges.
    """
    if trainable not in TRAINABLE:
        raise InputError(f"trainable: got {trainable!r}, expected one of {TRAINABLE}")
    if ebm is None and trainable != "classifier":
        raise InputError(f"trainable: got {trainable!r} without a purifier, expected 'classifier'")
    check_at_least("denoising_weight", denoising_weight, 0.0)
    check_count("probe_steps", probe_steps)
    check_count("probe_images", probe_images)
    if probe_images >= len(dataset):
        raise InputError(
            f"probe_images: got {probe_images}, expected fewer than the {len(dataset)} images"
        )
    parts = parts_of(classifier, ebm, purification or {})
    everything = {"classifier": classifier.params}
    if ebm is not None:
        everything["purifier"] = ebm.params
    if ebm is not None and trainable != "classifier":
        parts.check_denoising()
    chosen = [part for part in everything if trainable in ("both", part)]
    params = {part: everything[part] for part in chosen}
    frozen = {part: everything[part] for part in everything if part not in chosen}
    stats = classifier.variables.get("batch_stats", {})
    loss = DefenseLoss(
        frozen=frozen,
        denoising_weight=denoising_weight,
        label_smoothing=label_smoothing,
        parts=parts,
        attack=attack,
        crop_padding=crop_padding,
    )
    if workdir is not None:
        claim_inputs(workdir, {"classifier": classifier, "ebm": ebm})
    state = start_state({"params": params, "batch_stats": stats}, settings.optimizer())
    count = len(dataset) - probe_images
    probe = dataset.batch(np.arange(count, len(dataset)))
    state, finished = runs.run_from(
        loss,
        state,
        dataset.take(count),
        settings,
        runs.run_key(settings.seed, "defense"),
        workdir=workdir,
        description="defense",
        progress=progress,
        stream=stream,
        shard_parameters=shard_parameters,
        tensorboard=tensorboard,
        watch=watch(
            loss,
            probe,
            dataclasses.replace(attack, num_steps=probe_steps, step_size=None, start_noise=0.0),
            runs.run_key(settings.seed, "probe"),
        ),
    )
    trained = {**frozen, **state.ema_params}
    about = {
        "defense": {
            "trainable": trainable,
            "purifier": None if ebm is None else dict(parts.purification),
            "attack": dataclasses.asdict(attack),
            "denoising_weight": denoising_weight,
            "label_smoothing": label_smoothing,
            "crop_padding": crop_padding,
            **dataclasses.asdict(settings),
        },
        "versions": versions(),
        **(metadata or {}),
    }
    variables = {"params": trained["classifier"]}
    if state.ema_batch_stats:
        variables["batch_stats"] = state.ema_batch_stats
    made = dataclasses.replace(
        classifier, variables=variables, metadata={**classifier.metadata, **about}
    )
    if ebm is None:
        return TrainedDefense(None, made, finished)
    used = {**ebm.metadata, **about, "purification": dict(parts.purification)}
    again = dataclasses.replace(ebm, variables={"params": trained["purifier"]}, metadata=used)
    return TrainedDefense(again, made, finished)
