"""The training loop: resumes to the bit, saves when told to end, says what went wrong."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from purify_jax.checks import InputError, check_count
from purify_jax.data import Dataset
from purify_jax.devices import compiling, sharding
from purify_jax.devices.progress import bar as progress_bar
from purify_jax.training import feeding
from purify_jax.training.checkpoints import TrainingCheckpoints
from purify_jax.training.step import TrainState


class Diverged(InputError):
    """The loss became NaN or infinite; what was saved before is as it was."""


class FitResult(NamedTuple):
    """state: the last state. finished: False if SIGTERM ended the run early (it was saved)."""

    state: TrainState
    finished: bool


def fit(
    run_steps: Callable,
    state: TrainState,
    dataset: Dataset,
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
    watch: Callable[[int, TrainState], Mapping[str, float]] | None = None,
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
    when they are no plain array or take more than ``feeding.RESIDENT_BYTES``. ``watch`` is called before every
    save with (step, state); what it returns joins the metrics, and what it raises ends the run
    without that save.

    Raises InputError for zero steps or batch size, or a batch size that the devices cannot share
    evenly; Diverged for a loss that is not finite; SaveError if saving fails.
    """
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
        checkpoints = metrics_file = None
        if workdir is not None:
            checkpoints = stack.enter_context(
                closing(TrainingCheckpoints(Path(workdir) / "checkpoints", keep))
            )
            state = checkpoints.restore_latest(state) or state
            if jax.process_index() == 0:
                path = Path(workdir) / "metrics.jsonl"
                metrics_file = stack.enter_context(_open_metrics(path, int(state.step)))
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
        plan = feeding.dispatches(
            len(dataset), step, num_steps,
            batch_size=batch_size, seed=seed, at_once=steps_per_dispatch,
        )  # fmt: skip
        feed = stack.enter_context(closing(feeding.feed(dataset, plan, mesh, stream)))
        terminated = stack.enter_context(_termination_flag())
        for images, labels, indices in feed:
            if step == first and not bar.disable:
                announce = lambda line: bar.write(f"{description}: {line}", file=sys.stderr)
                compiling.ahead_of_time(
                    run_steps, state, images, labels, indices, announce=announce
                )
            state, metrics = run_steps(state, images, labels, indices)
            step += len(indices)
            values = {name: float(value) for name, value in metrics.items()}
            if not np.isfinite(values["loss"]):
                raise Diverged(
                    f"loss: became {values['loss']} between steps {step - len(indices)} and {step} of "
                    f"the {description}, expected a finite one; the learning rate is the likely cause "
                    "(lower it, or clip gradients); the checkpoints before are as they were"
                )
            saves = step % checkpoint_every == 0 or step == num_steps
            if watch is not None and saves:
                values |= watch(step, state)
            if metrics_file is not None:
                metrics_file.write(json.dumps({"step": step, **values}) + "\n")
                metrics_file.flush()
            bar.update(len(indices))
            bar.set_postfix(loss=f"{values['loss']:.4g}", refresh=False)
            if checkpoints is not None and saves:
                checkpoints.save(step, state)
            if terminated():
                break
        if checkpoints is not None:
            checkpoints.save(step, state)
            checkpoints.wait()
    if shard_parameters:
        state = sharding.gather(mesh, state)
    return FitResult(state, step >= num_steps)


def _open_metrics(path: Path, step: int):
    """Opens the metrics for appending, without the lines after ``step`` of a run that died."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record: Mapping[str, Any] = json.loads(line)
        except json.JSONDecodeError:  # the line being written when the process died
            continue
        if record["step"] <= step:
            kept.append(line + "\n")
    beside = path.with_suffix(".tmp")
    beside.write_text("".join(kept))
    os.replace(beside, path)
    return open(path, "a")


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
