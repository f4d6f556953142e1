"""What an examination measured, in words: one line for each finding, with what to do about it."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import scipy

from purify_jax.types import PredictFn

#: Accuracy that another input range has to gain before it is suggested.
GAIN = 0.1


class Finding(NamedTuple):
    """name: what was looked at. measured: what was found. action: what to do about it, empty for nothing."""

    name: str
    measured: str
    action: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.measured}" + (f" → {self.action}" if self.action else "")


class Examination(NamedTuple):
    """What :func:`examine` measured. ``print(examination)`` shows one line for each of its ``findings``.

    defense: (keys, images) → log-probabilities, whatever was given.
    code: what it is, in words.
    separate: it has a purifier before a classifier, as BPDA and transfer attacks need.
    output: "logits", "log_probabilities" or "probabilities", as they were given.
    num_classes: how many.
    draws: "none", "per image", or "per call" if images of a call share a draw.
    generators: names of the generators of a PyTorch module that it draws from.
    replayed: it draws numbers, but the same ones for every seed.
    repeatable: equal keys give equal answers.
    independent: an image's answer does not depend on the rest of its batch.
    stateful: a call changes buffers or parameters.
    training: layers in training mode, by class → how many.
    eval_changes: answers differ in evaluation mode.
    accuracy: on the images, by input: "x", "255 x", "2 x - 1", and "x, eval()" for layers in training mode.
    expects: the input with more accuracy than "x", beyond chance (``expected_range``); "" for none.
    saturated: share of images whose probability is 1 to rounding.
    gradient: "derivative", "missing", "zero", "not finite", "not the derivative" or "unknown" (of answers that
      are not repeatable).
    wrong: share of images whose gradient is not the derivative.
    forward_ms, backward_ms: milliseconds for each image, of a prediction and of a gradient (both passes).
    forward_mb, backward_mb: megabytes for each image of the same, without parameters.
    """

    defense: PredictFn
    code: str
    separate: bool
    output: str
    num_classes: int
    draws: str
    generators: tuple[str, ...]
    replayed: bool
    repeatable: bool
    independent: bool
    stateful: bool
    training: dict[str, int]
    eval_changes: bool
    accuracy: dict[str, float]
    expects: str
    saturated: float
    gradient: str
    wrong: float
    forward_ms: float
    backward_ms: float
    forward_mb: float
    backward_mb: float

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All of them in words."""
        return tuple(in_words(self))

    @property
    def actions(self) -> tuple[Finding, ...]:
        """The findings that ask for an action."""
        return tuple(finding for finding in self.findings if finding.action)

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings))


def expected_range(right: Mapping[str, np.ndarray]) -> str:
    """The input whose answers are right much more often than those to "x", or "" for none.

    right: input → which images are right, ``[images]``. An input has to gain :data:`GAIN`, and to be better by a
    sign test over the images whose answers differ, at 5% for all alternatives together: on few images one or two
    more mean nothing.

    >>> few = np.array([True, True, False, False])
    >>> expected_range({"x": few, "255 x": ~few | few}), expected_range({"x": few.repeat(9), "255 x": few.repeat(9) | True})
    ('', '255 x')
    """
    plain, found = right["x"], {"": GAIN}
    others = {name: each for name, each in right.items() if name != "x"}
    for name, other in others.items():
        gained, lost = int(np.sum(other & ~plain)), int(np.sum(plain & ~other))
        if gained <= lost:
            continue
        chance = scipy.stats.binomtest(gained, gained + lost, alternative="greater").pvalue
        if chance <= 0.05 / len(others):
            found[name] = (gained - lost) / len(plain)
    return max(found, key=lambda name: found[name])


def in_words(found: Examination) -> Iterator[Finding]:
    """The findings, one after the other."""
    yield Finding("code", found.code)
    yield _output(found)
    yield from _randomness(found)
    yield from _state(found)
    yield from _accuracy(found)
    yield from _gradient(found)
    for name in ("forward", "backward"):
        cost = [getattr(found, f"{name}_{unit}") for unit in ("ms", "mb")]
        yield Finding(f"{name} pass", f"{cost[0]:.3g} ms and {cost[1]:.3g} MB per image")


