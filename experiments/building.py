"""Config files → library objects. The only place that turns names in a config into functions."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

import purify_jax as pj
from purify_jax import energy, networks, noise, sharding, training
from purify_jax.types import InputError, Purifier, fold_keys, per_image

_SCORES = {
    "energy": energy.score_from_energy_network,
    "score": energy.score_from_network,
}
_SCHEDULES = {"geometric": noise.geometric, "linear": noise.linear}


def choose(table: dict[str, Any], name: str, argument: str) -> Any:
    """``table[name]``, or an InputError that names the choices."""
    if name not in table:
        raise InputError(f"{argument}: got {name!r}, expected one of {sorted(table)}")
    return table[name]


def network(config: ConfigDict, num_outputs: int | None = None):
    """The network of a config section; ``num_outputs`` for a classifier."""
    description = config.network.to_dict()
    if num_outputs is not None:
        description["num_outputs"] = num_outputs
    return networks.build(description)


def optimizer(config: ConfigDict):
    """The optimizer of a config section (``ebm`` or ``classifier``)."""
    return training.adam(
        config.learning_rate,
        config.steps,
        cosine=config.schedule == "cosine",
        warmup_steps=config.get("warmup_steps", 0),
        clip_norm=config.get("clip_norm", 1.0),
        weight_decay=config.get("weight_decay", 0.0),
    )


def sigmas(config: ConfigDict) -> jax.Array:
    """The noise levels of the ``ebm`` section."""
    schedule = choose(_SCHEDULES, config.sigma_schedule, "ebm.sigma_schedule")
    return schedule(config.sigma_max, config.sigma_min, config.num_sigmas)


def train_ebm(
    config: ConfigDict,
    dataset: pj.data.Dataset,
    workdir: str | Path | None,
    progress: bool = True,
    *,
    shard_parameters: bool = False,
    stream: bool | None = None,
) -> tuple[pj.checkpoints.Model, bool]:
    """Trains the energy model of ``config.ebm``; (the EMA model, whether training finished)."""
    section = config.ebm
    mesh = sharding.default_mesh()
    net, opt = network(section), optimizer(section)
    role = choose({r: r for r in _SCORES}, section.role, "ebm.role")
    scale = choose(noise.SCALES, section.scale, "ebm.scale")
    key = jax.random.key(config.seed)
    perturb = noise.patterns(section.patterns) if section.get("patterns", 0.0) else None
    loss = training.dsm_loss(net, _SCORES[role], sigmas(section), scale, perturb)
    state, finished = training.fit(
        training.scan_steps(
            loss,
            opt,
            jax.random.fold_in(key, 1),
            flip=section.flip,
            ema_decay=section.ema_decay,
            mesh=mesh,
            shard_parameters=shard_parameters,
        ),
        training.init_state(net, opt, key, dataset.image_shape),
        dataset,
        workdir=workdir,
        description="energy model",
        progress=progress,
        mesh=mesh,
        shard_parameters=shard_parameters,
        stream=stream,
        **_loop(config, section),
    )
    metadata = {
        "dataset": config.dataset,
        "purification": config.purification.to_dict(),
        "training": {**section.to_dict(), "seed": config.seed},
        "versions": pj.report.versions(),
    }
    variables = {"params": state.ema_params}
    return pj.checkpoints.Model(role, net, variables, dataset.image_shape, metadata), finished


def train_classifier(
    config: ConfigDict,
    dataset: pj.data.Dataset,
    workdir: str | Path | None,
    progress: bool = True,
    purifier: Purifier | None = None,
    *,
    shard_parameters: bool = False,
    stream: bool | None = None,
) -> tuple[pj.checkpoints.Model, bool]:
    """Trains the classifier of ``config.classifier``; (the EMA model, whether it finished).

    With a purifier, a share ``config.classifier.purified`` of the images is purified first.
    """
    section = config.classifier
    mesh = sharding.default_mesh()
    net, opt = network(section, dataset.num_classes), optimizer(section)
    key = jax.random.key(config.seed + 1)
    augment = None
    if section.get("crop_padding", 0):
        augment = lambda keys, images: training.random_crop(keys, images, section.crop_padding)
    if section.get("purified", 0.0):
        if purifier is None:
            raise InputError("ebm: not given, expected one, because config.classifier.purified > 0")
        augment = _then_purify(augment, purifier, section.purified)
    loss = training.classification_loss(net, section.get("label_smoothing", 0.0), augment)
    state, finished = training.fit(
        training.scan_steps(
            loss,
            opt,
            jax.random.fold_in(key, 1),
            flip=section.flip,
            ema_decay=section.ema_decay,
            mesh=mesh,
            shard_parameters=shard_parameters,
        ),
        training.init_state(net, opt, key, dataset.image_shape),
        dataset,
        workdir=workdir,
        description="classifier",
        progress=progress,
        mesh=mesh,
        shard_parameters=shard_parameters,
        stream=stream,
        **_loop(config, section),
    )
    variables = {"params": state.ema_params}
    if state.batch_stats:
        variables["batch_stats"] = state.batch_stats
    metadata = {
        "dataset": config.dataset,
        "num_classes": dataset.num_classes,
        "training": {**section.to_dict(), "seed": config.seed},
        "versions": pj.report.versions(),
    }
    return pj.checkpoints.Model(
        "classifier", net, variables, dataset.image_shape, metadata
    ), finished


def _then_purify(augment, purifier: Purifier, share: float):
    def changed(keys, images):
        images = images if augment is None else augment(keys, images)
        purified = purifier(fold_keys(keys, 1), images)[0][0]
        chosen = jax.vmap(lambda key: jax.random.bernoulli(key, share))(fold_keys(keys, 3))
        return jnp.where(per_image(chosen, images), purified, images)

    return changed


def _loop(config: ConfigDict, section: ConfigDict) -> dict[str, Any]:
    return {
        "num_steps": section.steps,
        "batch_size": section.batch_size,
        "seed": config.seed,
        "checkpoint_every": section.checkpoint_every,
        "steps_per_dispatch": section.steps_per_dispatch,
    }
