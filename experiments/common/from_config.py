"""Config files → library calls. The only place that reads a ConfigDict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import purify_jax as pj
from experiments.common.config_schema import DEFENSE, RECIPE, SETTINGS
from purify_jax.checks import InputError, check_choice

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from purify_jax.training import Settings, Trained
    from purify_jax.training.adversarial import TrainedDefense


def settings(config: ConfigDict, section: str) -> Settings:
    """The training settings of a section ("ebm" or "classifier"); InputError names the field."""
    given = {name: config[section][name] for name in SETTINGS if name in config[section]}
    try:
        return pj.training.Settings(num_steps=config[section].steps, seed=config.seed, **given)
    except InputError as error:
        field = str(error).replace("num_steps", "steps", 1)
        raise InputError(f"config.{section}.{field}") from error


def _about(config: ConfigDict, section: str) -> dict[str, Any]:
    return {
        "dataset": config.dataset,
        "training": {**config[section].to_dict(), "seed": config.seed},
    }


def sigmas(section: ConfigDict) -> pj.types.Array:
    """The noise levels, [L], of a section "ebm"; InputError names the field."""
    levels = {"geometric": pj.noise.geometric, "linear": pj.noise.linear}
    check_choice("config.ebm.sigma_schedule", section.sigma_schedule, sorted(levels))
    try:
        return levels[section.sigma_schedule](
            section.sigma_max, section.sigma_min, section.num_sigmas
        )
    except InputError as error:
        raise InputError(f"config.ebm.{error}") from error


def train_ebm(
    config: ConfigDict,
    dataset: pj.data.Dataset,
    workdir: str | Path | None,
    progress: bool = True,
    *,
    shard_parameters: bool = False,
    stream: bool | None = None,
    tensorboard: bool = False,
) -> Trained:
    """Trains the energy model of ``config.ebm``."""
    section = config.ebm
    if section.get("loss") == "edm":
        return pj.training.train_denoiser(
            pj.networks.build(section.network.to_dict()),
            dataset,
            settings(config, "ebm"),
            log_sigma_mean=section.log_sigma_mean,
            log_sigma_std=section.log_sigma_std,
            purification=config.purification.to_dict(),
            metadata=_about(config, "ebm"),
            workdir=workdir,
            progress=progress,
            stream=stream,
            shard_parameters=shard_parameters,
            tensorboard=tensorboard,
        )
    return pj.train_score_model(
        pj.networks.build(section.network.to_dict()),
        dataset,
        settings(config, "ebm"),
        sigmas=sigmas(section),
        role=section.role,
        scale=section.scale,
        patterns=section.get("patterns", 0.0),
        purification=config.purification.to_dict(),
        metadata=_about(config, "ebm"),
        workdir=workdir,
        progress=progress,
        stream=stream,
        shard_parameters=shard_parameters,
        tensorboard=tensorboard,
    )


def training_purifier(config: ConfigDict, ebm: pj.models.Model) -> pj.purifiers.Purifier:
    """What purifies images that ``config.classifier`` trains on: one restart of the model's purifier.

    ``config.classifier.purification``, where it is given, replaces settings of the model.
    """
    given = config.classifier.get("purification", {})
    return pj.models.model_purifier(ebm, **{**given, "num_restarts": 1})


def train_classifier(
    config: ConfigDict,
    dataset: pj.data.Dataset,
    workdir: str | Path | None,
    progress: bool = True,
    purifier: Any = None,
    *,
    start: pj.models.Model | None = None,
    shard_parameters: bool = False,
    stream: bool | None = None,
    tensorboard: bool = False,
) -> Trained:
    """Trains the classifier of ``config.classifier``, from ``start`` or from random parameters.

    With a purifier, a share ``config.classifier.purified`` of the images is purified first.
    """
    section = config.classifier
    description = {**section.network.to_dict(), "num_outputs": dataset.num_classes}
    if section.get("recipe") == "airbench":
        network = pj.networks.build(description)
        return _train_airbench(config, network, dataset, workdir, progress, tensorboard)
    return pj.train_classifier(
        pj.networks.build(description),
        dataset,
        settings(config, "classifier"),
        label_smoothing=section.get("label_smoothing", 0.0),
        crop_padding=section.get("crop_padding", 0),
        purifier=purifier,
        purified=section.get("purified", 0.0),
        start=start,
        metadata=_about(config, "classifier"),
        workdir=workdir,
        progress=progress,
        stream=stream,
        shard_parameters=shard_parameters,
        tensorboard=tensorboard,
    )


def train_defense(
    config: ConfigDict,
    dataset: pj.data.Dataset,
    classifier: pj.models.Model,
    ebm: pj.models.Model | None,
    workdir: str | Path | None,
    progress: bool = True,
    *,
    shard_parameters: bool = False,
    stream: bool | None = None,
    tensorboard: bool = False,
) -> TrainedDefense:
    """Trains the defense of ``config.defense``; without an ``ebm``, the classifier alone."""
    section = config.defense
    attack = pj.training.adversarial.Attack(
        epsilon=section.epsilon,
        norm=section.norm,
        num_steps=section.attack_steps,
        step_size=section.get("step_size"),
        start_noise=section.get("start_noise", 0.0),
    )
    return pj.training.train_defense(
        classifier,
        dataset,
        settings(config, "defense"),
        attack,
        ebm=ebm,
        trainable=section.trainable if ebm is not None else "classifier",
        purification=section.purification.to_dict(),
        **{name: section[name] for name in DEFENSE if name in section},
        metadata={"dataset": config.dataset},
        workdir=workdir,
        progress=progress,
        stream=stream,
        shard_parameters=shard_parameters,
        tensorboard=tensorboard,
    )


def _train_airbench(
    config, network, dataset, workdir, progress: bool, tensorboard: bool
) -> Trained:
    section = config.classifier
    return pj.training.train_airbench(
        network,
        dataset,
        num_steps=section.steps,
        **{name: section[name] for name in RECIPE if name in section},
        seed=config.seed,
        metadata=_about(config, "classifier"),
        workdir=workdir,
        progress=progress,
        tensorboard=tensorboard,
    )
