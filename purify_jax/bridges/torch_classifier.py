"""A classifier that is a ``torch.nn.Module``, called back from JAX with its gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purify_jax.checks import InputError, check_count
from purify_jax.types import Array, LogitsFn


def logits_from_torch(module: Any, num_classes: int) -> LogitsFn:
    """images NHWC in JAX → logits ``[batch, num_classes]`` of a module that takes NCHW.

    PyTorch computes the values and the vector-Jacobian products, on the device of the module's parameters;
    JAX sees a function with a first derivative, so blind, BPDA and exact attacks all run. Every call copies
    to the host and back; it is not differentiable twice and not exportable. The module is put into
    evaluation mode.

    Raises InputError unless ``module`` is a ``torch.nn.Module``, and on a call for logits of another shape.
    """
    import torch

    if not isinstance(module, torch.nn.Module):
        raise InputError(f"module: got {type(module).__name__}, expected a torch.nn.Module")
    check_count("num_classes", num_classes)
    module = module.eval()
    place = next((p.device for p in module.parameters()), torch.device("cpu"))
    to_torch = lambda array: torch.from_numpy(np.array(array, np.float32)).to(place)
    to_numpy = lambda tensor: tensor.detach().cpu().numpy()

    def predict(images: Any) -> Any:
        logits = module(images.permute(0, 3, 1, 2))
        if tuple(logits.shape) != (len(images), num_classes):
            raise InputError(
                f"module: logits of shape {tuple(logits.shape)}, expected ({len(images)}, {num_classes})"
            )
        return logits

    def forward(images: Any) -> np.ndarray:
        with torch.no_grad():
            return to_numpy(predict(to_torch(images)))

    def backward(images: Any, cotangents: Any) -> np.ndarray:
        x = to_torch(images).requires_grad_(True)
        (gradient,) = torch.autograd.grad(predict(x), x, to_torch(cotangents))
        return to_numpy(gradient)

    @jax.custom_vjp
    def logits_fn(images: Array) -> Array:
        shape = jax.ShapeDtypeStruct((images.shape[0], num_classes), jnp.float32)
        return jax.pure_callback(forward, shape, images, vmap_method="sequential")

    def saved(images: Array) -> tuple[Array, Array]:
        return logits_fn(images), images

    def pulled_back(images: Array, cotangents: Array) -> tuple[Array]:
        shape = jax.ShapeDtypeStruct(images.shape, jnp.float32)
        return (jax.pure_callback(backward, shape, images, cotangents, vmap_method="sequential"),)

    logits_fn.defvjp(saved, pulled_back)
    return logits_fn
