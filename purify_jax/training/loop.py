"""The training loop: resumes to the bit, saves when told to end, says what went wrong."""

import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from purify_jax.checks import InputError
from purify_jax.data import Batches, Dataset
from purify_jax.devices import compiling, sharding
from purify_jax.devices.execution import Execution
from purify_jax.devices.progress import bar as progress_bar
from purify_jax.keys import stream_key
from purify_jax.training import feeding
from purify_jax.training.checkpoints import TrainingCheckpoints
from purify_jax.training.metrics import Metrics, Picture, check_installed, read_metrics
from purify_jax.training.settings import RunSettings, Settings
from purify_jax.training.step import TrainLoss, TrainState, flip_at_random, scan_steps


class Diverged(InputError):
    """The loss became NaN or infinite; what was saved before is as it was."""


#: (step, state, metrics so far) → more metrics; called before every save.
Watch = Callable[[int, TrainState, Sequence[Mapping[str, float]]], Mapping[str, float]]


class FitResult(NamedTuple):
    """state: the last state. finished: False if SIGTERM ended the run early (it was saved)."""

    state: TrainState
    finished: bool


def minimise(
    loss_fn: TrainLoss,
    state: TrainState,
    dataset: Dataset | Batches,
    settings: Settings,
    key: jax.Array,
    *,
    execution: Execution,
    description: str,
    watch: Watch | None = None,
    picture: Picture | None = None,
) -> FitResult:
    """Trains a state by a loss; what the kinds of training share. See :func:`fit`."""
    steps = scan_steps(
        loss_fn,
        settings.optimizer(),
        stream_key(key, "steps"),
        augment=flip_at_random if settings.flip else None,
        ema_decay=settings.ema_decay,
        mesh=execution.mesh or sharding.default_mesh(),
        shard_parameters=execution.shard_parameters,
    )
    return fit(
        steps, state, dataset, settings,
        execution=execution, description=description, watch=watch, picture=picture,
    )  # fmt: skip


