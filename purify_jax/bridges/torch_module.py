"""A defense as a ``torch.nn.Module``, for attacks that are written in PyTorch."""

import functools
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from purify_jax.checks import InputError, check_images
from purify_jax.keys import image_keys, stream_key
from purify_jax.pytrees import Jitted, Pytree, jit
from purify_jax.types import Array, Keys, PredictFn

if TYPE_CHECKING:
    import torch


class PulledBack(Pytree):
    """(keys, images, cotangents ``[batch, classes]``) → gradient of ⟨cotangents, defense⟩ by images."""

    defense: PredictFn

    def __call__(self, keys: Keys, images: Array, cotangents: Array) -> Array:
        _, pull_back = jax.vjp(lambda x: self.defense(keys, x), images)
        return pull_back(cotangents)[0]


def as_torch_module(
    defense: PredictFn, key: Array | None = None, fresh: bool = True
) -> "torch.nn.Module":
    """The defense as a ``torch.nn.Module``: images NCHW → log-probabilities ``[batch, classes]``.

    The images are float32 in [0, 1]; the result is on their device. The backward pass is JAX's
    gradient through every step of the purifier, at the randomness of the forward pass: nothing is
    approximated. Both are compiled once for a shape, with the defense's parameters as arguments. The
    backward pass computes the forward one again, and cannot be differentiated.

    The module has no parameters and does not distinguish ``train()`` from ``eval()``. Log-probabilities
    serve as logits: softmax, cross-entropy, margins and DLR are the same for both.

    Args:
      defense: (keys, images NHWC) → log-probabilities.
      key: the key of all randomness; ``jax.random.key(0)`` by default.
      fresh: draw anew at every call, as a deployed defense does: call c has the key of
        ``call_key``. Otherwise every call has the same key, and the image at position i of a
        batch always meets the same noise: a deterministic model, which overstates robustness if the
        attack's success is read off the calls that it was optimised on.

    Raises InputError without PyTorch, and on calls with anything but an NCHW tensor as above.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise InputError(
            "as_torch_module: PyTorch is not installed, expected the torch extra"
        ) from error
    return _classes()(defense, jax.random.key(0) if key is None else key, fresh)


def call_key(key: Array, call: int) -> Array:
    """The run's key of call number ``call`` (from 0) of a module with ``fresh=True``.

    Image i of that call has the key ``image_keys(call_key(key, call), [i])``.
    """
    return jax.random.fold_in(stream_key(key, "calls from PyTorch"), call)


@functools.cache
def _classes() -> "type[torch.nn.Module]":
    # Subclasses of torch classes, which are imported only when they are used.
    import torch

    class Pipeline(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, images: torch.Tensor, keys: Keys, predict: Jitted, pull_back: Jitted
        ) -> torch.Tensor:
            ctx.save_for_backward(images)
            ctx.keys, ctx.pull_back = keys, pull_back
            return _to_torch(predict(keys, _to_numpy(images)), images)

        @staticmethod
        def backward(ctx: Any, cotangents: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
            if torch.is_grad_enabled():  # its result would silently be a constant
                raise InputError("backward: got create_graph=True, expected first derivatives only")
            (images,) = ctx.saved_tensors
            given = np.ascontiguousarray(cotangents.cpu().numpy(), np.float32)
            gradient = np.asarray(ctx.pull_back(ctx.keys, _to_numpy(images), given))
            return _to_torch(gradient.transpose(0, 3, 1, 2), images), None, None, None

    class TorchDefense(torch.nn.Module):
        """See :func:`as_torch_module`. ``calls`` counts the calls."""

        def __init__(self, defense: PredictFn, key: Array, fresh: bool):
            super().__init__()
            self.key, self.fresh, self.calls = key, fresh, 0
            self._predict, self._pull_back = jit(defense), jit(PulledBack(defense))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            _check(images)
            key = call_key(self.key, self.calls) if self.fresh else self.key
            self.calls += 1
            keys = image_keys(key, np.arange(len(images)))
            return Pipeline.apply(images, keys, self._predict, self._pull_back)

        def extra_repr(self) -> str:
            return f"fresh={self.fresh}, calls={self.calls}"

    return TorchDefense


def _to_numpy(images: "torch.Tensor") -> np.ndarray:
    return np.ascontiguousarray(images.detach().cpu().numpy().transpose(0, 2, 3, 1))


def _to_torch(array: Array | np.ndarray, like: "torch.Tensor") -> "torch.Tensor":
    import torch

    # A copy: PyTorch may write into its tensors, and JAX's arrays are read-only.
    return torch.from_numpy(np.array(array, np.float32, order="C")).to(like.device)


def _check(images: object) -> None:
    import torch

    if not isinstance(images, torch.Tensor):
        raise InputError(f"images: got {type(images).__name__}, expected a torch.Tensor")
    shape = tuple(images.shape)
    wanted = "expected [batch, channels, height, width]"
    if len(shape) != 4:
        raise InputError(f"images: got rank {len(shape)} (shape {shape}), {wanted}")
    if shape[-1] in (1, 3) and shape[1] not in (1, 3):
        raise InputError(f"images: got shape {shape}, channels last, {wanted}")
    if images.dtype != torch.float32:
        raise InputError(f"images: got dtype {images.dtype}, expected torch.float32 in [0, 1]")
    check_images(images.detach().cpu().numpy())
