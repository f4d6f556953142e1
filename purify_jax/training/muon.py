"""Muon for convolution filters, and what the short recipe uses for all else: Nesterov momentum.

Muon: Jordan et al. 2024; the values are those of Jordan 2024 (airbench94, arXiv 2404.00498).
"""

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from purify_jax.checks import check_count
from purify_jax.types import Array, Params


def orthogonalised(matrix: Array, num_steps: int = 3) -> Array:
    """About U Vᵀ of ``matrix`` = U S Vᵀ, by Newton–Schulz steps that are matrix products only.

    Each takes a singular value s to 3.4445 s − 4.775 s³ + 2.0315 s⁵, from s over the Frobenius
    norm; values that are not tiny end near 1, between about 0.7 and 1.2.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / (jnp.linalg.norm(x) + 1e-7)
    for _ in range(num_steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if wide else x.T


def _direction(buffer: Array, gradient: Array, momentum: float, num_steps: int) -> Array:
    """orthogonalised(g + μm) of a kernel's gradient g, as a matrix ``[h·w·in, out]``, in its shape."""
    matrix = (gradient + momentum * buffer).reshape(-1, gradient.shape[-1])
    return orthogonalised(matrix, num_steps).reshape(gradient.shape)


def filter_muon(learning_rate: optax.Schedule, momentum: float) -> optax.GradientTransformation:
    """Muon for kernels ``[h, w, in, out]``, whose scale it holds fixed.

    A kernel W is rescaled to the norm √out; then, with Nesterov momentum m ← μm + g:
    W ← W − rate · orthogonalised(g + μm), both as matrices ``[out, h·w·in]``.
    """

    def init(params: Params) -> optax.OptState:
        return jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params)

    def update(grads: Params, state: optax.OptState, params: Params) -> tuple:
        step, buffers = state
        buffers = jax.tree.map(lambda m, g: momentum * m + g, buffers, grads)
        rate = learning_rate(step)

        def change(buffer: Array, gradient: Array, kernel: Array) -> Array:
            scale = jnp.sqrt(kernel.shape[-1]) / jnp.linalg.norm(kernel)
            return (scale - 1) * kernel - rate * _direction(buffer, gradient, momentum, 3)

        return jax.tree.map(change, buffers, grads, params), (step + 1, buffers)

    return optax.GradientTransformation(init, update)


def scale_by_muon(momentum: float = 0.95) -> optax.GradientTransformation:
    """Orthogonalised momentum for kernels ``[h, w, in, out]``, as large as Adam's steps are.

    m ← μm + g; the update is 0.2 √max(h·w·in, out) · orthogonalised(g + μm), whose root mean square is
    about that of Adam's updates (Liu et al. 2025, arXiv 2502.16982): Adam's learning rates serve for both.
    """

    def update(grads: Params, buffers: optax.OptState, params: Params = None) -> tuple:
        del params
        buffers = jax.tree.map(lambda m, g: momentum * m + g, buffers, grads)

        def change(buffer: Array, gradient: Array) -> Array:
            outputs = gradient.shape[-1]
            scale = 0.2 * max(gradient.size // outputs, outputs) ** 0.5
            return scale * _direction(buffer, gradient, momentum, 5)

        return jax.tree.map(change, buffers, grads), buffers

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update)


def nesterov(
    learning_rate: optax.Schedule, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
    """SGD with Nesterov momentum; a step shrinks by ``weight_decay`` · rate(t)/rate(0) as well.

    The decay joins the gradient before the momentum, as in the published code.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay / float(learning_rate(0))),
        optax.trace(momentum, nesterov=True),
        optax.scale_by_learning_rate(learning_rate),
    )


def optimizer(
    num_steps: int,
    batch_size: int,
    *,
    whitening_steps: int,
    filter_rate: float = 0.24,
    filter_momentum: float = 0.6,
    bias_rate: float = 0.053,
    head_rate: float = 0.67,
    momentum: float = 0.85,
    weight_decay: float = 2e-6,
) -> optax.GradientTransformation:
    """Muon for the filters, SGD for biases and head; every rate falls linearly to 0.

    The published values, for batches of 2,000 and losses that are summed, not averaged.

    Args:
      num_steps: after which the rates are 0.
      whitening_steps: the same for the bias of the whitening layer.
      weight_decay: per image; the batch's is ``batch_size`` times as large.
    """
    check_count("num_steps", num_steps)
    check_count("whitening_steps", whitening_steps)
    falling = lambda rate, steps=num_steps: optax.linear_schedule(rate, 0.0, steps)
    sgd = lambda schedule: nesterov(schedule, momentum, weight_decay * batch_size)
    return optax.multi_transform(
        {
            "filters": filter_muon(falling(filter_rate), filter_momentum),
            "head": sgd(falling(head_rate)),
            "whitening": sgd(falling(bias_rate, whitening_steps)),
            "biases": sgd(falling(bias_rate)),
        },
        _groups,
    )


def _groups(params: Params) -> Params:
    def group(path: tuple[str, ...], value: Array) -> str:
        if value.ndim == 4:
            return "filters"
        return {"head": "head", "whitening_bias": "whitening"}.get(path[0], "biases")

    return traverse_util.path_aware_map(group, params)  # type: ignore[arg-type]
