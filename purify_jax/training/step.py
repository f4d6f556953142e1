"""A training step: losses, gradient, update, moving averages; many steps as one dispatch."""

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from chex import ArrayTree
from jax.sharding import Mesh

from purify_jax import energy, losses, networks
from purify_jax.checks import InputError
from purify_jax.devices import sharding
from purify_jax.keys import FLIP, fold_keys, image_keys
from purify_jax.models.model import Model
from purify_jax.pytrees import Jitted, Pytree, as_pytree, static
from purify_jax.training.augmentation import random_flip
from purify_jax.types import Array, Keys, Params

#: (params, batch_stats, keys, images, labels) → (mean loss, (metrics, new batch_stats)).
TrainLoss = Callable[[Params, Params, Keys, Array, Array], tuple[Array, tuple[dict, Params]]]
#: (keys, images, indices of the images in their data set, step) → images.
Augmentation = Callable[[Keys, Array, Array, Array], Array]


@flax.struct.dataclass
class TrainState:
    """Everything the next step needs. All randomness follows from the seed and ``step``."""

    step: Array
    params: Params
    ema_params: Params
    batch_stats: Params
    opt_state: optax.OptState
    ema_batch_stats: Params


def init_state(
    network: nn.Module,
    optimizer: optax.GradientTransformation,
    key: Array,
    image_shape: tuple[int, ...],
) -> TrainState:
    """The state before the first step, with random parameters."""
    # As one program: operation by operation, a large network takes seconds longer.
    variables = jax.jit(network.init)(key, jnp.zeros((1, *image_shape), jnp.float32))
    return start_state(variables, optimizer)


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


def first_state(
    network: nn.Module,
    optimizer: optax.GradientTransformation,
    key: Array,
    image_shape: tuple[int, ...],
    start: Model | None,
) -> TrainState:
    """The state before the first step: :func:`init_state`'s, or at the parameters of ``start``.

    Raises InputError for a start of another network or image shape.
    """
    if start is None:
        return init_state(network, optimizer, key, image_shape)
    if start.network != network:
        raise InputError(
            f"start: got the network {networks.describe(start.network)}, expected the one that is "
            f"trained, {networks.describe(network)}"
        )
    if tuple(start.image_shape) != tuple(image_shape):
        raise InputError(
            f"start: made for images {start.image_shape}, expected the data's {tuple(image_shape)}"
        )
    return start_state(start.variables, optimizer)


class DSMLoss(Pytree):
    """Denoising score matching of a scalar energy or a score network; mean over the batch.

    A ``TrainLoss``; see :func:`purify_jax.losses.denoising_score_matching`.

    sigmas: noise levels ``[L]``, in units of a pixel's range.
    perturb: (keys, images) → noise beside the Gaussian one; None for none.
    network: a linen module, images → images, or one number per image for an energy.
    score_factory: (network, parameters) → score, of :mod:`purify_jax.energy`.
    scale: how the score at σ follows from it, of :mod:`purify_jax.noise`.
    """

    sigmas: Array
    _: KW_ONLY
    perturb: Callable[[Keys, Array], Array] | None = None
    network: nn.Module = static()
    score_factory: energy.ScoreFactory = static()
    scale: Callable[[Array], Array] = static()

    def __call__(
        self, params: Params, batch_stats: Params, keys: Keys, images: Array, labels: Array
    ) -> tuple[Array, tuple[dict, Params]]:
        score_fn = self.score_factory(self.network, params)
        loss = losses.denoising_score_matching(
            score_fn, keys, images, self.sigmas, self.scale, self.perturb
        ).mean()
        return loss, ({"loss": loss}, batch_stats)


class ClassificationLoss(Pytree):
    """Cross-entropy and accuracy of a classifier, updating its batch statistics if it has any.

    label_smoothing: in [0, 1).
    augment: (keys, images) → images before the network: noise, crops, purification; None for none.
    network: a linen module, images → logits ``[batch, classes]``.
    """

    _: KW_ONLY
    label_smoothing: float = 0.0
    augment: Callable[[Keys, Array], Array] | None = None
    network: nn.Module = static()

    def __call__(
        self, params: Params, batch_stats: Params, keys: Keys, images: Array, labels: Array
    ) -> tuple[Array, tuple[dict, Params]]:
        if self.augment is not None:
            images = self.augment(keys, images)
        logits, batch_stats = training_logits(self.network, params, batch_stats, images)
        loss = smoothed_cross_entropy(logits, labels, self.label_smoothing)
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == labels)
        return loss, ({"loss": loss, "accuracy": accuracy}, batch_stats)


def training_logits(
    network: nn.Module, params: Params, batch_stats: Params, images: Array
) -> tuple[Array, Params]:
    """(logits, new batch statistics) of a network that is trained; with statistics if it has any."""
    if not batch_stats:
        return jnp.asarray(network.apply({"params": params}, images)), batch_stats
    variables = {"params": params, "batch_stats": batch_stats}
    logits, updated = network.apply(variables, images, train=True, mutable=["batch_stats"])
    return logits, updated["batch_stats"]


def smoothed_cross_entropy(logits: Array, labels: Array, label_smoothing: float) -> Array:
    """The mean over the batch of the cross-entropy to smoothed labels."""
    chex.assert_rank([logits, labels], [2, 1])
    chex.assert_equal_shape_prefix([logits, labels], 1)
    one_hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    targets = optax.smooth_labels(one_hot, label_smoothing)
    return optax.softmax_cross_entropy(logits, targets).mean()


