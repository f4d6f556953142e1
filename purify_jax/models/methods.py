"""Purifiers by name: what a model file, a config or a flag says → a purifier of the model.

One table, :data:`METHODS`, has the names of the methods, the settings that each uses, and how it is built.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from purify_jax import energy, purifiers
from purify_jax.checks import InputError, check_choice, check_count, check_number, shown
from purify_jax.diffusions import Diffusion, ScoreAt
from purify_jax.models.model import Model
from purify_jax.models.settings import diffusion, noise_score, score_fn, smallest_sigma
from purify_jax.purifiers import ADP, Purifier, StepRule, guidance
from purify_jax.pytrees import Partial
from purify_jax.types import Array, EnergyFn, Json

Settings: TypeAlias = Json
Builder: TypeAlias = Callable[[Model, Settings], Purifier]

#: The settings of every purifier where neither a file nor a user says another: the published ones.
PUBLISHED: Settings = MappingProxyType(
    {
        "method": "adp",
        "curvature": "finite_difference",
        "rate": 0.05,
        "max_step": 0.1,
        "num_steps": 10,
        "noise_scale": 0.25,
        "num_restarts": 10,
        "stop_threshold": 1e-3,
    }
)
#: The most that a file may ask for by itself; a user may ask for more.
MOST = MappingProxyType({"num_steps": 1000, "num_restarts": 1000})
CURVATURES: Mapping[str, Callable[[], purifiers.Curvature]] = MappingProxyType(
    {
        "finite_difference": purifiers.FiniteDifference,
        "jacobian_vector_product": purifiers.JacobianVectorProduct,
        "secant": purifiers.Secant,
    }
)


# --- settings -----------------------------------------------------------------------------------


def check_settings(settings: Settings, where: str = "purification") -> None:
    """Raises InputError, ``where.field: ...``, for a setting that is unknown or that the method does not use.

    The same for a value outside its range. Settings without a method are those of ADP.
    """
    unknown = sorted(map(str, settings.keys() - PUBLISHED.keys()))
    if unknown:
        raise InputError(f"{where}: got {shown(unknown)}, expected some of {sorted(PUBLISHED)}")
    for name, value in settings.items():
        _CHECKS[name](f"{where}.{name}", value)
    used = _used(settings)
    for name, value in settings.items():
        if name not in used:
            steps = " with constant steps" if settings.get("curvature") == "constant" else ""
            raise InputError(
                f"{where}.{name}: got {shown(value)}, but the method {_method(settings)!r}{steps} does not use "
                f"it, expected some of {sorted(used)}"
            )


def chosen_settings(model: Model, **overrides: object) -> dict[str, Any]:
    """The settings that a model's file and a user give, for the method that they choose.

    Of another method than the file's, only those settings of the file are kept that the method uses. An
    override of None leaves a setting as it is. InputErrors as of :func:`model_purifier`.
    """
    stored = model.metadata.get("purification", {})
    check_settings(stored, "metadata.purification")
    given = {name: value for name, value in overrides.items() if value is not None}
    check_settings({"method": _method(stored), **given})
    used = _used({**stored, **given})
    kept = {name: value for name, value in stored.items() if name in used and name not in given}
    for name, most in MOST.items():
        if kept.get(name, 0) > most:
            raise InputError(
                f"{name}: the model's file asks for {shown(kept[name])}, expected at most {most}; "
                f"give {name} yourself (--{name}=N) to allow more"
            )
    return {**kept, **given}


def with_one_restart(settings: Settings) -> Settings:
    """Settings with one restart, for a method that has restarts."""
    return {**settings, **({"num_restarts": 1} if "num_restarts" in _used(settings) else {})}


def _method(settings: Settings) -> str:
    return settings.get("method", PUBLISHED["method"])


def _used(settings: Settings) -> set[str]:
    """The settings that the method of some settings uses."""
    used = {"method", *METHODS[_method(settings)].settings}
    return used - {"max_step"} if settings.get("curvature") == "constant" else used


_number: Callable[[str, object], None] = lambda name, value: check_number(name, value, 0.0)
_CHECKS: Mapping[str, Callable[[str, object], None]] = {
    "method": lambda name, value: check_choice(name, value, METHODS),
    "curvature": lambda name, value: check_choice(name, value, (*CURVATURES, "constant")),
    "rate": _number,
    "max_step": _number,
    "num_steps": check_count,
    "noise_scale": _number,
    "num_restarts": check_count,
    "stop_threshold": _number,
}


# --- purifiers ----------------------------------------------------------------------------------


def model_purifier(model: Model, **overrides: object) -> Purifier:
    """The purifier of a model with the settings in its file, some of them overridden.

    Settings, with defaults :data:`PUBLISHED`: method (one of :data:`METHODS`), curvature, rate,
    max_step, num_steps, noise_scale, num_restarts, stop_threshold. An override of None leaves a
    setting as it is. The method "adp" gives an ``ADP``. Raises InputError for a setting outside its
    range or that the method does not use, and for more steps or restarts in the file than ``MOST``
    that no override replaces.
    """
    settings = {**PUBLISHED, **chosen_settings(model, **overrides)}
    return METHODS[settings["method"]].build(model, settings)


def adp_purifier(model: Model, **overrides: object) -> ADP:
    """:func:`model_purifier` for what needs ADP's step rule and noise; InputError for other methods."""
    made = model_purifier(model, **overrides)
    if not isinstance(made, ADP):
        raise InputError("method: the model's purifier is not ADP, expected method = 'adp'")
    return made


