"""The settings of a training run, checked in one place, and what they make."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import optax

from purify_jax.checks import (
    InputError,
    check_at_least,
    check_choice,
    check_count,
    check_number,
    check_seed,
)
from purify_jax.data import Batches, Dataset
from purify_jax.devices import sharding
from purify_jax.keys import stream_key
from purify_jax.models.files import Model
from purify_jax.training.loop import FitResult, fit
from purify_jax.training.step import TrainState, adam, init_state, scan_steps, start_state
from purify_jax.types import Params

SCHEDULES = ("cosine", "constant")
RULES = ("adamw", "muon")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a network is trained; the same for score networks and classifiers.

    num_steps, batch_size: of the optimizer.
    rule: "adamw", or "muon" for the kernels of convolutions and AdamW for the rest.
    learning_rate: its largest; ``schedule`` "cosine" (to zero) or "constant", after ``warmup_steps``.
    clip_norm: largest norm of a gradient, None for any; weight_decay: decoupled.
    ema_decay: of the moving average of parameters and batch statistics that ships, in [0, 1).
    flip: mirror images at random. seed: of all randomness.
    steps_per_dispatch: steps in one compiled program; checkpoint_every: steps between saves.

    Raises InputError for a value outside its range.
    """

    num_steps: int
    batch_size: int = 128
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup_steps: int = 0
    clip_norm: float | None = 1.0
    weight_decay: float = 0.0
    ema_decay: float = 0.999
    flip: bool = False
    seed: int = 0
    steps_per_dispatch: int = 100
    checkpoint_every: int = 1000
    rule: str = "adamw"

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "steps_per_dispatch", "checkpoint_every"):
            check_count(name, getattr(self, name))
        check_count("warmup_steps", self.warmup_steps, 0)
        check_seed(self.seed)
        check_at_least("learning_rate", self.learning_rate, 0.0)
        check_at_least("weight_decay", self.weight_decay, 0.0)
        if self.clip_norm is not None:
            check_at_least("clip_norm", self.clip_norm, 1e-12)
        check_number("ema_decay", self.ema_decay, 0.0, 1.0, open_high=True)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("rule", self.rule, RULES)
        if not isinstance(self.flip, bool):
            raise InputError(f"flip: got {self.flip!r}, expected True or False")

    def optimizer(self) -> optax.GradientTransformation:
        """The optimizer of these settings."""
        return adam(
            self.learning_rate,
            self.num_steps,
            cosine=self.schedule == "cosine",
            warmup_steps=self.warmup_steps,
            clip_norm=self.clip_norm,
            weight_decay=self.weight_decay,
            muon=self.rule == "muon",
        )


class Trained(NamedTuple):
    """model: with the averaged parameters. finished: False if SIGTERM ended the run (it was saved)."""

    model: Model
    finished: bool


def run(
    loss_fn: Any,
    network: nn.Module,
    dataset: Dataset | Batches,
    settings: Settings,
    key: jax.Array,
    *,
    workdir: str | Path | None,
    description: str,
    progress: bool,
    stream: bool | None,
    shard_parameters: bool,
    start: Mapping[str, Params] | None = None,
    tensorboard: bool = False,
    picture: Any = None,
) -> FitResult:
    """Trains a network on all devices; what the kinds of training share.

    It starts at the variables ``start``, or at random ones.
    """
    optimizer = settings.optimizer()
    if start is None:
        first = stream_key(key, "initial parameters")
        state = init_state(network, optimizer, first, dataset.image_shape)
    else:
        state = start_state(start, optimizer)
    return run_from(
        loss_fn,
        state,
        dataset,
        settings,
        key,
        workdir=workdir,
        description=description,
        progress=progress,
        stream=stream,
        shard_parameters=shard_parameters,
        tensorboard=tensorboard,
        picture=picture,
    )


def run_from(
    loss_fn: Any,
    state: TrainState,
    dataset: Dataset | Batches,
    settings: Settings,
    key: jax.Array,
    *,
    workdir: str | Path | None,
    description: str,
    progress: bool,
    stream: bool | None,
    shard_parameters: bool,
    tensorboard: bool = False,
    picture: Any = None,
    watch: Any = None,
) -> FitResult:
    """:func:`run` from a state, whose optimizer is that of the settings."""
    mesh = sharding.default_mesh()
    steps = scan_steps(
        loss_fn,
        settings.optimizer(),
        stream_key(key, "steps"),
        flip=settings.flip,
        ema_decay=settings.ema_decay,
        mesh=mesh,
        shard_parameters=shard_parameters,
    )
    return fit(
        steps,
        state,
        dataset,
        num_steps=settings.num_steps,
        batch_size=settings.batch_size,
        seed=settings.seed,
        workdir=workdir,
        checkpoint_every=settings.checkpoint_every,
        steps_per_dispatch=settings.steps_per_dispatch,
        description=description,
        progress=progress,
        mesh=mesh,
        shard_parameters=shard_parameters,
        stream=stream,
        watch=watch,
        tensorboard=tensorboard,
        picture=picture,
    )


def name_of(data: Dataset | Batches) -> dict[str, str]:
    """What a model file says of the data; nothing of batches, which have no name."""
    return {"dataset": data.name} if isinstance(data, Dataset) else {}


def run_key(seed: int, part: str) -> jax.Array:
    """The key of one part of a run ("classifier", "score model", ...): no two parts or seeds share it."""
    return stream_key(jax.random.key(seed), f"training: {part}")
