"""Training: a pure step, many steps per dispatch, and a loop that resumes to the bit."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from tqdm import tqdm

from purify_jax import compiling, energy, feeding, losses, sharding
from purify_jax.checkpoints import TrainingCheckpoints
from purify_jax.data import Dataset
from purify_jax.types import Array, InputError, Keys, Params, check_at_least, fold_keys, image_keys

#: (params, batch_stats, keys, images, labels) → (mean loss, (metrics, new batch_stats)).
TrainLoss = Callable[[Params, Params, Keys, Array, Array], tuple[Array, tuple[dict, Params]]]


@flax.struct.dataclass
class TrainState:
    """Everything the next step needs. All randomness follows from the seed and ``step``."""

    step: Array
    params: Params
    ema_params: Params
    batch_stats: Params
    opt_state: optax.OptState


def adam(
    learning_rate: float,
    num_steps: int,
    *,
    cosine: bool = True,
    warmup_steps: int = 0,
    clip_norm: float | None = 1.0,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Adam(W) with gradient clipping, and a cosine (to zero) or constant learning rate.

    ``cosine=True`` follows the half cosine of Loshchilov & Hutter 2017 (arXiv 1608.03983)
    after a linear warm-up.
    """
    check_at_least("learning_rate", learning_rate, 0.0)
    if cosine:
        schedule = optax.warmup_cosine_decay_schedule(
            0.0 if warmup_steps else learning_rate, learning_rate, warmup_steps, num_steps
        )
    else:
        schedule = optax.linear_schedule(
            0.0 if warmup_steps else learning_rate, learning_rate, warmup_steps
        )
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    return optax.chain(clip, optax.adamw(schedule, weight_decay=weight_decay))


def init_state(
    network: nn.Module,
    optimizer: optax.GradientTransformation,
    key: Array,
    image_shape: tuple[int, ...],
) -> TrainState:
    """The state before the first step."""
    variables = network.init(key, jnp.zeros((1, *image_shape)))
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
    )


def dsm_loss(
    network: nn.Module,
    score_factory: energy.ScoreFactory,
    sigmas: Array,
    scale: Callable[[Array], Array],
    perturb: Callable[[Keys, Array], Array] | None = None,
) -> TrainLoss:
    """Denoising score matching of a scalar energy or a score network; mean over the batch."""

    def loss_fn(params, batch_stats, keys, images, labels):
        score_fn = score_factory(network, params)
        loss = losses.denoising_score_matching(
            score_fn, keys, images, sigmas, scale, perturb
        ).mean()
        return loss, ({"loss": loss}, batch_stats)

    return loss_fn


def classification_loss(
    network: nn.Module,
    label_smoothing: float = 0.0,
    augment: Callable[[Keys, Array], Array] | None = None,
) -> TrainLoss:
    """Cross-entropy and accuracy of a classifier, updating its batch statistics if it has any.

    ``augment`` maps (keys, images) to images before the network: noise, crops, purification.
    """

    def loss_fn(params, batch_stats, keys, images, labels):
        if augment is not None:
            images = augment(keys, images)
        if batch_stats:
            logits, updated = network.apply(
                {"params": params, "batch_stats": batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            batch_stats = updated["batch_stats"]
        else:
            logits = network.apply({"params": params}, images)
        targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
        loss = optax.softmax_cross_entropy(logits, targets).mean()
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == labels)
        return loss, ({"loss": loss, "accuracy": accuracy}, batch_stats)

    return loss_fn


def random_flip(keys: Keys, images: Array) -> Array:
    """Mirrors each image left to right with probability ½, by its own key."""
    flip = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)


def random_crop(keys: Keys, images: Array, padding: int) -> Array:
    """Shifts each image by up to ``padding`` pixels each way, filling with zeros (pad and crop)."""
    pad = ((padding, padding), (padding, padding), (0, 0))

    def one(key: Array, image: Array) -> Array:
        row, column = jax.random.randint(key, (2,), 0, 2 * padding + 1)
        return jax.lax.dynamic_slice(jnp.pad(image, pad), (row, column, 0), image.shape)

    return jax.vmap(one)(keys, images)


