"""Flags and endings that the training binaries share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

import purify_jax as pj
from experiments.common import cli, config_schema, from_config, number_flags
from purify_jax.checks import InputError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

FLAGS = flags.FLAGS


def define_training() -> None:
    """--config, --workdir, --data_dir, --image_size, --progress, --stream, --shard_parameters,
    --tensorboard."""
    define_config()
    flags.DEFINE_string(
        "workdir", None, "Folder for checkpoints, metrics and the model.", required=True
    )
    flags.DEFINE_bool(
        "stream", None, "Leave the data on disk and read ahead (default: if they are large)."
    )
    flags.DEFINE_bool(
        "shard_parameters", False, "Split large parameters over the devices, not only batches."
    )
    flags.DEFINE_bool(
        "tensorboard", False, "Also write TensorBoard events, into WORKDIR/tensorboard."
    )
    define_image_size()
    define_data()


def define_image_size() -> None:
    """--image_size."""
    flags.DEFINE_integer("image_size", None, "Resize to this shorter side; the central square.")


def define_config(flag_values: Any = flags.FLAGS) -> None:
    """--config and its overrides; ends in one line for an override of a field that there is not."""
    from ml_collections import config_flags

    config_flags.register_flag_parser_for_type(float, number_flags.NumberParser())

    try:
        config_flags.DEFINE_config_file(
            "config",
            str(cli.CONFIGS / "digits.py"),
            "Config file, or the name of one that ships (digits, mnist, ...); override a value by "
            "--config.ebm.steps=100.",
            flag_values=flag_values,
        )
    except Exception as error:  # the default's overrides are read where the flag is defined
        cli.fail(f"config: {cli.unreadable_config(error)}")


def training_data(config: ConfigDict) -> pj.data.Dataset:
    """The training split of the config."""
    return pj.data.load_split(
        config.dataset,
        config.train_split,
        FLAGS.data_dir,
        lazy=bool(FLAGS.stream),
        image_size=FLAGS.image_size,
    )


def how(workdir: Path) -> dict[str, Any]:
    """How a training is executed, for ``from_config``; what is learned does not depend on it."""
    execution = pj.Execution(
        workdir=workdir, shard_parameters=FLAGS.shard_parameters, progress=FLAGS.progress
    )
    return {"execution": execution, "stream": FLAGS.stream, "tensorboard": FLAGS.tensorboard}


def define_data() -> None:
    """--data_dir and --progress."""
    flags.DEFINE_string("data_dir", None, "Folder of prepared tensorflow-datasets or of images.")
    flags.DEFINE_bool("progress", True, "Show progress bars.")


def training_config(name: str) -> ConfigDict:
    """The config of the flags; InputError unless its section ``name`` makes sense."""
    config = read_config()
    config_schema.check(config, name)
    if getattr(FLAGS, "tensorboard", False):  # only what trains has the flag
        from purify_jax.training.metrics import check_installed

        check_installed()
    from_config.settings(config, name)
    return config


def read_config() -> ConfigDict:
    """The config of the flags; InputError if its file could not be read."""
    try:
        config = FLAGS.config
        getattr(
            config, "to_dict", None
        )  # what stands for a file that could not be read raises here
        return number_flags.with_numbers(config)
    except Exception as error:  # whatever the file, which is a program, raised when it was read
        raise InputError(f"config: {cli.unreadable_config(error)}") from error


def check_chosen(name: str) -> None:
    """Raises InputError for a list flag that names nothing, or something twice."""
    given = FLAGS[name].value
    if given is not None and (not given or len(set(given)) < len(given)):
        raise InputError(f"{name}: got {','.join(given)!r}, expected some names, each of them once")


def section(config: ConfigDict, name: str) -> dict[str, Any]:
    """What a training run's result depends on: the section, the data and the seed."""
    fields = {field: config[field] for field in ("dataset", "train_split", "seed")}
    return {**fields, name: config[name].to_dict()}


def finish(model: pj.models.Model, finished: bool, workdir: Path) -> None:
    """Saves the model of a finished run; says how to go on otherwise."""
    if not finished:
        print(f"stopped by SIGTERM; saved. The same command continues in {workdir}")
        return
    path = workdir / "model.safetensors"
    pj.models.save_model(path, model)
    print(f"model: {path}")
