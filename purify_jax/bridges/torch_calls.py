"""Calls of PyTorch code: seeded from keys, in the mode that was asked for, with everything as before at the end.

The backward pass of a draw uses the graph of its forward pass, or computes that again from the same seed and the
same images in the same order.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from purify_jax.bridges.generators import LOCK, Generators, reachable
from purify_jax.bridges.torch_outputs import logarithm, softmax_watch, tensor_of
from purify_jax.checks import InputError

if TYPE_CHECKING:
    from torch import Tensor

#: Graphs of forward passes that wait for their backward pass, for each device of JAX.
GRAPHS = 4


class Plan(NamedTuple):
    """How images of one shape are sent to the code, and what comes back.

    shape: of one answer, ``(classes,)`` or ``(channels, height, width)``.
    logarithm: whether answers are probabilities.
    folds: whether vmapped calls become one call with more images; else they are one call each.
    random: whether the answers depend on the keys.
    stateful: whether a call changes buffers, which are then restored.
    grad_inside: whether the code needs gradients in a call without a backward pass too.
    """

    shape: tuple[int, ...] = ()
    logarithm: bool = False
    folds: bool = False
    random: bool = True
    stateful: bool = False
    grad_inside: bool = False


class Counts(NamedTuple):
    """Calls of the code, and the images in them; ``backward``: backward passes of such calls.

    A backward pass whose forward pass had to be computed again has counted that as one more call.
    """

    calls: int = 0
    images: int = 0
    backward: int = 0
    backward_images: int = 0


class TorchCalls:
    """The code with everything around its calls. ``counts``: those so far, which may be set to 0 again."""

    def __init__(self, module: object, mode: str | None):
        import torch

        self.module, self.mode = module, mode
        self.function = _function_of(module)
        found = [value for _, value in reachable(self.function)]
        roots = [value for value in found if isinstance(value, torch.nn.Module)]
        # Of nested modules the outermost ones; a submodule's mode is set with its owner's.
        inner = {id(m) for root in roots for m in root.modules() if m is not root}
        self.roots = [root for root in roots if id(root) not in inner]
        self.modules = list({id(m): m for root in self.roots for m in root.modules()}.values())
        tensors = [t for root in self.roots for t in (*root.parameters(), *root.buffers())]
        floating = [t for t in tensors if t.is_floating_point()]
        first = next(iter(floating + tensors), torch.zeros(()))
        self.device = first.device
        self.dtype = first.dtype if floating else torch.float32
        self.generators = Generators(self.function, self.device)
        self.counts = Counts()
        self._graphs: OrderedDict[int, tuple[Tensor, Tensor]] = OrderedDict()
        self._next = 0

    def __repr__(self) -> str:
        return type(self.module).__name__

    # --- in PyTorch ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def inside(
        self, plan: Plan, source: bytes, used: dict[str, set[bytes]] | None = None
    ) -> Iterator[None]:
        """Generators seeded, modes as asked for, buffers kept; all as before at the end."""
        with self.generators.seeded(source, used), self.mode_and_buffers(plan):
            yield

    @contextlib.contextmanager
    def mode_and_buffers(self, plan: Plan) -> Iterator[None]:
        """Modes as asked for, buffers kept."""
        with self._in_mode(), self._kept(plan):
            yield

    @contextlib.contextmanager
    def _in_mode(self) -> Iterator[None]:
        wanted = self.mode == "train"
        if self.mode is None or all(m.training == wanted for m in self.modules):
            yield
            return
        before = [(m, m.training) for m in self.modules]
        try:
            for root in self.roots:
                root.train(wanted)  # a module may do more than to set its flag
            yield
        finally:
            for root, training in before:
                if root in self.roots:
                    root.train(training)
            for each, training in before:
                each.training = training

    @contextlib.contextmanager
    def _kept(self, plan: Plan) -> Iterator[None]:
        """The call works on copies of the buffers, if it changes them."""
        held = [(m._buffers, dict(m._buffers)) for m in self.modules] if plan.stateful else []
        for buffers, before in held:
            buffers.update({n: None if b is None else b.clone() for n, b in before.items()})
        try:
            yield
        finally:
            for buffers, before in held:
                buffers.clear()
                buffers.update(before)

    def answer(self, plan: Plan, images: "Tensor") -> "Tensor":
        """float32 answers (logarithms of probabilities) for float32 images NCHW on the CPU."""
        count = len(images)
        self.counts = self.counts._replace(
            calls=self.counts.calls + 1, images=self.counts.images + count
        )
        # A copy: the code may change its input in place.
        given = images.to(self.device, self.dtype, copy=True)
        if not plan.logarithm:
            found = tensor_of(self.function(given))
        else:
            with softmax_watch()() as watch:
                output = tensor_of(self.function(given))
            found = logarithm(output, watch.last)
        found = found.float() if found.dtype.is_floating_point else found.to(images.dtype)
        if plan.shape and tuple(found.shape) != (count, *plan.shape):
            raise InputError(
                f"module: returned shape {tuple(found.shape)} for {count} images, expected "
                f"{(count, *plan.shape)}"
            )
        return found

    def graph(self, plan: Plan, images: np.ndarray) -> tuple["Tensor", "Tensor"]:
        """(images as a leaf, their answers), with the graph between them."""
        import torch

        with torch.enable_grad():
            leaf = to_torch(images).requires_grad_(True)
            return leaf, self.answer(plan, leaf)

    def pull_back(
        self, leaf: "Tensor", answers: "Tensor", cotangents: np.ndarray, last: bool
    ) -> np.ndarray:
        """The gradient of ⟨cotangents, answers⟩ by the images; zeros where no path leads to them."""
        import torch

        self.counts = self.counts._replace(
            backward=self.counts.backward + 1,
            backward_images=self.counts.backward_images + len(leaf),
        )
        gradient = None
        if answers.requires_grad:
            given = to_torch(cotangents).to(answers.device)
            (gradient,) = torch.autograd.grad(
                answers, leaf, given, allow_unused=True, retain_graph=not last
            )
        return np.zeros(leaf.shape, np.float32) if gradient is None else gradient.numpy()

    # --- callbacks ----------------------------------------------------------------------------

    def on_call(self, plan: Plan, keys: np.ndarray, images: np.ndarray) -> np.ndarray:
        import torch

        with self.inside(plan, _source(keys)), torch.set_grad_enabled(plan.grad_inside):
            return to_numpy(self.answer(plan, to_torch(images)))

    def on_kept_call(
        self, plan: Plan, keys: np.ndarray, images: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        with self.inside(plan, _source(keys)):
            leaf, answers = self.graph(plan, images)
            self._next = (self._next + 1) % 2**32
            self._graphs[self._next] = leaf, answers
            while len(self._graphs) > GRAPHS * jax.local_device_count():
                self._graphs.popitem(last=False)
            rows = np.arange(len(leaf), dtype=np.uint32)
            return to_numpy(answers), np.stack([np.full_like(rows, self._next), rows], axis=1)

    def on_backward(
        self,
        plan: Plan,
        tokens: np.ndarray,
        keys: np.ndarray,
        images: np.ndarray,
        cotangents: np.ndarray,
    ) -> np.ndarray:
        # Row 0 begins what was one call.
        starts = [int(i) for i in np.flatnonzero(tokens[:, 1] == 0)]
        numbers = [int(tokens[start, 0]) for start in starts]
        found = []
        for i, (start, end) in enumerate(zip(starts, [*starts[1:], len(tokens)], strict=True)):
            rows, number = slice(start, end), numbers[i]
            last = number not in numbers[i + 1 :]
            with LOCK:
                graph = self._graphs.pop(number, None)
                if graph is None:
                    with self.inside(plan, _source(keys[rows])):
                        graph = self.graph(plan, images[rows])
                with self.mode_and_buffers(plan):
                    found.append(self.pull_back(*graph, cotangents[rows], last))
                if not last:
                    self._graphs[number] = graph
        return found[0] if len(found) == 1 else np.concatenate(found)


def to_torch(array: np.ndarray) -> "Tensor":
    """A contiguous float32 tensor of its own memory."""
    import torch

    return torch.from_numpy(np.array(array, np.float32, order="C"))


def to_numpy(tensor: "Tensor") -> np.ndarray:
    """The tensor's values on the CPU."""
    return tensor.detach().cpu().numpy()


def _source(keys: np.ndarray) -> bytes:
    return np.ascontiguousarray(keys).tobytes()


def _function_of(module: Any) -> Callable:
    if callable(module) and not isinstance(module, type):
        return module
    if callable(getattr(module, "sample", None)) and not isinstance(module, type):
        return module.sample
    raise InputError(
        f"module: got {type(module).__name__}, expected a torch.nn.Module, or a function of images NCHW"
    )