def _output(found: Examination) -> Finding:
    actions = {
        "probabilities": "attack their logarithm, which the bridge takes",
        "logits": "",
        "log_probabilities": "",
    }
    measured = f"{found.output.replace('_', '-')} of {found.num_classes} classes"
    return Finding("output", measured, actions[found.output])


def _randomness(found: Examination) -> Iterator[Finding]:
    by = f" ({', '.join(found.generators)})" if found.generators else ""
    if found.replayed:
        action = "remove the seed inside: a draw that never changes protects nothing"
        yield Finding("randomness", f"every call draws the same numbers{by}", action)
    elif found.draws == "none" and found.repeatable:
        yield Finding("randomness", "none")
    elif found.draws == "per call":
        action = "samples of EOT are separate calls; images of one call share a draw, so smaller batches say more"
        yield Finding("randomness", f"one draw, or a part of it, serves a whole call{by}", action)
    else:
        action = "average gradients over draws (EOT), and quote the worst of several draws beside the average"
        yield Finding("randomness", f"a draw for each image{by}", action)
    if not found.repeatable:
        action = (
            "seed every generator from outside, or hold it in the module; until then runs cannot be "
            "repeated, and slopes and shared keys say nothing"
        )
        yield Finding("repeatable", "no: equal seeds give other answers", action)
    else:
        yield Finding("repeatable", "yes: equal keys give equal answers")


def _state(found: Examination) -> Iterator[Finding]:
    if not found.training:
        yield Finding("mode", "no layer in training mode")
    else:
        layers = ", ".join(f"{count} {name}" for name, count in sorted(found.training.items()))
        changes = "eval() changes answers" if found.eval_changes else "eval() changes nothing"
        changes = changes if found.repeatable else "eval() not compared"
        right = found.accuracy.get("x, eval()")
        changes += "" if right is None else f", accuracy {found.accuracy['x']:.3f} to {right:.3f}"
        action = 'call eval() or say mode="eval", unless it is deployed like this'
        yield Finding(
            "mode", f"in training mode: {layers}; {changes}", action if found.eval_changes else ""
        )
    if found.stateful:
        action = "buffers are restored after each call; parameters that change are not"
        yield Finding("state", "a call changes buffers or parameters", action)
    else:
        yield Finding("state", "no call changes it")
    if not found.repeatable:
        yield Finding("batch", "not checked: answers cannot be repeated")
    elif found.independent:
        yield Finding("batch", "an image's answer does not depend on the rest of its batch")
    else:
        action = "evaluate at the batch size of deployment; samples of EOT are separate calls"
        yield Finding("batch", "an image's answer depends on the rest of its batch", action)


def _accuracy(found: Examination) -> Iterator[Finding]:
    ranges = {name: found.accuracy[name] for name in ("x", "255 x", "2 x - 1")}
    measured = ", ".join(f"{value:.3f} at {name}" for name, value in ranges.items())
    action = ""
    if found.expects:
        action = (
            f"the module seems to expect {found.expects}: rescale inside it, images are in [0, 1]"
        )
    elif ranges["x"] < 2 / found.num_classes:
        action = "hardly better than chance: check labels, channel order and normalisation"
    yield Finding("accuracy", measured, action)
    action = (
        "attack margins or DLR, whose gradient does not vanish" if found.saturated > 0.05 else ""
    )
    measured = f"{found.saturated:.0%} of images have a probability of 1 to rounding"
    yield Finding("saturation", measured, action)


def _gradient(found: Examination) -> Iterator[Finding]:
    stand_in = (
        "BPDA through the purifier" if found.separate else "a smoothed black-box gradient (SPSA)"
    )
    measured, action = {
        "derivative": ("the derivative, by slopes at two step sizes", ""),
        "missing": ("missing: the output is detached from the input", stand_in),
        "zero": ("zero almost everywhere (rounded, voted or stopped)", stand_in),
        "not finite": ("not finite", "find the division or root that overflows"),
        "not the derivative": (
            f"not the derivative: slopes contradict it on {found.wrong:.0%} of images",
            f"find the branch that is stopped, replaced or drawn anew; else {stand_in}",
        ),
        "unknown": ("not checked: answers cannot be repeated", ""),
    }[found.gradient]
    yield Finding("gradient", measured, action)
