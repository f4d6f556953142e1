"""A training step: losses, gradient, update, moving averages; many steps as one dispatch."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from purify_jax import energy, losses
from purify_jax.checks import check_at_least
from purify_jax.devices import sharding
from purify_jax.keys import FLIP, fold_keys, image_keys
from purify_jax.pytrees import Jitted, as_pytree, pytree, static
from purify_jax.training.augmentation import random_flip
from purify_jax.training.muon import scale_by_muon
from purify_jax.types import Array, Keys, Params

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
    ema_batch_stats: Params


def adam(
    learning_rate: float,
    num_steps: int,
    *,
    cosine: bool = True,
    warmup_steps: int = 0,
    clip_norm: float | None = 1.0,
    weight_decay: float = 0.0,
    muon: bool = False,
) -> optax.GradientTransformation:
    """Adam(W) with gradient clipping, and a cosine (to zero) or constant learning rate.

    ``cosine=True`` follows the half cosine of Loshchilov & Hutter 2017 (arXiv 1608.03983)
    after a linear warm-up. ``muon``: the kernels of convolutions move by
    ``training.muon.scale_by_muon`` instead.
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
    if not muon:
        return optax.chain(clip, optax.adamw(schedule, weight_decay=weight_decay))
    kind = lambda value: "filter" if value.ndim == 4 else "other"
    scaled = optax.multi_transform(
        {"filter": scale_by_muon(), "other": optax.scale_by_adam()},
        lambda params: jax.tree.map(kind, params),
    )
    decay = optax.add_decayed_weights(weight_decay)
    return optax.chain(clip, scaled, decay, optax.scale_by_learning_rate(schedule))


def init_state(
    network: nn.Module,
    optimizer: optax.GradientTransformation,
    key: Array,
    image_shape: tuple[int, ...],
) -> TrainState:
    """The state before the first step."""
    return start_state(network.init(key, jnp.zeros((1, *image_shape))), optimizer)


def start_state(
    variables: Mapping[str, Params], optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step of a training that starts at ``variables``.

    Their arrays are copied: a training donates its state, and must not take the caller's arrays with it.
    """
    copied = lambda tree: jax.tree.map(jnp.array, tree)
    params, stats = variables["params"], dict(variables.get("batch_stats", {}))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=copied(params),
        ema_params=copied(params),
        batch_stats=copied(stats),
        opt_state=optimizer.init(params),
        ema_batch_stats=copied(stats),
    )


@pytree
class DSMLoss:
    """See :func:`dsm_loss`."""

    sigmas: Array
    perturb: Any
    network: nn.Module = static()
    score_factory: energy.ScoreFactory = static()
    scale: Callable[[Array], Array] = static()

    def __call__(self, params, batch_stats, keys, images, labels):
        score_fn = self.score_factory(self.network, params)
        loss = losses.denoising_score_matching(
            score_fn, keys, images, self.sigmas, self.scale, self.perturb
        ).mean()
        return loss, ({"loss": loss}, batch_stats)


def dsm_loss(
    network: nn.Module,
    score_factory: energy.ScoreFactory,
    sigmas: Array,
    scale: Callable[[Array], Array],
    perturb: Callable[[Keys, Array], Array] | None = None,
) -> TrainLoss:
    """Denoising score matching of a scalar energy or a score network; mean over the batch."""
    return DSMLoss(
        network=network,
        score_factory=score_factory,
        sigmas=sigmas,
        scale=scale,
        perturb=perturb,
    )


@pytree
class ClassificationLoss:
    """See :func:`classification_loss`."""

    augment: Any
    label_smoothing: float
    network: nn.Module = static()

    def __call__(self, params, batch_stats, keys, images, labels):
        if self.augment is not None:
            images = self.augment(keys, images)
        if batch_stats:
            logits, updated = self.network.apply(
                {"params": params, "batch_stats": batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            batch_stats = updated["batch_stats"]
        else:
            logits = self.network.apply({"params": params}, images)
        one_hot = jax.nn.one_hot(labels, logits.shape[-1])
        targets = optax.smooth_labels(one_hot, self.label_smoothing)
        loss = optax.softmax_cross_entropy(logits, targets).mean()
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == labels)
        return loss, ({"loss": loss, "accuracy": accuracy}, batch_stats)


def classification_loss(
    network: nn.Module,
    label_smoothing: float = 0.0,
    augment: Callable[[Keys, Array], Array] | None = None,
) -> TrainLoss:
    """Cross-entropy and accuracy of a classifier, updating its batch statistics if it has any.

    ``augment`` maps (keys, images) to images before the network: noise, crops, purification.
    """
    return ClassificationLoss(
        network=network,
        label_smoothing=label_smoothing,
        augment=augment,
    )


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
    # The statistics that ship must be those of the parameters that ship: averaged alike.
    ema_stats = optax.incremental_update(batch_stats, state.ema_batch_stats, 1 - decay)
    metrics = {**metrics, "gradient_norm": optax.global_norm(grads)}
    new = TrainState(state.step + 1, params, ema_params, batch_stats, opt_state, ema_stats)
    return new, metrics


def scan_steps(
    loss_fn: TrainLoss,
    optimizer: optax.GradientTransformation,
    key: Array,
    *,
    flip: bool = False,
    ema_decay: float = 0.999,
    mesh: Mesh | None = None,
    shard_parameters: bool = False,
) -> Jitted:
    """A jitted function (state, images, labels, indices ``[K, batch]``) → (state, mean metrics).

    The data set stays on the device; every step gathers, scales and flips its batch there, and
    K steps are one dispatch. The state is donated. With a ``mesh`` each batch is split over its
    devices; the batch must be a multiple of their number, and with ``shard_parameters`` large
    arrays of the state are split too. Streamed data come as batches: images ``[K, batch, h, w, c]``,
    labels ``[K, batch]``, and indices that are not looked at.
    """

    def advance(loss_fn, state: TrainState, batch: Array, labels: Array) -> tuple[TrainState, dict]:
        keys = image_keys(jax.random.fold_in(key, state.step), jnp.arange(batch.shape[0]))
        keys, batch = sharding.split(mesh, (keys, batch))
        if batch.dtype == jnp.uint8:
            batch = batch.astype(jnp.float32) / 255
        if flip:
            batch = random_flip(fold_keys(keys, FLIP), batch)
        state, metrics = train_step(loss_fn, optimizer, state, keys, batch, labels, ema_decay)
        if shard_parameters and mesh is not None:
            shardings = sharding.large_arrays_split(mesh, state)
            state = jax.lax.with_sharding_constraint(state, shardings)
        return state, metrics

    def one(loss_fn, carry: tuple, indices: Array) -> tuple[tuple, dict]:
        state, images, labels = carry
        indices = sharding.split(mesh, indices)
        state, metrics = advance(loss_fn, state, images[indices], labels[indices])
        return (state, images, labels), metrics

    def run(loss_fn, state: TrainState, images: Array, labels: Array, indices: Array):
        if images.ndim == 5:
            streamed = lambda state, batch: advance(loss_fn, state, *batch)
            state, metrics = jax.lax.scan(streamed, state, (images, labels))
        else:
            resident = lambda carry, chosen: one(loss_fn, carry, chosen)
            (state, _, _), metrics = jax.lax.scan(resident, (state, images, labels), indices)
        return state, jax.tree.map(jnp.mean, metrics)

    placed = sharding.place(mesh, as_pytree(loss_fn))
    return Jitted(jax.jit(run, donate_argnums=1), placed)
