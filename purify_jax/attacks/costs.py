"""What an attack costs: passes through purifier and classifier, read off the program, not estimated.

The attack is built on a copy of the defense that marks each pass, traced for one image, and the marks
in the traced program are counted: times the length of a scan, times what runs side by side in a
``vmap``. Nothing is compiled or run. A caller's own attack is counted like those of the suites.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purify_jax.checks import InputError
from purify_jax.defense import Defense
from purify_jax.passes import programs
from purify_jax.purifiers import is_deterministic, score_of
from purify_jax.purifiers.filters import identity
from purify_jax.pytrees import pytree
from purify_jax.types import Array, Attack, Keys, PurifyInfo, ScoreFn

_MARK = "purify_jax_pass_"


class Passes(NamedTuple):
    """Passes for one image. A restart of the purifier is one pass through the classifier.

    A gradient through everything is a forward and a backward pass of both; what a checkpointed
    backward pass computes again inside the purifier is not counted.
    """

    purifier_forward: float = 0
    purifier_backward: float = 0
    classifier_forward: float = 0
    classifier_backward: float = 0

    def __add__(self, other: "Passes") -> "Passes":  # type: ignore[override]
        """The cost of one after the other."""
        return Passes(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, factor: float) -> "Passes":
        """The cost of ``factor`` such runs."""
        return Passes(*(factor * a for a in self))


def count(build: Callable[[Defense], Attack], defense: Defense, images: Array) -> Passes:
    """The passes of an attack on one image, which ``build`` makes for a defense.

    Args:
      build: defense → attack, as in ``lambda d: PGD(exact(d), epsilon=0.1, num_steps=10)``.
      defense: what is attacked.
      images: images of the shape in question ``[batch, h, w, c]``; the first one's is used.

    Raises InputError for an attack with a loop whose length the program does not say (a ``while``).
    """
    one = jnp.zeros((1, *images.shape[1:]), jnp.float32)
    keys, labels = jax.random.split(jax.random.key(0), 1), jnp.zeros(1, jnp.int32)
    return _traced(build(_marked(defense)), keys, one, labels)


def count_prediction(defense: Defense, images: Array) -> Passes:
    """The passes of one answer of a defense to one image."""
    one = jnp.zeros((1, *images.shape[1:]), jnp.float32)
    return _traced(_marked(defense), jax.random.split(jax.random.key(0), 1), one)


def _traced(function: Callable, *arguments: Any) -> Passes:
    program = jax.make_jaxpr(function)(*arguments)
    found = dict.fromkeys(Passes._fields, 0.0)
    for name, times in _marks(program.jaxpr, 1):
        found[name] += times
    return Passes(**found)


def _marks(program: Any, times: int) -> Iterator[tuple[str, float]]:
    for equation in program.eqns:
        name = str(equation.params.get("name", ""))
        if name.startswith(_MARK):
            kind, size = name[len(_MARK) :].rsplit("_", 1)
            # The size of one image's value was noted where it was marked; vmap has multiplied it.
            yield kind, times * equation.outvars[0].aval.size / int(size)
            continue
        length = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        inside = list(programs(equation.params))
        found = [mark for each in inside for mark in _marks(each, times * length)]
        if found and equation.primitive.name == "while":
            raise InputError(
                "attack: loops until a condition holds, expected a fixed length (scan)"
            )
        yield from found


def _named(name: str, value: Array, size: int) -> Array:
    same = lambda v: v + 0
    same.__name__ = f"{_MARK}{name}_{size}"
    return jax.jit(same)(value)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _mark(name: str, size: int, value: Array) -> Array:
    return _named(f"{name}_forward", value, size)


def _mark_forward(name: str, size: int, value: Array) -> tuple[Array, None]:
    return _mark(name, size, value), None


def _mark_backward(name: str, size: int, _: None, cotangent: Array) -> tuple[Array]:
    return (_named(f"{name}_backward", cotangent, size),)


_mark.defvjp(_mark_forward, _mark_backward)


@pytree
class _Classifier:
    logits_fn: Any

    def __call__(self, images: Array) -> Array:
        logits = self.logits_fn(images)
        return _mark("classifier", int(np.prod(logits.shape[1:])), logits)


@pytree
class _Purifier:
    purifier: Any

    @property
    def score_fn(self) -> ScoreFn | None:
        return score_of(self.purifier)

    @property
    def is_deterministic(self) -> bool:
        return is_deterministic(self.purifier)

    def __call__(self, keys: Keys, images: Array) -> tuple[Array, PurifyInfo]:
        purified, info = self.purifier(keys, images)
        # One call for all restarts of an image.
        size = purified.shape[0] * int(np.prod(purified.shape[2:]))
        return _mark("purifier", size, purified), info


def _marked(defense: Defense) -> Defense:
    defense = defense.replace(logits_fn=_Classifier(logits_fn=defense.logits_fn))
    if defense.purifier is identity:
        return defense
    return defense.replace(purifier=_Purifier(purifier=defense.purifier))
