"""Flags and endings that the training binaries share."""

from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

import purify_jax as pj
from experiments.common import cli, from_config

FLAGS = flags.FLAGS


def define_training() -> None:
    """--config, --workdir, --data_dir, --image_size, --progress, --stream, --shard_parameters."""
    config_flags.DEFINE_config_file(
        "config",
        str(cli.CONFIGS / "digits.py"),
        "Config file, or the name of one that ships (digits, mnist, ...); override a value by --config.ebm.steps=100.",
    )
    flags.DEFINE_string(
        "workdir", None, "Folder for checkpoints, metrics and the model.", required=True
    )
    flags.DEFINE_bool(
        "stream", None, "Leave the data on disk and read ahead (default: if they are large)."
    )
    flags.DEFINE_bool(
        "shard_parameters", False, "Split large parameters over the devices, not only batches."
    )
    define_image_size()
    define_data()


def define_image_size() -> None:
    """--image_size."""
    flags.DEFINE_integer(
        "image_size", None, "Resize images to this shorter side, and cut the central square."
    )


def training_data(config: ConfigDict) -> pj.data.Dataset:
    """The training split of the config."""
    return pj.data.load_split(
        config.dataset,
        config.train_split,
        FLAGS.data_dir,
        lazy=bool(FLAGS.stream),
        image_size=FLAGS.image_size,
    )


def placement() -> dict[str, Any]:
    """Where data and parameters go; what is learned does not depend on it."""
    return {"stream": FLAGS.stream, "shard_parameters": FLAGS.shard_parameters}


def define_data() -> None:
    """--data_dir and --progress."""
    flags.DEFINE_string("data_dir", None, "Folder of prepared tensorflow-datasets or of images.")
    flags.DEFINE_bool("progress", True, "Show progress bars.")


def training_config(name: str) -> ConfigDict:
    """The config of the flags; InputError unless its section ``name`` makes sense."""
    config = FLAGS.config
    if config[name].get("recipe") != "airbench":
        from_config.settings(config, name)
    return config


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
