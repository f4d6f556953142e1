"""Gradient grafting: many draws of a random defense for one backward pass through its purifier.

With weights that leave out the draws that no common step wins it is DiffHammer (Wang et al. 2024, "DiffHammer: Rethinking
the Robustness of Diffusion-Based Adversarial Purification"), for purifiers whose backward pass is what costs.
"""

from typing import Any

import jax
import jax.numpy as jnp

from purify_jax.attacks.averages import AT_ONCE, largest_divisor
from purify_jax.attacks.norms import get
from purify_jax.checks import check_at_least, check_count
from purify_jax.defense import Defense
from purify_jax.keys import fold_keys
from purify_jax.losses import margin
from purify_jax.pytrees import pytree, static
from purify_jax.types import Array, GradientFn, Keys, LossFn


def vulnerability(
    losses: Array, grads: Array, step: Any, norm: str = "linf", rounds: int = 3
) -> tuple[Array, Array]:
    """Which draws one common step can win: (weights ``[draws, batch]``, index of the best draw ``[batch]``).

    Expectation-maximisation over "this draw is among those that a common step fools": the step goes along
    r, w_i = 1 / (1 + exp(−(L_i + ⟨step, g_i⟩))), and r = Σ w_i g_i / Σ w_i, begun at the best draw, of which the step
    alone raises Σ_i elu(L_i + ⟨step, g_i⟩) most.

    Args:
      losses: ``[draws, batch]``, positive for a draw that is misclassified (the margin).
      grads: ``[draws, batch, h, w, c]``, their gradients.
      step: length of the common step, in units of the norm.
      norm: of the steepest direction.
      rounds: of E- and M-steps, ≥ 1.
    """
    check_count("rounds", rounds)
    along = lambda r: step * get(norm).steepest(r)
    change = lambda r: jnp.sum(along(r)[None] * grads, axis=(2, 3, 4))
    alone = jax.lax.map(lambda g: jnp.sum(jax.nn.elu(losses + change(g)), axis=0), grads)
    best = jnp.argmax(alone, axis=0)
    direction = grads[best, jnp.arange(grads.shape[1])]
    for _ in range(rounds):
        weights = jax.nn.sigmoid(losses + change(direction))
        direction = _weighted(weights, grads)
    return weights, best


def _weighted(weights: Array, grads: Array) -> Array:
    share = weights / jnp.maximum(jnp.sum(weights, axis=0), 1e-12)
    return jnp.einsum("ni,nihwc->ihwc", share, grads)


@pytree
class Grafted:
    """See :func:`grafted`."""

    defense: Any
    loss_fn: Any
    step: Any
    norm: str = static()
    num_samples: int = static()
    samples_at_once: int | None = static(default=None)

    most_at_once = AT_ONCE

    def __call__(self, keys: Keys, images: Array, labels: Array) -> tuple[Array, Array]:
        purify = lambda draw_keys, x: self.defense.purifier(draw_keys, x)[0]

        def total(purified: Array) -> tuple[Array, Array]:
            loss = self.loss_fn(self.defense.classify(purified), labels)
            return jnp.sum(loss), loss

        def one(index: Array) -> tuple[Array, Array]:
            purified = purify(fold_keys(keys, index), images)
            grads, loss = jax.grad(total, has_aux=True)(purified)
            # Restarts are draws as well: what each of them contributes is grafted on all alike.
            return jnp.sum(grads, axis=0), loss

        at_once = largest_divisor(self.num_samples, self.samples_at_once)
        grads, losses = jax.lax.map(one, jnp.arange(self.num_samples), batch_size=at_once)
        if self.step is None:
            weights, best = jnp.ones_like(losses), jnp.zeros(len(images), jnp.int32)
        else:
            weights, best = vulnerability(losses, grads, self.step, self.norm)
        purified, pull = jax.vjp(
            lambda x: purify(jax.vmap(jax.random.fold_in)(keys, best), x), images
        )
        cotangent = _weighted(weights, grads) / purified.shape[0]
        return pull(jnp.broadcast_to(cotangent, purified.shape))[0], jnp.mean(losses, axis=0)


def grafted(
    defense: Defense,
    num_samples: int,
    loss_fn: LossFn = margin,
    *,
    step: float | None = None,
    norm: str = "linf",
    samples_at_once: int | None = None,
) -> GradientFn:
    """J(n₁)ᵀ Σ wᵢ ∂L/∂purified(nᵢ): many draws for one backward pass through the purifier.

    The gradients with respect to the purified images of ``num_samples`` draws are averaged, and pulled back
    through the purifier's Jacobian at one draw. It is the exact mean gradient where the Jacobian does not
    depend on the draw. n + 1 forward passes through the purifier, one backward.

    Args:
      defense: what is attacked.
      num_samples: draws, ≥ 1.
      loss_fn: the margin by default, whose sign says whether a draw is fooled.
      step: None for equal weights and the first draw's Jacobian; else the weights and the draw that
        ``grafting.vulnerability`` chooses for a common step of this length: DiffHammer.
      norm: of that step.
      samples_at_once: draws side by side, as in :func:`~purify_jax.attacks.eot`.
    """
    check_count("num_samples", num_samples)
    if step is not None:
        check_at_least("step", step, 0.0)
    return Grafted(
        defense=defense,
        loss_fn=loss_fn,
        step=step,
        norm=get(norm).name,
        num_samples=num_samples,
        samples_at_once=samples_at_once,
    )
