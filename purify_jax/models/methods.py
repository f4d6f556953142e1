"""Purifiers by name: what a model file or a flag says → a purifier of the model."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from purify_jax import energy, purifiers
from purify_jax.checks import InputError, check_number
from purify_jax.diffusions import Diffusion
from purify_jax.models.files import Model
from purify_jax.models.purification import PUBLISHED, check_amounts, check_settings
from purify_jax.models.settings import diffusion, noise_score, score_fn, smallest_sigma
from purify_jax.purifiers import (
    ADP,
    Adaptive,
    Constant,
    FiniteDifference,
    JacobianVectorProduct,
    Purifier,
    Secant,
    StepRule,
    diffpure,
    diffusion_purifier,
    guidance,
    likelihood,
    purifier,
)
from purify_jax.pytrees import Partial
from purify_jax.types import Array, EnergyFn, NoiseScore, ScoreFn

Builder: TypeAlias = Callable[[Model, Mapping[str, Any]], Purifier]

_CURVATURES: Mapping[str, Callable[[], Any]] = {
    "finite_difference": FiniteDifference,
    "jacobian_vector_product": JacobianVectorProduct,
    "secant": Secant,
}


def step_rule(settings: Mapping[str, Any]) -> StepRule:
    """The step rule that settings describe: a curvature estimate by name, or "constant"."""
    name = settings["curvature"]
    if name == "constant":
        return Constant(settings["rate"])
    if name not in _CURVATURES:
        raise InputError(f"curvature: got {name!r}, expected one of {[*_CURVATURES, 'constant']}")
    return Adaptive(settings["rate"], _CURVATURES[name](), max_step=settings["max_step"])


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


def _denoise(model: Model, settings: Mapping[str, Any]) -> Purifier:
    """No noise of its own: the noise scale is what the images hold already."""
    return purifiers.denoise(noise_score(model), _positive_noise(settings))


def _chain(model: Model, settings: Mapping[str, Any]) -> tuple[ScoreFn, dict[str, Any]]:
    """The score at the smallest level, and steps of 0.3 of it; the noise scale plays no part."""
    sigma, score = smallest_sigma(model), noise_score(model)
    names = ("num_steps", "num_restarts")
    return Partial(_at_level, score, jnp.asarray(sigma, jnp.float32)), {
        "step_size": 0.3 * sigma,
        **_some(settings, names),
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
        bare = energy.NetworkEnergy(model.network, model.params)
        energy_fn = Partial(_divided, bare, smallest_sigma(model) ** 2)
    return purifiers.mala(coldest, energy_fn, **chain)


# --- along a diffusion --------------------------------------------------------------------------


def _start_time(made: Diffusion, sigma: float) -> float:
    """t* at which the variance-preserving state has noise σ in pixel units (2σ in signed ones)."""
    return float(made.schedule.time(jnp.float32(2 * sigma)))


def _diffpure(stochastic: bool) -> Builder:
    """``num_steps`` equal steps from t*(σ) on; the published dt is 1e-3."""
    method = diffpure.reverse_sde if stochastic else diffpure.probability_flow

    def build(model: Model, settings: Mapping[str, Any]) -> Purifier:
        made = diffusion(model)
        t_star = _start_time(made, _positive_noise(settings))
        return diffusion_purifier(
            method,
            made,
            t_star=t_star,
            dt=t_star / settings["num_steps"],
            num_restarts=settings["num_restarts"],
        )

    return build


def _ddim(model: Model, settings: Mapping[str, Any]) -> Purifier:
    made = diffusion(model)
    names = ("num_steps", "num_restarts")
    t_star = _start_time(made, _positive_noise(settings))
    return diffusion_purifier(diffpure.ddim, made, t_star=t_star, **_some(settings, names))


def _gdmp(model: Model, settings: Mapping[str, Any]) -> Purifier:
    """One round; the pull to the input as published, where that is stable."""
    made = diffusion(model)
    t_star = _start_time(made, _positive_noise(settings))
    return diffusion_purifier(
        guidance.guided,
        made,
        t_star=t_star,
        num_rounds=1,
        guidance=guidance.stable(t_star, made.schedule),
        num_restarts=settings["num_restarts"],
    )


def _likelihood(model: Model, settings: Mapping[str, Any]) -> Purifier:
    """σ within a fifth of the noise scale, steps of a fifth of it: the published ratios."""
    sigma = _positive_noise(settings)
    return diffusion_purifier(
        likelihood.likelihood_maximisation,
        diffusion(model),
        sigma_range=(0.8 * sigma, 1.2 * sigma),
        step_size=0.2 * sigma,
        **_some(settings, ("num_steps", "num_restarts")),
    )


def _some(settings: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: settings[name] for name in names}


#: method → (model, settings) → purifier. What each setting means for it is in its builder.
METHODS: Mapping[str, Builder] = {
    "adp": _adp,
    "tweedie": _tweedie,
    "denoise": _denoise,
    "annealed": _on_ladder(purifiers.annealed),
    "probability_flow": _on_ladder(purifiers.probability_flow),
    "reverse_sde": _on_ladder(purifiers.reverse_sde),
    "gradual": _gradual,
    "langevin": _langevin,
    "mala": _mala,
    "diffpure_sde": _diffpure(stochastic=True),
    "diffpure_ode": _diffpure(stochastic=False),
    "ddim": _ddim,
    "gdmp": _gdmp,
    "likelihood_maximisation": _likelihood,
}
