"""The settings of a training run, checked in one place, and what they make."""

import dataclasses
from typing import NamedTuple

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
from purify_jax.keys import stream_key
from purify_jax.models.model import Model
from purify_jax.models.versions import versions
from purify_jax.training.checkpoints import digest
from purify_jax.training.optimizers import KERNELS, scale_by_muon
from purify_jax.types import Json


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """How long a training runs, and how its steps are fed, dispatched and saved.

    num_steps, batch_size: of the optimizer.
    seed: of all randomness.
    steps_per_dispatch: steps in one compiled program.
    checkpoint_every: steps between saves; rounded up to whole dispatches.
    stream: leave the data where they are; a thread sends each dispatch's batches ahead, every process
      its own share. None: for images that are no plain array or take more than ``feeding.RESIDENT_BYTES``.
    tensorboard: write the metrics as TensorBoard events too, into ``tensorboard`` in the work directory,
      and at every save a picture if the training has one. Needs the package tensorboardX.

    Raises InputError for a value outside its range.
    """

    num_steps: int
    batch_size: int = 128
    seed: int = 0
    steps_per_dispatch: int = 100
    checkpoint_every: int = 1000
    stream: bool | None = None
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "steps_per_dispatch", "checkpoint_every"):
            check_count(name, getattr(self, name))
        check_seed(self.seed)

    def recorded(self) -> Json:
        """The settings that a model file says; not how data and metrics are handled."""
        fields = dataclasses.asdict(self)
        return {n: v for n, v in fields.items() if n not in ("stream", "tensorboard")}


@dataclasses.dataclass(frozen=True)
class Settings(RunSettings):
    """How a network is trained; the same for score networks and classifiers.

    Beside the fields of :class:`RunSettings`:

    learning_rate: its largest.
    schedule: "cosine", half a cosine to zero (Loshchilov & Hutter 2017, arXiv 1608.03983), or "constant";
      after a linear warm-up of ``warmup_steps``.
    clip_norm: largest norm of a gradient, None for any.
    weight_decay: decoupled.
    ema_decay: of the moving average of parameters and batch statistics that ships, in [0, 1).
    flip: mirror images at random.
    rule: "adamw", or "muon" for the kernels of convolutions and AdamW for the rest.
    """

    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup_steps: int = 0
    clip_norm: float | None = 1.0
    weight_decay: float = 0.0
    ema_decay: float = 0.999
    flip: bool = False
    rule: str = "adamw"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("warmup_steps", self.warmup_steps, 0)
        check_at_least("learning_rate", self.learning_rate, 0.0)
        check_at_least("weight_decay", self.weight_decay, 0.0)
        if self.clip_norm is not None:
            check_at_least("clip_norm", self.clip_norm, 1e-12)
        check_number("ema_decay", self.ema_decay, 0.0, 1.0, open_high=True)
        check_choice("schedule", self.schedule, ("cosine", "constant"))
        check_choice("rule", self.rule, ("adamw", "muon"))
        if self.schedule == "cosine" and self.warmup_steps >= self.num_steps:
            raise InputError(
                f"warmup_steps: got {self.warmup_steps}, expected fewer than num_steps = {self.num_steps}"
            )
        if not isinstance(self.flip, bool):
            raise InputError(f"flip: got {self.flip!r}, expected True or False")

    def optimizer(self) -> optax.GradientTransformation:
        """The optimizer of these settings."""
        warm, rate = self.warmup_steps, self.learning_rate
        start = 0.0 if warm else rate
        if self.schedule == "cosine":
            schedule = optax.warmup_cosine_decay_schedule(start, rate, warm, self.num_steps)
        else:
            schedule = optax.linear_schedule(start, rate, warm)
        clip = optax.identity()
        if self.clip_norm is not None:
            clip = optax.clip_by_global_norm(self.clip_norm)
        if self.rule == "adamw":
            return optax.chain(clip, optax.adamw(schedule, weight_decay=self.weight_decay))
        rules = {KERNELS: scale_by_muon(), "other": optax.scale_by_adam()}
        kind = lambda value: KERNELS if value.ndim == 4 else "other"
        scaled = optax.multi_transform(rules, lambda params: jax.tree.map(kind, params))
        decay = optax.add_decayed_weights(self.weight_decay)
        return optax.chain(clip, scaled, decay, optax.scale_by_learning_rate(schedule))


class Trained(NamedTuple):
    """model: with the averaged parameters. finished: False if SIGTERM ended the run (it was saved)."""

    model: Model
    finished: bool


def about_training(
    data: Dataset | Batches,
    training: Json,
    more: Json | None = None,
    start: Model | None = None,
    **sections: object,
) -> Json:
    """The header of a model file: the data's name, and for a classifier what its classes are called, if they
    have any; ``sections``, versions, ``more``, and how it was trained: ``training``, or what ``more`` says in
    its place, and the ``start`` that the training went on from."""
    named: dict[str, object] = {"dataset": data.name} if isinstance(data, Dataset) else {}
    if "num_classes" in sections and isinstance(data, Dataset) and data.class_names:
        named["class_names"] = list(data.class_names)
    about = {**named, **sections, "training": training, "versions": versions(), **(more or {})}
    return {**about, "training": {**about["training"], **came_from(start)}}


def came_from(start: Model | None) -> Json:
    """What a model file says of the model that its training went on from: a digest of its weights, and how
    that one was trained; nothing without one."""
    if start is None:
        return {}
    return {
        "start": {"weights": digest(dict(start.variables)), **start.metadata.get("training", {})}
    }


def run_key(seed: int, part: str) -> jax.Array:
    """The key of one part of a run ("classifier", "score model", ...): no two parts or seeds share it."""
    return stream_key(jax.random.key(seed), f"training: {part}")
