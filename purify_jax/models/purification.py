"""The settings of a model's purifier, as a file and a config hold them: one schema."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from purify_jax.checks import InputError, check_choice, check_count, check_number, shown

#: How a model was meant to be used when its file says nothing: the published settings.
PUBLISHED: Mapping[str, Any] = MappingProxyType(
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
METHOD_NAMES = (
    "adp",
    "tweedie",
    "denoise",
    "annealed",
    "probability_flow",
    "reverse_sde",
    "gradual",
    "langevin",
    "mala",
    "diffpure_sde",
    "diffpure_ode",
    "ddim",
    "gdmp",
    "likelihood_maximisation",
)
CURVATURE_NAMES = ("finite_difference", "jacobian_vector_product", "secant", "constant")
#: The most that a file may ask for by itself; whoever wants more says so.
MOST = MappingProxyType({"num_steps": 1000, "num_restarts": 1000})

_number: Callable[[str, Any], None] = lambda name, value: check_number(name, value, 0.0)
_CHECKS: Mapping[str, Callable[[str, Any], None]] = {
    "method": lambda name, value: check_choice(name, value, METHOD_NAMES),
    "curvature": lambda name, value: check_choice(name, value, CURVATURE_NAMES),
    "rate": _number,
    "max_step": _number,
    "num_steps": check_count,
    "noise_scale": _number,
    "num_restarts": check_count,
    "stop_threshold": _number,
}


def check_settings(settings: Mapping[str, Any], where: str = "purification") -> None:
    """Raises InputError, ``where.field: ...``, for an unknown field or a value outside its range."""
    unknown = sorted(map(str, settings.keys() - PUBLISHED.keys()))
    if unknown:
        raise InputError(f"{where}: got {shown(unknown)}, expected some of {sorted(PUBLISHED)}")
    for name, value in settings.items():
        _CHECKS[name](f"{where}.{name}", value)


def check_amounts(settings: Mapping[str, Any]) -> None:
    """Raises InputError where a file asks for more steps or restarts than :data:`MOST`."""
    for name, most in MOST.items():
        if settings.get(name, 0) > most:
            raise InputError(
                f"{name}: the model's file asks for {shown(settings[name])}, expected at most {most}; "
                f"give {name} yourself (--{name}=N) to allow more"
            )
