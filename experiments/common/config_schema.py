"""The fields and sections of a config, checked before data are read or a model is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import purify_jax as pj
from purify_jax.checks import InputError, check_epsilon, check_seed, shown

#: How the data are handled comes by flags, and a config's seed and steps have their own places.
_ELSEWHERE = {"num_steps", "seed", "stream", "tensorboard"}
#: A kind of section → (its settings in ``pj.training``, those of its fields that it must have, and those
#: that it has in place of a field of the settings).
_KINDS: Mapping[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "ebm": (
        "ScoreSettings",
        ("network", "role", "scale"),
        ("sigma_schedule", "sigma_max", "sigma_min", "num_sigmas"),
    ),
    "edm": ("DenoiserSettings", ("network", "log_sigma_mean", "log_sigma_std", "loss"), ()),
    "classifier": ("ClassifierSettings", ("network",), ()),
    "airbench": ("AirbenchSettings", ("network", "recipe"), ()),
    "defense": (
        "DefenseSettings",
        ("trainable", "purification"),
        ("epsilon", "norm", "attack_steps"),
    ),
}
#: More fields that a kind may have.
_OPTIONAL = {"classifier": {"purification"}, "defense": {"step_size", "start_noise"}}


def settings_of(
    section: str, plain: Mapping[str, Any]
) -> tuple[str, type[pj.training.RunSettings]]:
    """(the kind of a section, the class of its settings)."""
    kind = section
    for field, known in (("loss", "edm"), ("recipe", "airbench")):
        if field in plain:
            kind = known
    return kind, getattr(pj.training, _KINDS[kind][0])


def fields_of(settings: type[pj.training.RunSettings]) -> set[str]:
    """The fields of a section that are those of its settings."""
    replaced = {"sigmas", "attack"}
    return {field.name for field in dataclasses.fields(settings)} - _ELSEWHERE - replaced


def check(config: Any, section: str) -> None:
    """Raises InputError, ``config.field: ...``, unless a config can be trained by this section.

    ``section`` is "ebm", "classifier" or "defense"; ``config`` is a config object, or anything else that a
    config file returned by mistake.
    """
    if not hasattr(config, "to_dict"):
        raise InputError(f"config: got {shown(config)}, expected a ConfigDict from get_config()")
    plain = config.to_dict()
    wanted = ["dataset", "train_split", "seed", section]
    _has("config", plain, [*wanted, "purification"] if section == "ebm" else wanted)
    for name in ("dataset", "train_split", "test_split"):
        if not isinstance(plain.get(name, ""), str):
            raise InputError(f"config.{name}: got {shown(plain[name])}, expected a name")
    check_seed(plain["seed"], "config.seed")
    _check_section(section, plain[section])
    _check_purification("", plain)
    if "attack" in plain:
        _is_section("attack", plain["attack"])
        _has("config.attack", plain["attack"], ["norm", "epsilon"])
        check_epsilon(
            plain["attack"]["epsilon"], pj.attacks.norms.get(plain["attack"]["norm"]).name
        )


def check_whole(config: Any) -> None:
    """Raises InputError unless a config can be trained by both sections, tested and attacked."""
    check(config, "classifier")
    check(config, "ebm")
    _has("config", config.to_dict(), ["test_split", "attack"])


def _check_section(section: str, plain: Any) -> None:
    where = f"config.{section}"
    _is_section(section, plain)
    for owner, field, known in (("ebm", "loss", "edm"), ("classifier", "recipe", "airbench")):
        if section == owner and plain.get(field, known) != known:
            raise InputError(
                f"{where}.{field}: got {shown(plain[field])}, expected {known!r}, or none"
            )
    kind, settings = settings_of(section, plain)
    needed = {"steps", *_KINDS[kind][1], *_KINDS[kind][2]}
    _has(where, plain, sorted(needed))
    known = needed | fields_of(settings) | _OPTIONAL.get(kind, set())
    unknown = sorted(map(str, plain.keys() - known))
    if unknown:
        raise InputError(f"{where}: got {shown(unknown)}, expected some of {sorted(known)}")
    _check_purification(f"{section}.", plain)
    if section == "defense":
        return
    _is_section(f"{section}.network", plain["network"])
    outputs = {"num_outputs": 2} if section == "classifier" else {}
    try:
        pj.networks.build({**plain["network"], **outputs})
    except InputError as error:
        raise InputError(f"{where}.{error}") from error


def _check_purification(prefix: str, plain: Mapping[str, Any]) -> None:
    if "purification" in plain:
        _is_section(f"{prefix}purification", plain["purification"])
        where = f"config.{prefix}purification"
        pj.models.check_settings(plain["purification"], where)


def _is_section(name: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise InputError(f"config.{name}: got {shown(value)}, expected a section")


def _has(where: str, plain: Mapping[str, Any], names: Iterable[str]) -> None:
    missing = [name for name in names if name not in plain]
    if missing:
        raise InputError(f"{where}: lacks {missing}, expected them beside {sorted(plain)}")
