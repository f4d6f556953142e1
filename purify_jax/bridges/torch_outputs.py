"""What somebody's PyTorch code returns: the tensor in it, and whether it holds logits or probabilities."""

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from purify_jax.checks import InputError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.overrides import TorchFunctionMode

#: Kinds of a classifier's output.
KINDS = ("logits", "log_probabilities", "probabilities")
#: Where the answer is in an output that has several parts, in this order.
_NAMES = (
    "logits", "log_probabilities", "log_probs", "probabilities", "probs", "predictions", "output", "out",
    "images", "sample", "samples", "prev_sample", "purified", "x",
)  # fmt: skip


def tensor_of(output: object) -> "Tensor":
    """The tensor in an output: itself, an item or attribute of a usual name, or the first one of a tuple.

    Raises InputError where there is none.
    """
    import torch

    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, (tuple, list)) and not hasattr(output, "_fields"):
        parts = list(output)
    elif isinstance(output, Mapping):
        parts = [output[name] for name in _NAMES if name in output] + list(output.values())
    else:
        names = [name for name in _NAMES if hasattr(output, name)]
        parts = [getattr(output, name) for name in names]
        parts += list(output) if isinstance(output, (tuple, list)) else []
    for part in parts:
        if isinstance(part, torch.Tensor):
            return part
    raise InputError(
        f"module: returned a {type(output).__name__}, expected a tensor, a tuple, a dictionary or an object "
        "with a tensor called logits (or sample)"
    )


def kind_of(answers: np.ndarray) -> str:
    """The kind of answers ``[batch, classes]``: their rows or their exponentials sum to 1, or neither.

    >>> kind_of(np.array([[0.5, 0.5], [0.9, 0.1]])), kind_of(np.log([[0.5, 0.5], [0.9, 0.1]]))
    ('probabilities', 'log_probabilities')
    >>> kind_of(np.array([[1.0, -2.0]]))
    'logits'
    """
    found = answers.astype(np.float64)
    near = lambda total: bool(np.all(np.abs(total - 1) < 5e-3))
    if found.shape[-1] > 1 and np.all(found >= 0) and near(found.sum(-1)):
        return "probabilities"
    if np.all(found <= 1e-3) and near(np.exp(found).sum(-1)):
        return "log_probabilities"
    return "logits"


def logarithm(answer: "Tensor", last: "tuple[Tensor, Tensor, int] | None") -> "Tensor":
    """The logarithm of probabilities, in one step with the softmax that made them where that is known.

    The logarithm of a rounded probability loses what attacks need: 1 − p is 0 in float32 from a logit
    difference of 17 on, and so is every gradient. ``last``: (its result, its input, its axis) of the last
    softmax that was computed.
    """
    import torch

    if last is not None and last[0] is answer:
        return torch.nn.functional.log_softmax(last[1], last[2])
    return torch.log(answer.clamp_min(torch.finfo(answer.dtype).tiny))


@functools.cache
def softmax_watch() -> "type[TorchFunctionMode]":
    """A context of PyTorch that notes the last softmax in ``.last``, see :func:`logarithm`."""
    import torch
    from torch.overrides import TorchFunctionMode

    kinds = (
        torch.softmax,
        torch.nn.functional.softmax,
        torch.Tensor.softmax,
        torch.special.softmax,
    )

    class Watch(TorchFunctionMode):
        last: tuple[Any, Any, int] | None = None

        def __torch_function__(
            self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None
        ) -> Any:
            given = dict(kwargs or {})
            result = function(*args, **given)
            if function in kinds:
                axis = args[1] if len(args) > 1 else given.get("dim", -1)
                source = args[0] if args else given.get("input")
                self.last = (result, source, -1 if axis is None else axis)
            return result

    return Watch
