"""Saved models → the functions that the library works with."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from purify_jax import energy, noise, purifiers
from purify_jax.checks import InputError, check_number
from purify_jax.models.files import Model
from purify_jax.models.purification import PUBLISHED, check_amounts, check_settings
from purify_jax.purifiers import (
    ADP,
    Purifier,
    StepRule,
    adaptive,
    constant,
    finite_difference,
    jacobian_vector_product,
    purifier,
    secant,
)
from purify_jax.pytrees import Partial, pytree, static
from purify_jax.types import Array, EnergyFn, LogitsFn, NoiseScore, Params, ScoreFn

_CURVATURES: Mapping[str, Callable[[], Any]] = {
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
    if getattr(model.network, "noise_conditional", False):
        return ConditionalScore(
            params=model.params, network=model.network, scale=noise.SCALES[name]
        )
    return ScaledScore(score_fn=score_fn(model), scale=noise.SCALES[name])


@pytree
class ConditionalScore:
    """The score of a network that is told σ; see :func:`noise_score`."""

    params: Params
    network: nn.Module = static()
    scale: Any = static()

    def __call__(self, images: Array, sigma: Array) -> Array:
        sigma = jnp.asarray(sigma)
        output = self.network.apply({"params": self.params}, images, sigma)
        return self.scale(sigma) * output  # type: ignore[operator]


@pytree
class ScaledScore:
    """See :func:`noise_score`."""

    score_fn: ScoreFn
    scale: Any = static()

    def __call__(self, images: Array, sigma: Array) -> Array:
        return self.scale(jnp.asarray(sigma)) * self.score_fn(images)


def smallest_sigma(model: Model) -> float:
    """The smallest noise level the model was trained on."""
    sigma = model.metadata.get("training", {}).get("sigma_min")
    if sigma is None:
        raise InputError(
            "model: its file lacks metadata.training.sigma_min, expected a noise level"
        )
    return float(sigma)


def logits_fn(model: Model) -> LogitsFn:
    """Images → logits of a classifier model, with its batch statistics frozen."""
    if model.role != "classifier":
        raise InputError(f"model: got a {model.role}, expected a classifier")
    return network_logits(model.network, model.variables)


@pytree
class NetworkLogits:
    """See :func:`network_logits`."""

    variables: Params
    network: nn.Module = static()

    def __call__(self, images: Array) -> Array:
        return self.network.apply(self.variables, images)  # type: ignore[return-value]


def network_logits(network: nn.Module, variables: Params) -> NetworkLogits:
    """Images → logits of a linen network with all its variables (``{"params": ...}`` and others)."""
    return NetworkLogits(network=network, variables=dict(variables))


def step_rule(settings: Mapping[str, Any]) -> StepRule:
    """The step rule that settings describe: a curvature estimate by name, or "constant"."""
    name = settings["curvature"]
    if name == "constant":
        return constant(settings["rate"])
    if name not in _CURVATURES:
        raise InputError(f"curvature: got {name!r}, expected one of {[*_CURVATURES, 'constant']}")
    return adaptive(settings["rate"], _CURVATURES[name](), max_step=settings["max_step"])


def model_purifier(model: Model, **overrides: Any) -> Purifier:
    """The purifier of a model with the settings in its file, some of them overridden.

    Settings, with defaults :data:`PUBLISHED`: method (one of :data:`METHODS`), curvature, rate,
    max_step, num_steps, noise_scale, num_restarts, stop_threshold. An override of None leaves a
    setting as it is. The method "adp" gives an ``ADP``. Raises InputError for a setting outside its
    range, and for more steps or restarts in the file than ``purification.MOST`` that no override
    replaces.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    stored = model.metadata.get("purification", {})
    check_settings(given)
    check_settings(stored, "metadata.purification")
    check_amounts({name: value for name, value in stored.items() if name not in given})
    settings = {**PUBLISHED, **stored, **given}
    return METHODS[settings["method"]](model, settings)


