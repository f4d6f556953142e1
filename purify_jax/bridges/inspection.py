"""Modes, memory and identity of PyTorch code, for :func:`purify_jax.examine` and for records."""

import hashlib
from collections import Counter
from collections.abc import Callable
from types import CodeType
from typing import Any, NamedTuple

import numpy as np

from purify_jax.bridges.generators import reachable
from purify_jax.bridges.torch_calls import Plan, TorchCalls, to_numpy, to_torch


class Modes(NamedTuple):
    """training: layers in training mode whose answers depend on it, by class → how many ("other" for a module
    without such a layer). changed: answers in evaluation mode, or None where everything is in it already."""

    training: dict[str, int]
    changed: np.ndarray | None


def modes(calls: TorchCalls, plan: Plan, images: np.ndarray) -> tuple[Modes, np.ndarray]:
    """(the modes, answers as the module is given) for images NCHW, both answers from one seed."""
    import torch

    layers = torch.nn.modules
    kinds = (layers.dropout._DropoutNd, layers.batchnorm._NormBase, torch.nn.RReLU)
    wanted = None if calls.mode is None else calls.mode == "train"
    active = [m for m in calls.modules if (m.training if wanted is None else wanted)]
    training = Counter(type(m).__name__ for m in active if isinstance(m, kinds))
    if active and not training:
        training["other"] = len(active)
    both = [calls, *([TorchCalls(calls.module, "eval")] if active else [])]
    found = []
    for each in both:
        with each.inside(plan, b"modes"):
            found.append(to_numpy(each.answer(plan, to_torch(images))))
    return Modes(dict(training), found[1] if active else None), found[0]


def megabytes(calls: TorchCalls, plan: Plan, images: np.ndarray) -> tuple[float, float]:
    """(of a forward pass, of a backward pass) without parameters, for a batch of images NCHW.

    Forward: the most that one operation reads and writes. Backward: what the graph keeps for it.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    weights = {t.untyped_storage().data_ptr() for root in calls.roots for t in root.parameters()}
    kept: dict[int, int] = {}
    most = 0

    def sizes(tree: object) -> dict[int, int]:
        leaves = torch.utils._pytree.tree_leaves(tree)
        storages = [t.untyped_storage() for t in leaves if isinstance(t, torch.Tensor)]
        return {s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in weights}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None
        ) -> Any:
            nonlocal most
            result = function(*args, **(kwargs or {}))
            most = max(most, sum(sizes((args, result)).values()))
            return result

    def keep(tensor: object) -> object:
        kept.update(sizes(tensor))
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with calls.inside(plan, b"memory"):
        with Watch(), torch.set_grad_enabled(plan.grad_inside):
            calls.answer(plan, to_torch(images))
        with hooks:
            graph = calls.graph(plan, images)
        del graph
    return most / 1e6, sum(kept.values()) / 1e6


def described(calls: TorchCalls) -> str:
    """One line: the class, its parameters, where they are."""
    count = sum(p.numel() for root in calls.roots for p in root.parameters())
    dtype = str(calls.dtype).removeprefix("torch.")
    return f"{calls}, {count:,} parameters, {dtype} on {calls.device}"


def fingerprint(calls: TorchCalls) -> tuple[str, bool]:
    """(SHA-256 of the code and all that it holds, whether it holds any weights).

    Tensors, arrays, numbers and text of the modules and objects that are reachable, modes, the classes'
    names, and the bytecode of the functions and methods that a user wrote.
    """
    import torch

    digest, has_weights = hashlib.sha256(), False
    say = lambda *parts: digest.update(repr(parts).encode())
    for path, value in reachable(calls.function):
        code = getattr(value, "__code__", None)
        if code is not None:
            say(path, *code_identity(code))
            continue
        say(path, type(value).__qualname__)
        held = {} if isinstance(value, type) else dict(getattr(value, "__dict__", {}))
        held.update({**held.pop("_parameters", {}), **held.pop("_buffers", {})})
        for name, item in sorted(held.items(), key=lambda pair: str(pair[0])):
            if isinstance(item, torch.Tensor):
                has_weights |= item.numel() > 0
                say(name, str(item.dtype), tuple(item.shape))
                digest.update(
                    item.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
                )
            elif isinstance(item, np.ndarray):
                say(name, str(item.dtype), item.shape)
                digest.update(np.ascontiguousarray(item).view(np.uint8).data)
            elif isinstance(item, (bool, int, float, str, type(None))):
                say(name, item)
    return f"sha256 {digest.hexdigest()}", has_weights


def code_identity(code: CodeType) -> list[object]:
    """A function's instructions, the names that it uses and its constants: what identifies it."""
    # The order of a set differs from one process to the next.
    shown = lambda c: repr(sorted(map(repr, c))) if isinstance(c, frozenset) else repr(c)
    constants = [code_identity(c) if isinstance(c, CodeType) else shown(c) for c in code.co_consts]
    return [code.co_code, code.co_names, constants]
