"""Config files → library calls. The only place that reads a ConfigDict."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import purify_jax as pj
from experiments.common.config_schema import fields_of, settings_of
from purify_jax.checks import InputError, check_choice

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from purify_jax.training import Trained
    from purify_jax.training.adversarial import TrainedDefense


def settings(config: ConfigDict, section: str, **run: Any) -> Any:
    """The training settings of a section ("ebm", "classifier" or "defense"); InputError names the field.

    run: ``stream`` and ``tensorboard``, which no config says.
    """
    plain = config[section].to_dict()
    _, made = settings_of(section, plain)
    given = {name: value for name, value in plain.items() if name in fields_of(made)}
    try:
        if made is pj.training.ScoreSettings:
            given["sigmas"] = sigmas(config.ebm)
        if made is pj.training.DefenseSettings:
            given["attack"] = pj.training.adversarial.Attack(
                plain["epsilon"],
                norm=plain["norm"],
                num_steps=plain["attack_steps"],
                step_size=plain.get("step_size"),
                start_noise=plain.get("start_noise", 0.0),
            )
        return made(num_steps=plain["steps"], seed=config.seed, **given, **run)
    except InputError as error:
        field = str(error).replace("num_steps", "steps", 1)
        raise InputError(f"config.{section}.{field}") from error


def sigmas(section: ConfigDict) -> pj.types.Array:
    """The noise levels, [L], of a section "ebm"."""
    levels = {"geometric": pj.noise.geometric, "linear": pj.noise.linear}
    check_choice("sigma_schedule", section.sigma_schedule, sorted(levels))
    largest, smallest = section.sigma_max, section.sigma_min
    return levels[section.sigma_schedule](largest, smallest, section.num_sigmas)


def _about(config: ConfigDict, section: str) -> dict[str, Any]:
    training = {**config[section].to_dict(), "seed": config.seed}
    return {"dataset": config.dataset, "training": training}


def train_ebm(
    config: ConfigDict,
    dataset: pj.data.Dataset,
    execution: pj.Execution,
    *,
    start: pj.models.Model | None = None,
    **run: Any,
) -> Trained:
    """Trains the energy or score model of ``config.ebm``, from ``start`` or from random parameters; ``run`` as in
    :func:`settings`."""
    return pj.train_score_model(
        pj.networks.build(config.ebm.network.to_dict()),
        dataset,
        settings(config, "ebm", **run),
        start=start,
        purification=config.purification.to_dict(),
        metadata=_about(config, "ebm"),
        execution=execution,
    )


def training_purifier(config: ConfigDict, score_model: pj.models.Model) -> pj.purifiers.Purifier:
    """The purifier of the images that ``config.classifier`` trains on: one restart of the model's purifier.

    ``config.classifier.purification``, where it is given, replaces settings of the model.
    """
    given = pj.models.chosen_settings(score_model, **config.classifier.get("purification", {}))
    return pj.models.model_purifier(score_model, **pj.models.with_one_restart(given))


def train_classifier(
    config: ConfigDict,
    dataset: pj.data.Dataset,
    execution: pj.Execution,
    *,
    purifier: pj.purifiers.Purifier | None = None,
    start: pj.models.Model | None = None,
    **run: Any,
) -> Trained:
    """Trains the classifier of ``config.classifier``, from ``start`` or from random parameters.

    With a purifier, a share ``config.classifier.purified`` of the images is purified first.
    """
    if start is not None:
        dataset = pj.models.match_classes(start, dataset)
    description = {**config.classifier.network.to_dict(), "num_outputs": dataset.num_classes}
    network = pj.networks.build(description)
    given = settings(config, "classifier", **run)
    more = {"metadata": _about(config, "classifier"), "execution": execution}
    if config.classifier.get("recipe") == "airbench":
        return pj.training.train_airbench(network, dataset, given, **more)
    return pj.train_classifier(network, dataset, given, purifier=purifier, start=start, **more)


def train_defense(
    config: ConfigDict,
    dataset: pj.data.Dataset,
    execution: pj.Execution,
    classifier: pj.models.Model,
    score_model: pj.models.Model | None,
    **run: Any,
) -> TrainedDefense:
    """Trains the defense of ``config.defense``; without a score model, the classifier alone."""
    given = settings(config, "defense", **run)
    if score_model is None:
        given = dataclasses.replace(given, trainable="classifier")
    return pj.training.train_defense(
        classifier,
        dataset,
        given,
        score_model=score_model,
        purification=config.defense.purification.to_dict(),
        metadata={"dataset": config.dataset},
        execution=execution,
    )
