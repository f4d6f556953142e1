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
from jax.sharding import Mesh

from purify_jax.checks import InputError, check_count
from purify_jax.data import Batches, Dataset
from purify_jax.devices import compiling, sharding
from purify_jax.devices.progress import bar as progress_bar
from purify_jax.training import feeding
from purify_jax.training.checkpoints import TrainingCheckpoints
from purify_jax.training.metrics import check_installed, open_metrics, read_metrics
from purify_jax.training.step import TrainState


class Diverged(InputError):
    """The loss became NaN or infinite; what was saved before is as it was."""


#: (step, state, metrics so far) → more metrics; called before every save.
Watch = Callable[[int, TrainState, Sequence[Mapping[str, float]]], Mapping[str, float]]


class FitResult(NamedTuple):
    """state: the last state. finished: False if SIGTERM ended the run early (it was saved)."""

    state: TrainState
    finished: bool


def fit(
    run_steps: Callable,
    state: TrainState,
    dataset: Dataset | Batches,
    *,
    num_steps: int,
    batch_size: int,
    seed: int,
    workdir: str | Path | None = None,
    checkpoint_every: int = 1000,
    steps_per_dispatch: int = 100,
    keep: int = 3,
    description: str = "training",
    progress: bool = True,
    mesh: Mesh | None = None,
    shard_parameters: bool = False,
    stream: bool | None = None,
    watch: Watch | None = None,
    tensorboard: bool = False,
    picture: Callable[[TrainState], np.ndarray | None] | None = None,
) -> FitResult:
    """Trains until ``num_steps``, from the newest checkpoint of ``workdir`` if there is one.

    The batch at step k depends on ``seed`` and k alone and dispatches end at fixed steps, so a
    run that was killed and started again ends with the same parameters to the bit as one that
    was not. SIGTERM saves and returns at the end of the running dispatch. With a ``workdir``,
    metrics go to ``workdir/metrics.jsonl``, checkpoints to ``workdir/checkpoints``. With a ``mesh``,
    state and data are on all its devices (``run_steps`` must be made for it), and a checkpoint may
    come from another number of devices; ``shard_parameters`` as in :func:`scan_steps`, and the
    state that is returned is whole on every device again. With ``stream`` the data stay where they
    are and a thread sends each dispatch's batches ahead, every process its own share; by default,
    when they are no plain array or take more than ``feeding.RESIDENT_BYTES``. ``watch`` is called before every save with (step, state, the metrics of the run so far, those of before a
    restart too); what it returns joins the metrics, and what it raises ends the run without that save. ``tensorboard`` writes the metrics as events too, into ``workdir/tensorboard``, and
    before every save the ``picture`` of the state, an image ``[h, w, c]`` in [0, 1].

    The data may also be :class:`purify_jax.data.Batches`, somebody else's batches: see there what they are
    when a run continues. ``seed`` then only seeds the noise and the flips.

    Raises InputError for zero steps or batch size, a batch size that the devices cannot share
    evenly, batches that are not as they should be, or ``tensorboard`` without its package or a ``workdir``;
    Diverged for a loss that is not finite; SaveError if saving fails.
    """
    if tensorboard:
        check_installed()
        if workdir is None:
            raise InputError("tensorboard: got it without a workdir, expected a folder for events")
    check_count("num_steps", num_steps)
    check_count("batch_size", batch_size)
    check_count("steps_per_dispatch", steps_per_dispatch)
    check_count("checkpoint_every", checkpoint_every)
    if sharding.round_up(batch_size, mesh) != batch_size:
        raise InputError(
            f"batch_size: got {batch_size}, expected a multiple of the {jax.device_count()} devices"
        )
    if shard_parameters and mesh is not None:
        state = jax.device_put(state, sharding.large_arrays_split(mesh, state))
    else:
        state = sharding.replicate(mesh, state)
    checkpoint_every = -(-checkpoint_every // steps_per_dispatch) * steps_per_dispatch
    # Whatever ends the run, an error too, files are closed and the last save is complete.
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
                opened = open_metrics(workdir, int(state.step), tensorboard)
                metrics = stack.enter_context(opened)
        step = first = int(state.step)
        bar = stack.enter_context(
            progress_bar(
                total=num_steps,
                initial=step,
                desc=description,
                unit="step",
                disable=not progress or jax.process_index() > 0,
            )
        )
        plan = feeding.plan(
            dataset, step, num_steps,
            batch_size=batch_size, seed=seed, at_once=steps_per_dispatch,
        )  # fmt: skip
        feeding.begin(dataset, workdir, step, bar.disable)
        feed = stack.enter_context(closing(feeding.feed(dataset, plan, mesh, stream)))
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
                metrics.write(step, values)
                if picture is not None and saves and tensorboard:
                    metrics.picture(step, getattr(picture, "name", "picture"), picture(state))
            bar.update(len(indices))
            bar.set_postfix(loss=f"{values['loss']:.4g}", refresh=False)
            if checkpoints is not None and saves:
                feeding.remember(workdir, step, place)
                checkpoints.save(step, state)
            if terminated():
                break
        if checkpoints is not None:
            if step > first:
                feeding.remember(workdir, step, place)
                checkpoints.save(step, state)
            checkpoints.wait()
    if shard_parameters:
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