def adp_purifier(model: Model, **overrides: Any) -> ADP:
    """:func:`model_purifier` for what needs ADP's step rule and noise; InputError for other methods."""
    made = model_purifier(model, **overrides)
    if not isinstance(made, ADP):
        raise InputError("method: the model's purifier is not ADP, expected method = 'adp'")
    return made


def _adp(model: Model, settings: Mapping[str, Any]) -> Purifier:
    return purifier(
        score_fn(model),
        step_rule(settings),
        num_steps=settings["num_steps"],
        noise_scale=settings["noise_scale"],
        num_restarts=settings["num_restarts"],
        stop_threshold=settings["stop_threshold"],
    )


def _ladder(model: Model, settings: Mapping[str, Any]) -> list[float]:
    """``num_steps`` levels in geometric progression from the noise scale to about σ_min."""
    sigma = _positive_noise(settings)
    last = min(smallest_sigma(model), sigma / 4)
    return np.geomspace(sigma, last, settings["num_steps"]).tolist()


def _positive_noise(settings: Mapping[str, Any]) -> float:
    check_number(f"noise_scale of {settings['method']}", settings["noise_scale"], 0, open_low=True)
    return settings["noise_scale"]


def _on_ladder(build: Callable[..., Purifier]) -> Callable[[Model, Mapping[str, Any]], Purifier]:
    return lambda model, settings: build(
        noise_score(model), _ladder(model, settings), num_restarts=settings["num_restarts"]
    )


def _gradual(model: Model, settings: Mapping[str, Any]) -> Purifier:
    sigma = _positive_noise(settings)
    return purifiers.gradual(
        noise_score(model),
        (sigma / 2, sigma / 2, sigma),
        smallest=min(smallest_sigma(model), sigma / 4),
        steps_per_stage=settings["num_steps"],
        num_restarts=settings["num_restarts"],
    )


def _tweedie(model: Model, settings: Mapping[str, Any]) -> Purifier:
    return purifiers.tweedie(
        noise_score(model), _positive_noise(settings), num_restarts=settings["num_restarts"]
    )


def _chain(model: Model, settings: Mapping[str, Any]) -> tuple[ScoreFn, dict[str, Any]]:
    """The score at the smallest level, and steps of 0.3 of it; the noise scale plays no part."""
    sigma, score = smallest_sigma(model), noise_score(model)
    names = ("num_steps", "num_restarts")
    return Partial(_at_level, score, jnp.asarray(sigma, jnp.float32)), {
        "step_size": 0.3 * sigma,
        **{name: settings[name] for name in names},
    }


def _at_level(score: NoiseScore, sigma: Array, images: Array) -> Array:
    return score(images, sigma)


def _langevin(model: Model, settings: Mapping[str, Any]) -> Purifier:
    coldest, chain = _chain(model, settings)
    return purifiers.langevin(coldest, **chain)


def _divided(energy_fn: EnergyFn, variance: float, images: Array) -> Array:
    return energy_fn(images) / variance


def _mala(model: Model, settings: Mapping[str, Any]) -> Purifier:
    coldest, chain = _chain(model, settings)
    energy_fn = None
    if model.role == "energy" and model.metadata["training"]["scale"] == "per_variance":
        bare = energy.energy_from_network(model.network, model.params)
        energy_fn = Partial(_divided, bare, smallest_sigma(model) ** 2)
    return purifiers.mala(coldest, energy_fn, **chain)


#: method → (model, settings) → purifier. What each setting means for it is in its builder.
METHODS: Mapping[str, Callable[[Model, Mapping[str, Any]], Purifier]] = {
    "adp": _adp,
    "tweedie": _tweedie,
    "annealed": _on_ladder(purifiers.annealed),
    "probability_flow": _on_ladder(purifiers.probability_flow),
    "reverse_sde": _on_ladder(purifiers.reverse_sde),
    "gradual": _gradual,
    "langevin": _langevin,
    "mala": _mala,
}
