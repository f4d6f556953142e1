"""What PyTorch code does, measured in about ten calls on a few images: its output, its randomness, its state."""

from typing import NamedTuple

import numpy as np
import scipy

from purify_jax.bridges.torch_calls import Plan, TorchCalls, to_numpy, to_torch
from purify_jax.bridges.torch_outputs import kind_of
from purify_jax.checks import InputError

#: How many numbers a module draws.
DRAWS = ("none", "per image", "per call")
#: Images that are looked at, copies of one image in a call, and calls with copies.
PROBES, COPIES, CALLS = 4, 8, 6


class Traits(NamedTuple):
    """What was measured of a module, or declared.

    answer_shape: of one answer: ``(classes,)``, or ``(channels, height, width)`` of a purifier.
    output: "logits", "log_probabilities" or "probabilities"; "images" of a purifier.
    draws: "none", "per image", or "per call": one draw serves all images of a call, or a part of it does.
    generators: names of the generators that it draws from.
    replayed: it draws, but the same numbers for every seed: it seeds the generators itself.
    repeatable: the same keys give the same answers.
    independent: an image's answer does not depend on the rest of its batch.
    stateful: a call changes buffers or parameters. The bridge restores the buffers after each call.
    gradient: "present", "zero" on all images that were looked at, or "missing": the output is detached.
    grad_inside: it needs PyTorch's gradients inside a forward pass (a score that is a gradient).
    precision: the type of its parameters, "float32".
    """

    answer_shape: tuple[int, ...]
    output: str
    draws: str
    generators: tuple[str, ...]
    replayed: bool
    repeatable: bool
    independent: bool
    stateful: bool
    gradient: str
    grad_inside: bool
    precision: str

    @property
    def plan(self) -> Plan:
        """How calls are made: draws that a call shares, and batches that matter, are not folded."""
        return Plan(
            shape=self.answer_shape,
            logarithm=self.output == "probabilities",
            folds=self.draws != "per call" and self.independent,
            random=self.draws != "none" or not self.repeatable,
            stateful=self.stateful,
            grad_inside=self.grad_inside,
        )

    @property
    def promises(self) -> dict[str, bool]:
        """What holds of an evaluation of the module, by name.

        repeatable: the same run gives the same records.
        independent_draws: no two images share a draw.
        batch_independent: an image's records do not depend on the batch size.
        """
        return {
            "repeatable": self.repeatable,
            "independent_draws": self.draws != "per call",
            "batch_independent": self.draws == "none" and self.independent,
        }


def measure(calls: TorchCalls, images: np.ndarray, classifier: bool) -> Traits:
    """The traits of the code for a few images NCHW of one shape in [0, 1].

    Raises InputError for an output that is not what a classifier (else: a purifier) returns.
    """
    images = _four(images)
    first, tensors = Plan(stateful=True, grad_inside=True), _versions(calls)
    used: dict[str, set[bytes]] = {}
    import torch

    def answers(given: np.ndarray, seed: int, plan: Plan, grad: bool = True) -> np.ndarray:
        source = b"measured %d" % seed
        with calls.inside(plan, source, used), torch.set_grad_enabled(grad):
            return to_numpy(calls.answer(plan, to_torch(given)))

    # The module itself may be changed by this one call; a copy of its buffers is.
    with calls.inside(first, b"measured 0", used):
        buffers = {id(b): b._version for m in calls.modules for b in m.buffers(recurse=False)}
        leaf, found = calls.graph(first, images)
        after = [b for m in calls.modules for b in m.buffers(recurse=False)]
        stateful = any(buffers.get(id(b)) != b._version for b in after)
        whole = to_numpy(found)
        _check(whole, len(images), classifier)
        gradient = _gradient(calls, leaf, found)
    stateful |= tensors != _versions(calls)
    output = kind_of(whole) if classifier else "images"
    plan = first._replace(stateful=stateful)
    again = answers(images, 0, plan)
    grad_inside = False
    try:
        without = answers(images, 0, plan, grad=False)
        grad_inside = not same(whole, without) and same(whole, again)
    except RuntimeError:
        grad_inside = True
    other = answers(images, 1, plan)
    repeatable, differs = same(whole, again), not same(whole, other)
    # The first image beside darker ones: statistics of a batch that is only reordered are the same.
    rest = np.concatenate([images[:1], 0.5 * images[1:]])
    independent = same(whole[:1], answers(rest, 0, plan)[:1])
    draws, replayed = "none", bool(used) and not differs and all(len(x) == 1 for x in used.values())
    if differs or (used and not replayed):
        spread = np.abs(whole - other).reshape(len(images), -1).max(-1)
        copies = np.repeat(images[[int(spread.argmax())]], COPIES, axis=0)
        draws = _draws(np.stack([answers(copies, 2 + i, plan) for i in range(CALLS)]))
    calls.generators.measured(used)
    return Traits(
        answer_shape=whole.shape[1:],
        output=output,
        draws=draws,
        generators=tuple(sorted(used)),
        replayed=replayed,
        repeatable=repeatable,
        independent=independent,
        stateful=stateful,
        gradient=gradient,
        grad_inside=grad_inside,
        precision=str(calls.dtype).removeprefix("torch."),
    )


def _four(images: np.ndarray) -> np.ndarray:
    """Four images that differ: those given, then mirrored and turned."""
    images = np.asarray(images, np.float32)[:PROBES]
    turned = (images, images[..., ::-1], images[:, :, ::-1], 1 - images)
    return np.concatenate(turned)[:PROBES]


def _versions(calls: TorchCalls) -> list[tuple[int, int]]:
    tensors = [t for root in calls.roots for t in (*root.parameters(), *root.buffers())]
    return [(id(t), t._version) for t in tensors]


def _check(answers: np.ndarray, count: int, classifier: bool) -> None:
    rank, wanted = (
        (2, "[batch, classes]") if classifier else (4, "[batch, channels, height, width]")
    )
    if answers.ndim != rank or len(answers) != count:
        raise InputError(
            f"module: returned shape {answers.shape} for {count} images, expected {wanted}"
        )


def _gradient(calls: TorchCalls, leaf: object, found: object) -> str:
    import torch

    if not found.requires_grad:  # type: ignore[attr-defined]
        return "missing"
    weights = torch.arange(found[0].numel(), device=found.device).cos().reshape(found.shape[1:])  # type: ignore
    (gradient,) = torch.autograd.grad((found * weights).sum(), leaf, allow_unused=True)  # type: ignore
    if gradient is None:
        return "missing"
    return "present" if bool(torch.any(gradient != 0)) else "zero"


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether answers agree but for rounding."""
    scale = float(np.max(np.abs(a), initial=0.0, where=np.isfinite(a)))
    return bool(np.allclose(a, b, rtol=1e-3, atol=1e-4 * scale + 1e-7, equal_nan=True))


def _draws(answers: np.ndarray) -> str:
    """Of answers ``[calls, copies, ...]`` of one image: does each copy have a draw of its own?

    An analysis of variance: calls that share nothing but the image differ in their means by the
    copies' own spread / √copies. More is a draw, or a part of one, that the copies share.
    """
    answers = answers.reshape(CALLS, COPIES, -1).astype(np.float64)
    means = answers.mean(1)
    between = COPIES * means.var(0, ddof=1).sum()
    within = answers.var(1, ddof=1).mean(0).sum()
    if within <= 1e-12 * between or within == 0:
        return "per call"
    degrees = CALLS - 1, CALLS * (COPIES - 1)
    return "per call" if scipy.stats.f.sf(between / within, *degrees) < 0.01 else "per image"