def step_rule(settings: Settings) -> StepRule:
    """The step rule that settings describe: a curvature estimate by name, or "constant"."""
    name = settings["curvature"]
    check_choice("curvature", name, (*CURVATURES, "constant"))
    if name == "constant":
        return purifiers.Constant(settings["rate"])
    return purifiers.Adaptive(settings["rate"], CURVATURES[name](), max_step=settings["max_step"])


def _adp(model: Model, settings: Settings) -> Purifier:
    names = ("num_steps", "noise_scale", "num_restarts", "stop_threshold")
    return ADP(score_fn(model), step_rule(settings), **_some(settings, *names))


def _some(settings: Settings, *names: str) -> dict[str, Any]:
    return {name: settings[name] for name in names}


def _noise(settings: Settings) -> float:
    sigma = settings["noise_scale"]
    check_number(f"noise_scale of {settings['method']}", sigma, 0, open_low=True)
    return sigma


def _on_ladder(purifier: Callable[..., Purifier]) -> Builder:
    """``num_steps`` levels in geometric progression from the noise scale to about σ_min."""

    def build(model: Model, settings: Settings) -> Purifier:
        sigma = _noise(settings)
        last = min(smallest_sigma(model), sigma / 4)
        sigmas = np.geomspace(sigma, last, settings["num_steps"]).tolist()
        return purifier(noise_score(model), sigmas, num_restarts=settings["num_restarts"])

    return build


def _gradual(model: Model, settings: Settings) -> Purifier:
    sigma = _noise(settings)
    last = min(smallest_sigma(model), sigma / 4)
    rows = [jnp.geomspace(s, last, settings["num_steps"]) for s in (sigma / 2, sigma / 2, sigma)]
    restarts = settings["num_restarts"]
    return purifiers.GradualNoise(noise_score(model), jnp.stack(rows), num_restarts=restarts)


def _tweedie(model: Model, settings: Settings) -> Purifier:
    return purifiers.tweedie(
        noise_score(model), _noise(settings), num_restarts=settings["num_restarts"]
    )


def _denoise(model: Model, settings: Settings) -> Purifier:
    """No noise of its own: the noise scale is what the images hold already."""
    return purifiers.Denoiser(noise_score(model), (_noise(settings),))


