"""A defense: a purifier before a classifier that is not retrained. It is deployed and attacked as one."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from purify_jax.checks import InputError, check_count
from purify_jax.purifiers.filters import identity
from purify_jax.purifiers.loop import is_deterministic
from purify_jax.pytrees import Pytree, static
from purify_jax.types import Array, Keys, LogitsFn, PredictFn, PurifyFn

#: logits of every restart ``[restarts, batch, classes]`` → log-probabilities ``[batch, classes]``.
Combine = Callable[[Array], Array]


def mean_probabilities(logits: Array) -> Array:
    """log of the average softmax over restarts (ADP, section 3.3)."""
    log_probs = jax.nn.log_softmax(logits)
    return jax.nn.logsumexp(log_probs, axis=0) - jnp.log(logits.shape[0])


def mean_logits(logits: Array) -> Array:
    """log-softmax of the average logits over restarts."""
    return jax.nn.log_softmax(jnp.mean(logits, axis=0))


def vote(logits: Array) -> Array:
    """log of each class's share of the restarts' votes, with one vote spread over all classes.

    The derivative of a vote is zero almost everywhere, which would mask gradients. So the backward pass
    is that of :func:`mean_probabilities`.
    """
    classes = logits.shape[-1]
    votes = jnp.sum(
        jax.nn.one_hot(jnp.argmax(logits, axis=-1), classes, dtype=logits.dtype), axis=0
    )
    hard = jnp.log((votes + 1 / classes) / (logits.shape[0] + 1))
    soft = mean_probabilities(logits)
    return soft + jax.lax.stop_gradient(hard - soft)


class Defense(Pytree):
    """(keys ``[batch]``, images) → log-probabilities ``[batch, classes]``: ``logits_fn`` after ``purifier``.

    Plain functions work for both. What they have closed over is constant in compiled programs.

    purifier: (keys, images) → (purified ``[restarts, batch, h, w, c]``, info).
    logits_fn: images → logits; applied to every restart's purified images.
    combine: how the restarts' logits become one prediction; by default the average of their softmax.
    """

    purifier: PurifyFn
    logits_fn: LogitsFn
    combine: Combine = static(default=mean_probabilities)

    @property
    def is_deterministic(self) -> bool:
        """Whether the purifier draws nothing, so that EOT and several draws would change nothing."""
        return is_deterministic(self.purifier)

    def with_restarts(self, num_restarts: int) -> "Defense":
        """The same with another number of noise restarts. One restart is a draw of what more would average.

        A purifier that draws nothing stays as it is. Raises InputError for fewer than one, and for a
        purifier whose ``num_restarts`` cannot be changed.
        """
        check_count("num_restarts", num_restarts)
        if self.is_deterministic:
            return self
        purifier = self.purifier
        replace = getattr(purifier, "replace", None)
        if replace is None or not hasattr(purifier, "num_restarts"):
            raise InputError(
                f"num_restarts: got {num_restarts} for {type(purifier).__name__}, expected a purifier that "
                "has a number of restarts"
            )
        return self.replace(purifier=replace(num_restarts=num_restarts))

    def __call__(self, keys: Keys, images: Array) -> Array:
        purified, _ = self.purifier(keys, images)
        if jnp.ndim(purified) != 5 or jnp.shape(purified)[1] != jnp.shape(images)[0]:
            raise InputError(
                f"purifier: output shape {jnp.shape(purified)} for images {jnp.shape(images)}, expected "
                "[restarts, batch, height, width, channels]"
            )
        return self.classify(purified)

    def classify(self, purified: Array) -> Array:
        """Log-probabilities ``[batch, classes]`` from the purified images of every restart."""
        flat = purified.reshape((-1, *purified.shape[2:]))
        logits = self.logits_fn(flat)
        if logits.ndim != 2:
            raise InputError(f"logits_fn: output shape {logits.shape}, expected [batch, classes]")
        return self.combine(logits.reshape(purified.shape[:2] + logits.shape[1:]))


def undefended(logits_fn: LogitsFn) -> Defense:
    """The bare classifier in the form of a defense, so that it is attacked by the same code."""
    return Defense(identity, logits_fn)


class Whole(Pytree):
    """A defense that is one function: attacks see no purifier and no classifier in it.

    predict: (keys ``[batch]``, images) → log-probabilities ``[batch, classes]``.
    is_deterministic: whether it draws nothing, so that EOT and several draws would change nothing.
    reason: why attacks that need the parts are left out, for reports.
    """

    predict: PredictFn
    is_deterministic: bool = static(default=False)
    reason: str = static(
        default="the defense is one function, without parts that could be told apart"
    )

    def __call__(self, keys: Keys, images: Array) -> Array:
        return self.predict(keys, images)

    def with_restarts(self, num_restarts: int) -> "Whole":
        """Raises InputError: there is no purifier whose restarts could be changed."""
        raise InputError(f"num_restarts: got {num_restarts}, but {self.reason}")


#: A defense as suites attack it; of one function not every attack is possible.
Attackable: TypeAlias = Defense | Whole


def attackable(defense: PredictFn, image_shape: tuple[int, ...]) -> Attackable:
    """The defense as the suites take it: with its parts, where attacks can use them.

    A purifier that changes the size of an image has no identity to pretend in its place (BPDA), and its
    classifier does not take the attacked image (transfer): it becomes one function, as a plain function does.
    A function may say that it draws nothing by an attribute ``is_deterministic``.

    defense: (keys, images) → log-probabilities.
    image_shape: ``(height, width, channels)``.
    """
    if isinstance(defense, Whole):
        return defense
    if not isinstance(defense, Defense):
        return Whole(defense, is_deterministic=bool(getattr(defense, "is_deterministic", False)))
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    purified, _ = jax.eval_shape(lambda k, x: defense.purifier(k, x), keys, images)
    if purified.shape[2:] == tuple(image_shape):
        return defense
    sizes = " to ".join(
        "×".join(map(str, shape[:2])) for shape in (image_shape, purified.shape[2:])
    )
    return Whole(
        defense, is_deterministic=defense.is_deterministic, reason=f"its purifier resizes {sizes}"
    )
