"""Saved models → the functions that the library works with."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from purify_jax import energy, noise
from purify_jax.baselines import NoiseScore
from purify_jax.checkpoints import Model
from purify_jax.purification import (
    ScorePurifier,
    StepRule,
    adaptive,
    constant,
    finite_difference,
    jacobian_vector_product,
    purifier,
    secant,
)
from purify_jax.types import InputError, LogitsFn, ScoreFn

#: How a model was meant to be used when its file says nothing: the published settings.
PUBLISHED: Mapping[str, Any] = {
    "curvature": "finite_difference",
    "rate": 0.05,
    "max_step": 0.1,
    "num_steps": 10,
    "noise_scale": 0.25,
    "num_restarts": 10,
    "stop_threshold": 1e-3,
}
_CURVATURES = {
    "finite_difference": finite_difference,
    "jacobian_vector_product": jacobian_vector_product,
    "secant": secant,
}


def score_fn(model: Model) -> ScoreFn:
    """The score of an energy or score model; InputError for a classifier."""
    if model.role == "energy":
        return energy.score_from_energy_network(model.network, model.params)
    if model.role == "score":
        return energy.score_from_network(model.network, model.params)
    raise InputError(f"model: got a {model.role}, expected an energy or a score model")


def noise_score(model: Model) -> NoiseScore:
    """(images, σ) → score of the σ-smoothed data, by the scaling the model was trained with.

    Raises InputError for a classifier, or a model whose file does not say how it was trained.
    """
    name = model.metadata.get("training", {}).get("scale")
    if name not in noise.SCALES:
        raise InputError(
            f"model: its file gives the scale {name!r}, expected one of {sorted(noise.SCALES)} "
            "under metadata.training.scale"
        )
    raw = score_fn(model)
    return lambda images, sigma: noise.SCALES[name](jnp.asarray(sigma)) * raw(images)


def smallest_sigma(model: Model) -> float:
    """The smallest noise level the model was trained on."""
    return float(model.metadata["training"]["sigma_min"])


def logits_fn(model: Model) -> LogitsFn:
    """Images → logits of a classifier model, with its batch statistics frozen."""
    if model.role != "classifier":
        raise InputError(f"model: got a {model.role}, expected a classifier")
    variables = dict(model.variables)
    return lambda images: model.network.apply(variables, images)  # type: ignore[return-value]


def step_rule(settings: Mapping[str, Any]) -> StepRule:
    """The step rule that settings describe: a curvature estimate by name, or "constant"."""
    name = settings["curvature"]
    if name == "constant":
        return constant(settings["rate"])
    if name not in _CURVATURES:
        raise InputError(f"curvature: got {name!r}, expected one of {[*_CURVATURES, 'constant']}")
    return adaptive(settings["rate"], _CURVATURES[name](), max_step=settings["max_step"])


def model_purifier(model: Model, **overrides: Any) -> ScorePurifier:
    """The purifier of a model with the settings in its file, some of them overridden.

    Settings, with defaults :data:`PUBLISHED`: curvature, rate, max_step, num_steps,
    noise_scale, num_restarts, stop_threshold. An override of None leaves a setting as it is.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    unknown = sorted(given.keys() - PUBLISHED.keys())
    if unknown:
        raise InputError(f"purification: got {unknown}, expected some of {sorted(PUBLISHED)}")
    settings = {**PUBLISHED, **model.metadata.get("purification", {}), **given}
    return purifier(
        score_fn(model),
        step_rule(settings),
        num_steps=settings["num_steps"],
        noise_scale=settings["noise_scale"],
        num_restarts=settings["num_restarts"],
        stop_threshold=settings["stop_threshold"],
    )