def _chain(model: Model, settings: Settings) -> tuple[ScoreAt, dict[str, Any]]:
    """The score at the smallest level, and steps of 0.3 of it."""
    sigma = smallest_sigma(model)
    chain = _some(settings, "num_steps", "num_restarts")
    return ScoreAt(noise_score(model), sigma), {"step_size": 0.3 * sigma, **chain}


def _langevin(model: Model, settings: Settings) -> Purifier:
    coldest, chain = _chain(model, settings)
    return purifiers.Langevin(coldest, **chain)


def _divided(energy_fn: EnergyFn, variance: float, images: Array) -> Array:
    return energy_fn(images) / variance


def _mala(model: Model, settings: Settings) -> Purifier:
    coldest, chain = _chain(model, settings)
    energy_fn = None
    if model.role == "energy" and model.metadata["training"]["scale"] == "per_variance":
        bare = energy.NetworkEnergy(model.network, model.params)
        energy_fn = Partial(_divided, bare, smallest_sigma(model) ** 2)
    return purifiers.MALA(coldest, energy_fn, **chain)


def _diffused(model: Model, settings: Settings) -> tuple[Diffusion, float]:
    """The diffusion, and t* at which its state has the noise scale in pixel units (2σ in signed ones)."""
    made, sigma = diffusion(model), _noise(settings)
    with jax.ensure_compile_time_eval():  # t* is structure, also where the weights are traced
        return made, float(made.schedule.time(jnp.float32(2 * sigma)))


def _along(purifier: Callable[..., Purifier]) -> Builder:
    """``num_steps`` equal steps from t*(σ) on."""

    def build(model: Model, settings: Settings) -> Purifier:
        made, t_star = _diffused(model, settings)
        return purifier(made, t_star=t_star, **_some(settings, "num_steps", "num_restarts"))

    return build


def _gdmp(model: Model, settings: Settings) -> Purifier:
    """One round; the pull to the input as published, where that is stable."""
    made, t_star = _diffused(model, settings)
    pull = guidance.stable(t_star, made.schedule)
    restarts = settings["num_restarts"]
    return purifiers.GDMP(made, t_star=t_star, num_rounds=1, guidance=pull, num_restarts=restarts)


def _likelihood(model: Model, settings: Settings) -> Purifier:
    """σ within a fifth of the noise scale, steps of a fifth of it: the published ratios."""
    sigma = _noise(settings)
    return purifiers.LikelihoodMaximisation(
        diffusion(model),
        sigma_range=(0.8 * sigma, 1.2 * sigma),
        step_size=0.2 * sigma,
        **_some(settings, "num_steps", "num_restarts"),
    )


class Method(NamedTuple):
    """How a method makes a purifier, and the settings that it uses beside its name."""

    build: Builder
    settings: tuple[str, ...] = ("num_steps", "noise_scale", "num_restarts")


#: Every method by name. What each setting means for it is in its builder.
METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "adp": Method(_adp, tuple(name for name in PUBLISHED if name != "method")),
        "tweedie": Method(_tweedie, ("noise_scale", "num_restarts")),
        "denoise": Method(_denoise, ("noise_scale",)),
        "annealed": Method(_on_ladder(purifiers.Annealed)),
        "probability_flow": Method(_on_ladder(purifiers.ProbabilityFlow)),
        "reverse_sde": Method(_on_ladder(purifiers.ReverseSDE)),
        "gradual": Method(_gradual),
        "langevin": Method(_langevin, ("num_steps", "num_restarts")),
        "mala": Method(_mala, ("num_steps", "num_restarts")),
        "diffpure_sde": Method(_along(purifiers.DiffPureSDE)),
        "diffpure_ode": Method(_along(purifiers.DiffPureODE)),
        "ddim": Method(_along(purifiers.DDIM)),
        "gdmp": Method(_gdmp, ("noise_scale", "num_restarts")),
        "likelihood_maximisation": Method(_likelihood),
    }
)