def _gradient(
    loss_fn: TrainLoss, state: TrainState, batch: tuple[Keys, Array, Array], microbatches: int
) -> tuple[Params, tuple[dict, Params]]:
    """(gradient, (metrics, new batch_stats)), the means over equal parts of a batch."""
    differentiate = jax.grad(loss_fn, has_aux=True)
    gradient = lambda part: differentiate(state.params, state.batch_stats, *part)
    if microbatches == 1:
        return gradient(batch)
    parts = jax.tree.map(lambda a: a.reshape(microbatches, -1, *a.shape[1:]), batch)

    def add(total: ArrayTree, part: ArrayTree) -> tuple[ArrayTree, None]:
        share = jax.tree.map(lambda a: a / microbatches, gradient(part))
        return jax.tree.map(jnp.add, total, share), None

    shapes = jax.eval_shape(gradient, jax.tree.map(lambda a: a[0], parts))
    zeros = jax.tree.map(jnp.zeros_like, shapes)
    return jax.lax.scan(add, zeros, parts)[0]


def train_step(
    loss_fn: TrainLoss,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    keys: Keys,
    images: Array,
    labels: Array,
    ema_decay: float = 0.999,
    microbatches: int = 1,
) -> tuple[TrainState, dict[str, Array]]:
    """One pure step: gradient, update, exponential moving average.

    The average's decay warms up as min(decay, (1 + t)/(10 + t)), so that it forgets the initial
    parameters in short runs too. The gradient is the mean over ``microbatches`` equal parts of the batch,
    computed one after the other, which bounds memory; each part is normalised by its own statistics.
    """
    grads, (metrics, batch_stats) = _gradient(loss_fn, state, (keys, images, labels), microbatches)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    done = state.step.astype(jnp.float32)
    decay = jnp.minimum(ema_decay, (1.0 + done) / (10.0 + done))
    ema_params = optax.incremental_update(params, state.ema_params, 1 - decay)
    # The statistics that ship must be those of the parameters that ship: averaged alike.
    ema_stats = optax.incremental_update(batch_stats, state.ema_batch_stats, 1 - decay)
    metrics = {**metrics, "gradient_norm": optax.global_norm(grads)}
    new = TrainState(state.step + 1, params, ema_params, batch_stats, opt_state, ema_stats)
    return new, metrics


def flip_at_random(keys: Keys, images: Array, indices: Array, step: Array) -> Array:
    """:func:`random_flip` as an ``Augmentation``."""
    del indices, step
    return random_flip(fold_keys(keys, FLIP), images)


def scan_steps(
    loss_fn: TrainLoss,
    optimizer: optax.GradientTransformation,
    key: Array,
    *,
    augment: Augmentation | None = None,
    ema_decay: float = 0.999,
    microbatches: int = 1,
    mesh: Mesh | None = None,
    shard_parameters: bool = False,
) -> Jitted:
    """A jitted function (state, images, labels, indices ``[K, batch]``) → (state, mean metrics).

    The data set stays on the device; every step gathers, scales and augments its batch there, and
    K steps are one dispatch. The state is donated. With a ``mesh`` each batch is split over its
    devices; the batch must be a multiple of their number, and with ``shard_parameters`` large
    arrays of the state are split too. Streamed data come as batches: images ``[K, batch, h, w, c]``,
    labels ``[K, batch]``, and indices that only ``augment`` looks at.
    """

    def advance(
        loss_fn: TrainLoss, state: TrainState, batch: tuple[Array, Array, Array]
    ) -> tuple[TrainState, dict]:
        images, labels, indices = batch
        keys = image_keys(jax.random.fold_in(key, state.step), jnp.arange(images.shape[0]))
        keys, images = sharding.split(mesh, (keys, images))
        if images.dtype == jnp.uint8:
            images = images.astype(jnp.float32) / 255
        if augment is not None:
            images = augment(keys, images, indices, state.step)
        state, metrics = train_step(
            loss_fn, optimizer, state, keys, images, labels, ema_decay, microbatches
        )
        if shard_parameters and mesh is not None:
            shardings = sharding.large_arrays_split(mesh, state)
            state = jax.lax.with_sharding_constraint(state, shardings)
        return state, metrics

    def run(
        loss_fn: TrainLoss, state: TrainState, images: Array, labels: Array, indices: Array
    ) -> tuple[TrainState, dict]:
        if images.ndim == 5:
            streamed = lambda state, batch: advance(loss_fn, state, batch)
            state, metrics = jax.lax.scan(streamed, state, (images, labels, indices))
            return state, jax.tree.map(jnp.mean, metrics)

        def resident(carry: tuple, chosen: Array) -> tuple[tuple, dict]:
            state, images, labels = carry
            chosen = sharding.split(mesh, chosen)
            state, metrics = advance(loss_fn, state, (images[chosen], labels[chosen], chosen))
            return (state, images, labels), metrics

        (state, _, _), metrics = jax.lax.scan(resident, (state, images, labels), indices)
        return state, jax.tree.map(jnp.mean, metrics)

    placed = sharding.place(mesh, as_pytree(loss_fn))
    return Jitted(jax.jit(run, donate_argnums=1), placed)
