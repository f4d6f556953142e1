"""What a config may say: its fields and sections, checked before data are read or anything is trained."""

from collections.abc import Mapping
from typing import Any

import purify_jax as pj
from purify_jax.checks import InputError, check_seed, shown

#: The fields of a section that are settings of any training.
SETTINGS = (
    "batch_size",
    "learning_rate",
    "schedule",
    "warmup_steps",
    "clip_norm",
    "weight_decay",
    "ema_decay",
    "flip",
    "steps_per_dispatch",
    "checkpoint_every",
    "rule",
)
#: The fields of a section that the short recipe reads.
RECIPE = (
    "batch_size",
    "microbatches",
    "whitening_images",
    "whitening_steps",
    "label_smoothing",
    "crop_padding",
    "filter_rate",
    "bias_rate",
    "head_rate",
    "weight_decay",
    "steps_per_dispatch",
    "checkpoint_every",
)
#: The fields of a section "defense" beside those of its attack.
DEFENSE = ("denoising_weight", "label_smoothing", "crop_padding", "probe_images", "probe_steps")
_LEVELS = ("role", "scale", "sigma_schedule", "sigma_max", "sigma_min", "num_sigmas")
#: Kind of training → (fields it needs, fields it may have).
_SECTIONS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ebm": (("network", "steps", *_LEVELS), (*SETTINGS, "patterns", "loss")),
    "edm": (("network", "steps", "log_sigma_mean", "log_sigma_std", "loss"), SETTINGS),
    "classifier": (
        ("network", "steps"),
        (*SETTINGS, "label_smoothing", "crop_padding", "purified", "purification", "recipe"),
    ),
    "airbench": (("network", "steps", "recipe"), RECIPE),
    "defense": (
        ("steps", "epsilon", "norm", "attack_steps", "trainable", "purification"),
        (*SETTINGS, *DEFENSE, "step_size", "start_noise"),
    ),
}
_WHOLE = ("dataset", "train_split", "test_split")


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
    for name in _WHOLE:
        if not isinstance(plain.get(name, ""), str):
            raise InputError(f"config.{name}: got {shown(plain[name])}, expected a name")
    check_seed(plain["seed"], "config.seed")
    _check_section(section, plain[section])
    if "purification" in plain:
        _is_section("purification", plain["purification"])
        pj.models.purification.check_settings(plain["purification"], "config.purification")
    if "attack" in plain:
        _is_section("attack", plain["attack"])
        _has("config.attack", plain["attack"], ["norm", "epsilon"])
        pj.attacks.norms.get(plain["attack"]["norm"])
        pj.attacks.norms.check_epsilon(plain["attack"]["epsilon"])


def check_whole(config: Any) -> None:
    """Raises InputError unless a config can be trained by both sections, tested and attacked."""
    check(config, "classifier")
    check(config, "ebm")
    _has("config", config.to_dict(), ["test_split", "attack"])


def _check_section(section: str, plain: Any) -> None:
    where = f"config.{section}"
    _is_section(section, plain)
    kind = section
    if section == "ebm" and "loss" in plain:
        _one_of(f"{where}.loss", plain["loss"], "edm")
        kind = "edm"
    if section == "classifier" and "recipe" in plain:
        _one_of(f"{where}.recipe", plain["recipe"], "airbench")
        kind = "airbench"
    needed, more = _SECTIONS[kind]
    _has(where, plain, needed)
    unknown = sorted(map(str, plain.keys() - {*needed, *more}))
    if unknown:
        raise InputError(
            f"{where}: got {shown(unknown)}, expected some of {sorted({*needed, *more})}"
        )
    if "purification" in plain:
        _is_section(f"{section}.purification", plain["purification"])
        pj.models.purification.check_settings(plain["purification"], f"{where}.purification")
    if section == "defense":
        return
    _is_section(f"{section}.network", plain["network"])
    outputs = {"num_outputs": 2} if section == "classifier" else {}
    try:
        pj.networks.build({**plain["network"], **outputs})
    except InputError as error:
        raise InputError(f"{where}.{error}") from error


def _one_of(name: str, value: Any, known: str) -> None:
    if value != known:
        raise InputError(f"{name}: got {shown(value)}, expected {known!r}, or none")


def _is_section(name: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise InputError(f"config.{name}: got {shown(value)}, expected a section")


def _has(where: str, plain: Mapping[str, Any], names: Any) -> None:
    missing = [name for name in names if name not in plain]
    if missing:
        raise InputError(f"{where}: lacks {missing}, expected them beside {sorted(plain)}")