def fit(
    run_steps: Callable[..., tuple[TrainState, Mapping[str, jax.Array]]],
    state: TrainState,
    dataset: Dataset | Batches,
    settings: RunSettings,
    *,
    execution: Execution = Execution(),
    keep: int = 3,
    description: str = "training",
    watch: Watch | None = None,
    picture: Picture | None = None,
) -> FitResult:
    """Trains until ``settings.num_steps``, from the newest checkpoint of the work directory if there is one.

    The batch at step k depends on the seed and k alone and dispatches end at fixed steps, so a run that was
    killed and started again ends with the same parameters to the bit as one that was not. SIGTERM saves and
    returns at the end of the running dispatch.

    Args:
      run_steps: :func:`scan_steps` of a loss, made for the mesh of ``execution``.
      state: before the first step; it is donated.
      dataset: a data set, or :class:`purify_jax.data.Batches`, which says what it yields when a run
        continues; the seed then only seeds the noise and the flips.
      settings: steps, batch size, seed and the like.
      execution: work directory (metrics go to ``metrics.jsonl``, states to ``checkpoints``), mesh, whether
        parameters are split over it too, and progress bars. A checkpoint may come from another number of
        devices; the state that is returned is whole on every device.
      keep: how many checkpoints stay.
      description: of the progress bar.
      watch: called before every save with (step, state, the metrics of the run so far, those of before a
        restart too); what it returns joins the metrics, what it raises ends the run without that save.
      picture: state → image ``[h, w, c]`` in [0, 1], or None, for TensorBoard at every save.

    Raises InputError for a batch size that the devices cannot share evenly, batches that are not as they
    should be, TensorBoard without its package or a work directory, or fields of ``execution`` that training
    has no use for; Diverged for a loss that is not finite; SaveError if saving fails.
    """
    execution.refuse("training", "batch_size", "block", "shard")
    mesh, workdir = execution.mesh or sharding.default_mesh(), execution.workdir
    if settings.tensorboard:
        check_installed()
        if workdir is None:
            raise InputError("tensorboard: got it without a workdir, expected a folder for events")
    if sharding.round_up(settings.batch_size, mesh) != settings.batch_size:
        raise InputError(
            f"batch_size: got {settings.batch_size}, expected a multiple of the "
            f"{jax.device_count()} devices"
        )
    state = sharding.place(mesh, state, execution.shard_parameters)
    at_once, num_steps = settings.steps_per_dispatch, settings.num_steps
    checkpoint_every = -(-settings.checkpoint_every // at_once) * at_once
    # However the run ends, by an error too, files are closed and the last save is complete.
    with ExitStack() as stack:
        checkpoints = metrics = None
        history: list[Mapping[str, float]] = []
        if workdir is not None:
            checkpoints = stack.enter_context(
                closing(TrainingCheckpoints(Path(workdir) / "checkpoints", keep))
            )
            state = checkpoints.restore_latest(state) or state
            history = read_metrics(workdir, int(state.step))
            if jax.process_index() == 0:
                opened = Metrics(workdir, int(state.step), settings.tensorboard)
                metrics = stack.enter_context(closing(opened))
        step = first = int(state.step)
        bar = stack.enter_context(
            progress_bar(
                total=num_steps,
                initial=step,
                desc=description,
                unit="step",
                disable=not execution.progress or jax.process_index() > 0,
            )
        )
        feeding.begin(dataset, workdir, step, bar.disable)
        plan = feeding.plan(dataset, settings, step)
        feed = stack.enter_context(closing(feeding.feed(dataset, plan, mesh, settings.stream)))
        terminated = stack.enter_context(_termination_flag())
        for images, labels, indices, place in feed:
            if step == first and not bar.disable:
                announce = lambda line: bar.write(f"{description}: {line}", file=sys.stderr)
                compiling.ahead_of_time(
                    run_steps, state, images, labels, indices, announce=announce
                )
            state, means = run_steps(state, images, labels, indices)
            step += len(indices)
            values = {name: float(value) for name, value in means.items()}
            if not np.isfinite(values["loss"]):
                raise Diverged(
                    f"loss: became {values['loss']} between steps {step - len(indices)} and {step} of "
                    f"the {description}, expected a finite one; the learning rate is the likely cause "
                    "(lower it, or clip gradients); the checkpoints before are as they were"
                )
            saves = step % checkpoint_every == 0 or step == num_steps
            if watch is not None and saves:
                values |= watch(step, state, history)
            history.append(values)
            if metrics is not None:
                drawn = picture(state) if picture and saves and settings.tensorboard else None
                metrics.write(step, values, drawn)
            bar.update(len(indices))
            bar.set_postfix(loss=f"{values['loss']:.4g}", refresh=False)
            ends = step == num_steps or terminated()
            if checkpoints is not None and (saves or ends):
                feeding.remember(workdir, step, place)
                checkpoints.save(step, state)
            if ends:
                break
        if checkpoints is not None:
            checkpoints.wait()
    if execution.shard_parameters:
        state = sharding.gather(mesh, state)
    return FitResult(state, step >= num_steps)


@contextmanager
def _termination_flag() -> Iterator[Callable[[], bool]]:
    """Turns SIGTERM into a flag while the context lasts (in the main thread; elsewhere, never).

    Several processes agree on it after every dispatch: if one of them was told to end, all save the
    same step and end, instead of waiting for one that is gone.
    """
    received: list[int] = []

    def agreed() -> bool:
        if jax.process_count() == 1:
            return bool(received)
        return bool(multihost_utils.process_allgather(np.int32(len(received))).any())

    try:
        previous = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    except ValueError:  # not the main thread
        yield agreed
        return
    try:
        yield agreed
    finally:
        signal.signal(signal.SIGTERM, previous)
