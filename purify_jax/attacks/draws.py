"""Several draws of a random defense at one point, and what to make of them beside their mean.

Pairs of opposite noise, for a mean of less variance; one backward pass through the purifier for many
draws (grafting); and weights that leave out the draws that the attack cannot win anyway. The last two are
DiffHammer's (Wang et al. 2024, "DiffHammer: Rethinking the Robustness of Diffusion-Based Adversarial Purification").
"""

from typing import Any

import jax
import jax.numpy as jnp

from purify_jax.attacks.averages import largest_divisor
from purify_jax.attacks.gradients import exact
from purify_jax.attacks.norms import get
from purify_jax.checks import InputError, check_at_least, check_count
from purify_jax.defense import Defense
from purify_jax.keys import fold_keys
from purify_jax.losses import cross_entropy, margin
from purify_jax.purifiers import ADP
from purify_jax.pytrees import as_pytree, pytree, static
from purify_jax.types import Array, GradientFn, Keys, LossFn


@pytree
class Antithetic:
    """See :func:`antithetic`."""

    gradient: Any
    mirrored: Any

    def __call__(self, keys: Keys, images: Array, labels: Array) -> tuple[Array, Array]:
        pair = self.gradient(keys, images, labels), self.mirrored(keys, images, labels)
        return jax.tree.map(lambda a, b: 0.5 * (a + b), *pair)


def antithetic(defense: Defense, loss_fn: LossFn = cross_entropy) -> GradientFn:
    """The exact gradient, averaged over noise n and −n: two draws whose linear terms in n cancel.

    ``eot(antithetic(defense), k)`` averages 2k draws. Raises InputError unless the defense's purifier
    adds Gaussian noise once (ADP, with a number as its noise scale).
    """
    opposite = _opposite(defense.purifier)
    mirrored = exact(defense.replace(purifier=opposite), loss_fn)
    return Antithetic(gradient=exact(defense, loss_fn), mirrored=mirrored)


def _opposite(purifier: Any) -> Any:
    if isinstance(purifier, ADP) and not callable(purifier.noise_scale):
        return purifier.replace(noise_scale=-purifier.noise_scale)
    inside = getattr(
        purifier, "purifier", None
    )  # one that only counts, or changes the backward pass
    if inside is None:
        raise InputError(
            f"defense: its purifier is a {type(purifier).__name__}, expected ADP with a number as noise_scale"
        )
    return purifier.replace(purifier=_opposite(inside))


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


def _draws(one: Any, count: int, at_once: int | None) -> Any:
    return jax.lax.map(one, jnp.arange(count), batch_size=largest_divisor(count, at_once))


@pytree
class Reweighted:
    """See :func:`reweighted`."""

    gradient: Any
    step: Any
    norm: str = static()
    num_samples: int = static()
    samples_at_once: int | None = static(None)

    def __call__(self, keys: Keys, images: Array, labels: Array) -> tuple[Array, Array]:
        one = lambda index: self.gradient(fold_keys(keys, index), images, labels)
        grads, losses = _draws(one, self.num_samples, self.samples_at_once)
        weights, _ = vulnerability(losses, grads, self.step, self.norm)
        return _weighted(weights, grads), jnp.mean(losses, axis=0)


def reweighted(
    gradient: GradientFn,
    num_samples: int,
    *,
    step: float,
    norm: str = "linf",
    samples_at_once: int | None = None,
) -> GradientFn:
    """As :func:`~purify_jax.attacks.eot`, with the draws weighted by :func:`vulnerability`.

    ``gradient`` should be that of the margin, whose sign says whether a draw is fooled.
    """
    check_count("num_samples", num_samples)
    check_at_least("step", step, 0.0)
    return Reweighted(
        gradient=as_pytree(gradient),
        step=step,
        norm=get(norm).name,
        num_samples=num_samples,
        samples_at_once=samples_at_once,
    )


@pytree
class Grafted:
    """See :func:`grafted`."""

    defense: Any
    loss_fn: Any
    step: Any
    norm: str = static()
    num_samples: int = static()
    samples_at_once: int | None = static(None)

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

        grads, losses = _draws(one, self.num_samples, self.samples_at_once)
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
        :func:`vulnerability` chooses for a common step of this length: DiffHammer.
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
