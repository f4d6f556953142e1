"""Update rules: Muon for convolution kernels, and SGD with Nesterov momentum.

Muon: Jordan et al. 2024; the values are those of Jordan 2024 (airbench94, arXiv 2404.00498).
"""

import jax
import jax.numpy as jnp
import optax

from purify_jax.types import Array, Params

#: The label of convolution kernels ``[h, w, in, out]`` in ``optax.multi_transform``.
KERNELS = "kernels"


def orthogonalised_momentum(momentum: float, num_steps: int) -> optax.GradientTransformation:
    """About U Vᵀ of g + μm = U S Vᵀ, for kernels as matrices ``[h·w·in, out]``; m ← μm + g.

    By ``num_steps`` Newton–Schulz steps: each takes a singular value s, over the Frobenius norm, to
    3.4445 s − 4.775 s³ + 2.0315 s⁵; values that are not tiny end near 1, between about 0.7 and 1.2.
    optax's own momentum (``beta``) is corrected for its start, which the published recipe's is not.
    """
    dimensions = optax.contrib.MuonDimensionNumbers((0, 1, 2), 3)
    return optax.chain(
        optax.trace(momentum, nesterov=True),
        optax.contrib.scale_by_muon(
            ns_steps=num_steps,
            beta=0.0,
            nesterov=False,
            weight_dimension_numbers=lambda kernels: jax.tree.map(lambda _: dimensions, kernels),
        ),
    )


def scale_by_muon(momentum: float = 0.95) -> optax.GradientTransformation:
    """Orthogonalised momentum for kernels ``[h, w, in, out]``, as large as Adam's steps are.

    The update is 0.2 √max(h·w·in, out) times the orthogonalised matrix, whose root mean square is about
    that of Adam's updates (Liu et al. 2025, arXiv 2502.16982): Adam's learning rates serve for both.
    """

    def scaled(update: Array) -> Array:
        outputs = update.shape[-1]
        return 0.2 * max(update.size // outputs, outputs) ** 0.5 * update

    by_shape = optax.stateless(lambda updates, params: jax.tree.map(scaled, updates))
    return optax.chain(orthogonalised_momentum(momentum, 5), by_shape)


def filter_muon(learning_rate: optax.Schedule, momentum: float) -> optax.GradientTransformation:
    """Muon for kernels ``[h, w, in, out]``, whose scale it holds fixed; optax has no counterpart.

    A kernel W is rescaled to the norm √out, then W ← W − rate · orthogonalised(g + μm).
    """

    def rescaled(update: Array, kernel: Array) -> Array:
        scale = jnp.sqrt(kernel.shape[-1]) / jnp.linalg.norm(kernel)
        return (scale - 1) * kernel + update

    def hold(updates: Params, params: Params) -> Params:
        return jax.tree.map(rescaled, updates, params)

    return optax.chain(
        orthogonalised_momentum(momentum, 3),
        optax.scale_by_learning_rate(learning_rate),
        optax.stateless(hold),
    )


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
