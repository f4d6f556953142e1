"""The vocabulary of the library: array conventions and function types.

Conventions, used by every module:

- *images*: float32 ``[batch, height, width, channels]`` with values in [0, 1]; a model
  normalises inside itself.
- *labels*: int32 ``[batch]`` in ``[0, num_classes)``.
- *keys*: one PRNG key per image, ``[batch]`` typed keys (``jax.random.key``), see
  :mod:`purify_jax.keys`.

Everything callable that holds arrays is a pytree, see :mod:`purify_jax.pytrees`; a plain function
is accepted wherever such a type is named.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax

Array: TypeAlias = jax.Array
Keys: TypeAlias = jax.Array
Params: TypeAlias = Any
#: The arrays that one step hands to the next: a pytree whose form is the method's own.
Carry: TypeAlias = Any
#: What a file says as JSON: metadata of a model, a card, results.
Json: TypeAlias = Mapping[str, Any]

#: images ``[batch, h, w, c]`` → energy ``[batch]``; lower is more probable.
EnergyFn: TypeAlias = Callable[[Array], Array]
#: images → array of the same shape: the (possibly scaled) gradient of the log-density.
ScoreFn: TypeAlias = Callable[[Array], Array]
#: (images, σ) → the score of the data smoothed by Gaussian noise of standard deviation σ.
NoiseScore: TypeAlias = Callable[[Array, Array], Array]
#: images → unnormalised class scores ``[batch, classes]``.
LogitsFn: TypeAlias = Callable[[Array], Array]
#: (keys, images) → (purified ``[restarts, batch, h, w, c]``, info): a purifier, or a function like one.
PurifyFn: TypeAlias = Callable[[Keys, Array], "tuple[Array, PurifyInfo]"]
#: (keys, images) → log-probabilities ``[batch, classes]``: a defense, or any other prediction.
PredictFn: TypeAlias = Callable[[Keys, Array], Array]
#: (log-probabilities ``[batch, classes]``, labels) → loss ``[batch]``; attacks ascend it.
LossFn: TypeAlias = Callable[[Array, Array], Array]
#: (keys, images, labels) → (gradient like images, loss ``[batch]``).
GradientFn: TypeAlias = Callable[[Keys, Array, Array], tuple[Array, Array]]
#: (keys, images, labels) → adversarial images, inside the ball and the bounds.
Attack: TypeAlias = Callable[[Keys, Array, Array], Array]

#: Lower and upper bound of a pixel.
BOUNDS = (0.0, 1.0)


class PurifyInfo(NamedTuple):
    """Diagnostics of a purification; axes are steps T, restarts S and batch B.

    step_sizes: ``[T, S, B]`` step size α of each step, 0 once an image has stopped.
    score_norms: ``[T, S, B]`` Euclidean norm of the score before each step.
    active_steps: ``[S, B]`` number of steps taken before the image stopped (int32).
    """

    step_sizes: Array
    score_norms: Array
    active_steps: Array