def train_step(
    loss_fn: TrainLoss,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    keys: Keys,
    images: Array,
    labels: Array,
    ema_decay: float = 0.999,
) -> tuple[TrainState, dict[str, Array]]:
    """One pure step: gradient, update, exponential moving average.

    The average's decay warms up as min(decay, (1 + t)/(10 + t)), so that it forgets the
    initial parameters in short runs too.
    """
    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    (_, (metrics, batch_stats)), grads = gradient(
        state.params, state.batch_stats, keys, images, labels
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
    ema_params = optax.incremental_update(params, state.ema_params, 1 - decay)
    metrics = {**metrics, "gradient_norm": optax.global_norm(grads)}
    return TrainState(state.step + 1, params, ema_params, batch_stats, opt_state), metrics


def scan_steps(
    loss_fn: TrainLoss,
    optimizer: optax.GradientTransformation,
    key: Array,
    *,
    flip: bool = False,
    ema_decay: float = 0.999,
    mesh: Mesh | None = None,
    shard_parameters: bool = False,
) -> Callable[[TrainState, Array, Array, Array], tuple[TrainState, dict[str, Array]]]:
    """A jitted function (state, images, labels, indices ``[K, batch]``) → (state, mean metrics).

    The data set stays on the device; every step gathers, scales and flips its batch there, and
    K steps are one dispatch. The state is donated. With a ``mesh`` each batch is split over its
    devices; the batch must be a multiple of their number, and with ``shard_parameters`` large
    arrays of the state are split too. Streamed data come as batches: images ``[K, batch, h, w, c]``,
    labels ``[K, batch]``, and indices that are not looked at.
    """

    def advance(state: TrainState, batch: Array, labels: Array) -> tuple[TrainState, dict]:
        keys = image_keys(jax.random.fold_in(key, state.step), jnp.arange(batch.shape[0]))
        keys, batch = sharding.split(mesh, (keys, batch))
        if batch.dtype == jnp.uint8:
            batch = batch.astype(jnp.float32) / 255
        if flip:
            batch = random_flip(fold_keys(keys, 2), batch)
        state, metrics = train_step(loss_fn, optimizer, state, keys, batch, labels, ema_decay)
        if shard_parameters and mesh is not None:
            shardings = sharding.large_arrays_split(mesh, state)
            state = jax.lax.with_sharding_constraint(state, shardings)
        return state, metrics

    def one(carry: tuple, indices: Array) -> tuple[tuple, dict]:
        state, images, labels = carry
        indices = sharding.split(mesh, indices)
        state, metrics = advance(state, images[indices], labels[indices])
        return (state, images, labels), metrics

    def run(state: TrainState, images: Array, labels: Array, indices: Array):
        if images.ndim == 5:
            state, metrics = jax.lax.scan(lambda s, b: advance(s, *b), state, (images, labels))
        else:
            (state, _, _), metrics = jax.lax.scan(one, (state, images, labels), indices)
        return state, jax.tree.map(jnp.mean, metrics)

    return jax.jit(run, donate_argnums=0)


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
    when they are no plain array or take more than ``feeding.RESIDENT_BYTES``.

    Raises InputError for zero steps or batch size, or a batch size that the devices cannot share
    evenly; OSError if saving fails.
    """
    check_at_least("num_steps", num_steps, 1)
    check_at_least("batch_size", batch_size, 1)
    check_at_least("steps_per_dispatch", steps_per_dispatch, 1)
    if sharding.round_up(batch_size, mesh) != batch_size:
        raise InputError(
            f"batch_size: got {batch_size}, expected a multiple of the {jax.device_count()} devices"
        )
    if shard_parameters and mesh is not None:
        state = jax.device_put(state, sharding.large_arrays_split(mesh, state))
    else:
        state = sharding.replicate(mesh, state)
    checkpoint_every = -(-checkpoint_every // steps_per_dispatch) * steps_per_dispatch
    checkpoints = metrics_file = None
    if workdir is not None:
        checkpoints = TrainingCheckpoints(Path(workdir) / "checkpoints", keep)
        state = checkpoints.restore_latest(state) or state
        if jax.process_index() == 0:
            metrics_file = _open_metrics(Path(workdir) / "metrics.jsonl", int(state.step))
    step = first = int(state.step)
    bar = tqdm(
        total=num_steps,
        initial=step,
        desc=description,
        unit="step",
        disable=not progress or jax.process_index() > 0,
    )
    plan = feeding.dispatches(
        len(dataset), step, num_steps, batch_size=batch_size, seed=seed, at_once=steps_per_dispatch
    )
    feed = feeding.feed(dataset, plan, mesh, stream)
    with _termination_flag() as terminated, bar, closing(feed):
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
                raise FloatingPointError(f"loss is {values['loss']} at step {step}")
            if metrics_file is not None:
                metrics_file.write(json.dumps({"step": step, **values}) + "\n")
                metrics_file.flush()
            bar.update(len(indices))
            bar.set_postfix(loss=f"{values['loss']:.4g}", refresh=False)
            if checkpoints is not None and (step % checkpoint_every == 0 or step == num_steps):
                checkpoints.save(step, state)
            if terminated():
                break
        if checkpoints is not None:
            checkpoints.save(step, state)
            checkpoints.wait()
            checkpoints.close()
    if metrics_file is not None:
        metrics_file.close()
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
    """Turns SIGTERM into a flag while the context lasts (in the main thread; elsewhere, never)."""
    received: list[int] = []
    try:
        previous = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    except ValueError:  # not the main thread
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, previous)
