"""Gradient grafting: many draws of a random defense for one backward pass through its purifier.

With weights that leave out the draws that no common step fools, it is DiffHammer (Wang et al. 2024,
"DiffHammer: Rethinking the Robustness of Diffusion-Based Adversarial Purification"). It serves purifiers
whose backward pass is the expensive part.
"""

from dataclasses import KW_ONLY

import jax
import jax.numpy as jnp

from purify_jax.attacks.averages import AT_ONCE, check_samples, largest_divisor
from purify_jax.attacks.gradients import at_purified
from purify_jax.attacks.norms import get
from purify_jax.checks import check_at_least, check_count
from purify_jax.defense import Defense
from purify_jax.keys import draw_each, fold_keys
from purify_jax.losses import margin
from purify_jax.pytrees import Pytree, static
from purify_jax.types import BOUNDS, Array, Keys, LossFn


def vulnerability(
    losses: Array,
    grads: Array,
    step: float,
    norm: str = "linf",
    rounds: int = 3,
    images: Array | None = None,
) -> tuple[Array, Array]:
    """Which draws one common step can fool: (weights ``[draws, batch]``, index of the best draw ``[batch]``).

    Expectation-maximisation over "a common step fools this draw". The step goes along r, with
    w_i = 1 / (1 + exp(−(L_i + ⟨step, g_i⟩))) and r = Σ w_i g_i / Σ w_i. It starts at the best draw: the one
    whose own step raises Σ_i elu(L_i + ⟨step, g_i⟩) most.

    Args:
      losses: ``[draws, batch]``, positive for a draw that is misclassified (the margin).
      grads: ``[draws, batch, h, w, c]``, their gradients.
      step: length of the common step, in units of the norm.
      norm: of the steepest direction.
      rounds: of E- and M-steps, ≥ 1.
      images: ``[batch, h, w, c]``, whose bounds an L1 step keeps to; None for no bounds.
    """
    check_count("rounds", rounds)
    low, high = (-jnp.inf, jnp.inf) if images is None else (BOUNDS[0] - images, BOUNDS[1] - images)
    along = lambda r: get(norm).step(r, step, low, high)
    change = lambda r: jnp.sum(along(r)[None] * grads, axis=(2, 3, 4))
    alone = jax.lax.map(lambda g: jnp.sum(jax.nn.elu(losses + change(g)), axis=0), grads)
    best = jnp.argmax(alone, axis=0)
    direction = grads[best, jnp.arange(grads.shape[1])]
    for _ in range(rounds):
        weights = jax.nn.sigmoid(losses + change(direction))
        direction = _weighted(weights, grads)
    return weights, best


def _weighted(weights: Array, grads: Array) -> Array:
    share = weights / jnp.maximum(jnp.sum(weights, axis=0, keepdims=True), 1e-12)
    return jnp.einsum("ni,nihwc->ihwc", share, grads)


class Grafted(Pytree):
    """J(n₁)ᵀ Σ wᵢ ∂L/∂purified(nᵢ): many draws for one backward pass through the purifier.

    The gradients with respect to the purified images of ``num_samples`` draws are averaged, then pulled back
    through the purifier's Jacobian at one draw. This is the exact mean gradient where the Jacobian does not
    depend on the draw. It costs n + 1 forward passes through the purifier and one backward pass.

    loss_fn: the margin by default, whose sign says whether a draw is fooled.
    step: None for equal weights and the first draw's Jacobian. Otherwise the length of a common step, for
      which ``vulnerability`` chooses the weights and the draw: DiffHammer.
    norm: of that step.
    num_samples: draws, ≥ 1.
    samples_at_once: draws side by side, as in :class:`~purify_jax.attacks.EOT`.
    """

    defense: Defense
    loss_fn: LossFn = margin
    _: KW_ONLY
    step: float | None = None
    norm: str = static(default="linf")
    num_samples: int = static()
    samples_at_once: int | None = static(default=None)

    most_at_once = AT_ONCE

    def __post_init__(self) -> None:
        check_samples(self.num_samples, self.samples_at_once)
        if self.step is not None:
            check_at_least("step", self.step, 0.0)
        self.fill(norm=get(self.norm).name)

    def __call__(self, keys: Keys, images: Array, labels: Array) -> tuple[Array, Array]:
        purify = lambda draw_keys, x: self.defense.purifier(draw_keys, x)[0]

        def one(index: Array) -> tuple[Array, Array]:
            # Restarts are draws as well: what each of them contributes is grafted on all alike.
            return at_purified(
                self.defense, self.loss_fn, purify(fold_keys(keys, index), images), labels
            )

        at_once = largest_divisor(self.num_samples, self.samples_at_once)
        grads, losses = jax.lax.map(one, jnp.arange(self.num_samples), batch_size=at_once)
        if self.step is None:
            weights, best = jnp.ones_like(losses), jnp.zeros(len(images), jnp.int32)
        else:
            weights, best = vulnerability(losses, grads, self.step, self.norm, images=images)
        purified, pull = jax.vjp(
            lambda x: purify(draw_each(jax.random.fold_in, keys, best), x), images
        )
        cotangent = _weighted(weights, grads) / purified.shape[0]
        return pull(jnp.broadcast_to(cotangent, purified.shape))[0], jnp.mean(losses, axis=0)
